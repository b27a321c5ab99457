"""What a base was told when it was loaded, or by a Trainer since, is there again when an adapter brings its base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import LoRAError

from .peek import read_notes
from .tiny import floats, inputs, tiny

WEIGHTS = "adapter_model.safetensors"
RANDOM = LoRAConfig(r=2, init_lora_weights=False)
ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
LABELS = {0: "road", 1: "car", 2: "a tree/bush"}


def _disk(name: str, folder: Path, cls: str | None = None, **settings: Any) -> Path:
    tiny(name, cls, **settings).save_pretrained(folder)
    return folder


def _trained(model: Any) -> Any:
    """Move what trains off its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def _same(a: Any, b: Any, name: str) -> bool:
    with torch.no_grad():
        pairs = zip(floats(a(**inputs(name))), floats(b(**inputs(name))), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# family, the base's class on disk, the Auto class that loads it, what it is told.
MEMBERS: dict[str, tuple[str, str | None, str, dict[str, Any]]] = {
    "the kind of loss": ("bert", "BertModel", "AutoModelForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    "the token that pads": ("gpt2", None, "AutoModelForSequenceClassification", {"num_labels": 2, "pad_token_id": 7}),
    "rope": ("llama", None, "AutoModelForCausalLM", {"rope_parameters": ROPE}),
    "an epsilon": ("llama", None, "AutoModelForCausalLM", {"rms_norm_eps": 0.3}),
    "an activation": ("llama", None, "AutoModelForCausalLM", {"hidden_act": "relu"}),
    "a soft cap": ("gemma2", None, "AutoModelForCausalLM", {"final_logit_softcapping": 0.5}),
    "a window": ("mistral", "MistralForCausalLM", "AutoModelForCausalLM", {"sliding_window": 2}),
    "fewer layers": ("llama", None, "AutoModelForCausalLM", {"num_hidden_layers": 1}),
    "experts a token": ("mixtral", None, "AutoModelForCausalLM", {"num_experts_per_tok": 1}),
    "labels of tokens": ("bert", "BertModel", "AutoModelForTokenClassification", {"id2label": LABELS}),
    "labels of images": ("vit", "ViTModel", "AutoModelForImageClassification", {"id2label": LABELS}),
    "labels of objects": ("detr", None, "AutoModelForObjectDetection", {"id2label": LABELS, "ignore_mismatched_sizes": True}),
    "a part of its config": ("clip", None, "AutoModel", {"text_config": {"layer_norm_eps": 0.2}, "logit_scale_init_value": 1.0}),
    "an alphabet": ("wav2vec2", "Wav2Vec2Model", "AutoModelForCTC", {"vocab_size": 50, "pad_token_id": 49}),
    "a window that it widens by itself": ("gemma3", None, "AutoModelForCausalLM", {"use_bidirectional_attention": True}),
    "labels and numbers of one's own": ("vit", "ViTModel", "AutoModelForImageClassification", {"num_labels": 2, "label2id": {"yes": 1, "no": 0, "none": 0}}),
    "labels of voices": ("wav2vec2", "Wav2Vec2Model", "AutoModelForAudioXVector", {"num_labels": 3, "tdnn_dim": [8, 8], "tdnn_kernel": [1, 1], "tdnn_dilation": [1, 1], "xvector_output_dim": 8}),
    "fewer positions": ("gpt2", None, "AutoModelForCausalLM", {"n_positions": 16, "ignore_mismatched_sizes": True}),
    "the token to begin with": ("bart", None, "AutoModelForSeq2SeqLM", {"decoder_start_token_id": 9}),
    "another alphabet": ("wav2vec2", None, "AutoModelForCTC", {"vocab_size": 50, "pad_token_id": 49, "ignore_mismatched_sizes": True}),
}  # fmt: skip


def _by_name(base: Path, cls: str, told: dict[str, Any]) -> Any:
    return LoRAModel.from_pretrained(base, RANDOM, auto_class=cls, **told)


def _by_class(base: Path, cls: str, told: dict[str, Any]) -> Any:
    return getattr(transformers, cls).from_pretrained(base, lora_config=RANDOM, **told)


def _by_module(base: Path, cls: str, told: dict[str, Any]) -> Any:
    model = getattr(transformers, cls).from_pretrained(base, **told)
    heads = [n for n, _ in model.named_children() if "classifier" in n or "score" in n or n == "lm_head"]
    return LoRAModel.from_model(model, RANDOM.copy(modules_to_save=heads or None))


@pytest.mark.parametrize("make", [_by_name, _by_class, _by_module])
@pytest.mark.parametrize("what", MEMBERS)
def test_what_a_base_was_told_when_it_was_loaded_is_there_after_a_reload(
    what: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    name, cls, auto, told = MEMBERS[what]
    base = _disk(name, tmp_path / "base", cls)
    model = _trained(make(base, auto, told))
    for folder in ("one", "two"):  # the second is saved by the reloaded one
        model.save_pretrained(tmp_path / folder)
        again = LoRAModel.from_pretrained(tmp_path / folder).eval()
        assert type(again) is type(model)
        for key in told.keys() - {"num_labels", "ignore_mismatched_sizes", "text_config"}:
            assert getattr(again.config, key) == getattr(model.config, key)
        assert again.num_labels == model.num_labels if hasattr(model, "num_labels") else True
        assert _same(again, model, name)
        model = again
    assert str(tmp_path) not in json.dumps(read_notes(tmp_path / "one" / WEIGHTS))


def test_what_is_set_after_loading_is_there_as_well(tmp_path: Path) -> None:
    base = _disk("bart", tmp_path / "base", forced_eos_token_id=None)
    model = _trained(LoRAModel.from_pretrained(base, RANDOM))
    model.config.pad_token_id = 5
    model.generation_config.forced_bos_token_id = 33
    model.generation_config.num_beams = 2
    model.generation_config.stop_strings = ["</s>", "a/b"]
    model.save_pretrained(tmp_path / "out")
    again = LoRAModel.from_pretrained(tmp_path / "out")
    assert again.config.pad_token_id == 5
    assert again.generation_config.stop_strings == ["</s>", "a/b"]
    model.generation_config.stop_strings = again.generation_config.stop_strings = None  # they need a tokenizer
    ids = torch.tensor([[5, 6, 7]])
    assert again.generation_config.forced_bos_token_id == 33
    assert torch.equal(model.generate(ids, max_new_tokens=4), again.generate(ids, max_new_tokens=4))


@pytest.mark.parametrize("task", [None, "SEQ_2_SEQ_LM"])  # by the class itself, and by an auto class
def test_a_setting_reaches_generation_as_it_did_when_the_base_was_loaded(task: str | None, tmp_path: Path) -> None:
    base = _disk("bart", tmp_path / "base")
    config = RANDOM.copy(task_type=task)
    model = _trained(LoRAModel.from_pretrained(base, config, decoder_start_token_id=9))
    model.save_pretrained(tmp_path / "out")
    again = LoRAModel.from_pretrained(tmp_path / "out")
    assert again.generation_config.decoder_start_token_id == model.generation_config.decoder_start_token_id
    assert again.config.decoder_start_token_id == 9


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"]])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_vocabulary_that_was_cut_is_cut_on_reload(when: str, targets: list[str], tmp_path: Path) -> None:
    base, config = _disk("llama", tmp_path / "base"), RANDOM.copy(target_modules=targets)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if when == "before":
        model.resize_token_embeddings(40)
    model = LoRAModel.from_model(model, config if when == "before" else RANDOM.copy(target_modules=["q_proj"]))
    if when == "after":
        model.resize_token_embeddings(40)
    _trained(model).save_pretrained(tmp_path / "out")
    ids = {"input_ids": torch.tensor([[30, 7, 5]])}
    with pytest.warns(UserWarning, match="resized from 48 to 40 rows"):
        again = LoRAModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(again(**ids).logits, model(**ids).logits)
    if "embed_tokens" not in model.peft_config["default"].target_modules:
        other = transformers.AutoModelForCausalLM.from_pretrained(base)
        with pytest.warns(UserWarning, match=r"a vocabulary of 40 rows \(here 48\)"):
            LoRAModel.from_pretrained(tmp_path / "out", base_model=other)


@pytest.fixture
def rope(tmp_path: Path) -> Path:
    """Return the folder of an adapter on a base, beside it, that was loaded with other rope settings."""
    model = LoRAModel.from_pretrained(_disk("llama", tmp_path / "base"), RANDOM, rope_parameters=ROPE)
    model.save_pretrained(tmp_path / "out")
    return tmp_path / "out"


def test_a_reload_says_what_it_applies_and_a_base_as_it_is_has_nothing_noted(
    rope: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.get_logger("hf_lora"), "propagate", True)
    logger = logging.get_logger("hf_lora.model.bases")
    logger.addHandler(caplog.handler)
    logger.setLevel("WARNING")
    again = LoRAModel.from_pretrained(rope)
    logger.removeHandler(caplog.handler)
    logger.setLevel("NOTSET")
    assert "rope_parameters=" in caplog.text
    assert "linear" in caplog.text
    assert again.config.rope_parameters["factor"] == 4.0
    LoRAModel.from_pretrained(rope.parent / "base", RANDOM).save_pretrained(rope.parent / "plain")
    assert "settings" not in read_notes(rope.parent / "plain" / WEIGHTS)


def test_what_the_caller_says_counts_and_a_loaded_model_with_other_settings_warns(rope: Path) -> None:
    own = {**ROPE, "factor": 2.0}
    assert LoRAModel.from_pretrained(rope, rope_parameters=own).config.rope_parameters["factor"] == 2.0
    base = transformers.AutoModelForCausalLM.from_pretrained(rope.parent / "base")
    with pytest.warns(UserWarning, match=r"trained with rope_parameters=.*linear"):
        LoRAModel.from_pretrained(rope, base_model=base)
    other = LoRAModel.from_pretrained(rope.parent / "base", RANDOM)
    with pytest.warns(UserWarning, match=r"trained with rope_parameters="):
        other.load_adapter(rope, "b")


def test_what_training_writes_into_a_config_that_says_nothing_is_no_setting(tmp_path: Path) -> None:
    base = _disk("bert", tmp_path / "base")
    model = LoRAModel.from_pretrained(base, RANDOM)
    model(**inputs("bert"), labels=torch.tensor([0, 2]))
    assert model.config.problem_type == "single_label_classification"
    model.save_pretrained(tmp_path / "out")
    assert "settings" not in read_notes(tmp_path / "out" / WEIGHTS)


def test_special_tokens_of_a_language_model_warn_nobody_who_brings_the_model(tmp_path: Path) -> None:
    base = _disk("llama", tmp_path / "base")
    model = LoRAModel.from_pretrained(base, RANDOM)
    model.config.pad_token_id = model.generation_config.pad_token_id = 3  # as a Trainer does
    model.save_pretrained(tmp_path / "out")
    LoRAModel.from_pretrained(tmp_path / "out", base_model=transformers.AutoModelForCausalLM.from_pretrained(base))
    assert LoRAModel.from_pretrained(tmp_path / "out").config.pad_token_id == 3


def test_settings_of_a_base_that_is_not_at_hand_are_kept_from_the_file(rope: Path) -> None:
    base = tiny("llama", rope_parameters=ROPE)
    LoRAModel.from_pretrained(rope, base_model=base).save_pretrained(rope.parent / "again")
    assert read_notes(rope.parent / "again" / WEIGHTS)["settings"] == read_notes(rope / WEIGHTS)["settings"]


def test_new_rows_of_a_vocabulary_are_no_setting(tmp_path: Path) -> None:
    model = LoRAModel.from_pretrained(_disk("llama", tmp_path / "base"), RANDOM)
    model.resize_token_embeddings(52)
    _trained(model).save_pretrained(tmp_path / "out")
    assert "settings" not in read_notes(tmp_path / "out" / WEIGHTS)


def _rewrite(folder: Path, settings: object) -> None:
    metadata = {"format": "pt", "hf_lora": json.dumps({**read_notes(folder / WEIGHTS), "settings": settings})}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata=metadata)


@pytest.mark.parametrize(
    "settings",
    [
        3, [], {"config": 3}, {"config": {"to_dict": 3}}, {"config": {"no_such_key": 3}}, {"generation_config": [1]},
        {"config": {"auto_map": {"AutoModelForCausalLM": "evil--code.Model"}}}, {"config": {"_attn_implementation": "evil/code"}},
        {"config": {"attn_implementation": "evil/code"}}, {"config": {"_name_or_path": "/etc"}}, {"config": {"hidden_act": "a/b"}},
        {"generation_config": {"to_dict": 1, "_x": 2, "custom_generate": "evil/code"}}, {"quantization_config": {}},
        {"config": {"rope_parameters": {"auto_map": "x", **ROPE}}}, {"config": {"pad_token_id": "x" * 300_000}},
    ],
)  # fmt: skip
def test_settings_that_no_adapter_may_set_are_left_alone(rope: Path, settings: object) -> None:
    _rewrite(rope, settings)
    again = LoRAModel.from_pretrained(rope)
    assert _same(again, LoRAModel.from_pretrained(rope, base_model=tiny("llama"), check_base=False), "llama")


@pytest.mark.parametrize(
    "settings",
    [
        {"config": {"hidden_size": 24}}, {"config": {"hidden_act": "no such function"}}, {"config": {"rms_norm_eps": "x"}},
        {"config": {"num_attention_heads": 0}}, {"quantization_config": {"quant_method": "none such"}},
    ],
)  # fmt: skip
def test_settings_that_make_no_model_are_an_error_that_names_them(rope: Path, settings: dict[str, Any]) -> None:
    _rewrite(rope, settings)
    with pytest.raises(LoRAError, match="|".join(next(iter(settings.values()))) + "|quantization_config=None"):
        LoRAModel.from_pretrained(rope)


def test_a_quantised_base_comes_back_quantised_or_in_float_on_request(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantised = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    base = _disk("llama", tmp_path / "base", hidden_size=64, head_dim=32, intermediate_size=64)
    model = _trained(LoRAModel.from_pretrained(base, RANDOM, quantization_config=quantised))
    model.save_pretrained(tmp_path / "out")
    again = LoRAModel.from_pretrained(tmp_path / "out").eval()
    assert _same(again, model, "llama")
    plain = LoRAModel.from_pretrained(tmp_path / "out", quantization_config=None)
    assert plain.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
    with pytest.warns(UserWarning, match="quantised by bitsandbytes in 4 bits"):
        LoRAModel.from_pretrained(tmp_path / "out", base_model=transformers.AutoModelForCausalLM.from_pretrained(base))


# The family, its class, the task type that is written, whether a warning says so.
TASKS_GIVEN = [
    ("bert", "BertForSequenceClassification", "CAUSAL_LM", True),
    ("bert", "BertForSequenceClassification", "TOKEN_CLS", True),
    ("roberta", "RobertaForTokenClassification", "SEQ_CLS", True),
    ("electra", "ElectraForQuestionAnswering", "SEQ_CLS", True),
    ("llama", "LlamaForCausalLM", "SEQ_CLS", True),
    ("gpt2_classifier", "GPT2ForSequenceClassification", "SEQ_2_SEQ_LM", True),
    ("bert", "BertForSequenceClassification", "SEQ_CLS", False),
    ("bert", "BertForSequenceClassification", "FEATURE_EXTRACTION", False),
    ("bert", "BertModel", "SEQ_CLS", False),
    ("t5", "T5ForConditionalGeneration", "CAUSAL_LM", False),
    ("whisper", "WhisperForConditionalGeneration", "CAUSAL_LM", False),
    ("whisper", "WhisperForConditionalGeneration", "SEQ_2_SEQ_LM", False),
]


@pytest.mark.parametrize(("name", "cls", "task_type", "odd"), TASKS_GIVEN)
def test_a_task_type_of_other_models_is_told_and_the_base_s_class_comes_back(
    name: str, cls: str, task_type: str, odd: bool, tmp_path: Path
) -> None:
    base = _disk(name, tmp_path / "base", cls)
    config = RANDOM.copy(task_type=task_type)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = getattr(transformers, cls).from_pretrained(base, lora_config=config)
    assert any(f"task_type={task_type!r} is given for a {cls}" in str(each.message) for each in told) == odd
    model.save_pretrained(tmp_path / "out")
    again = LoRAModel.from_pretrained(tmp_path / "out")
    assert type(again) is type(model)
    assert _same(again.eval(), model.eval(), name)


def test_a_task_type_that_trains_no_head_is_told_to_a_further_adapter_as_well() -> None:
    model = LoRAModel.from_model(tiny("bert"), LoRAConfig(task_type="SEQ_CLS"))
    with pytest.warns(UserWarning, match="whose task type is 'SEQ_CLS'"):
        model.add_adapter(LoRAConfig(task_type="CAUSAL_LM"), "b")


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_a_trainer_aligns_with_a_tokenizer_and_no_forward_looks_for_is_no_warning(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer has tokens for the beginning and the end that the config lacks; one without a pad pads with its end."""
    base = _disk(family, tmp_path / "base", eos_token_id=2)
    model = LoRAModel.from_pretrained(base, LoRAConfig(r=2))
    model.config.bos_token_id, model.config.eos_token_id = 1, 2
    if family == "llama":
        model.config.pad_token_id = model.generation_config.pad_token_id = 2
    _trained(model).save_pretrained(tmp_path / "out")
    whole = type(tiny(family)).from_pretrained(base)
    logger = logging.get_logger("hf_lora.model.settings")
    logger.addHandler(caplog.handler)
    again = LoRAModel.from_pretrained(tmp_path / "out", base_model=whole)
    logger.removeHandler(caplog.handler)
    assert _same(again, model.eval(), family)
    assert not caplog.records


def test_settings_of_generation_that_are_the_usual_ones_are_not_noted(tmp_path: Path) -> None:
    model = LoRAModel.from_pretrained(_disk("bart", tmp_path / "base"), LoRAConfig(r=2))
    usual = model.generation_config._get_default_generation_params()
    for key in ("num_beams", "length_penalty", "assistant_lookbehind"):
        setattr(model.generation_config, key, usual[key])
    model.generation_config.no_repeat_ngram_size = 3
    _trained(model).save_pretrained(tmp_path / "out")
    notes = read_notes(tmp_path / "out" / WEIGHTS)
    assert notes["settings"]["generation_config"] == {"no_repeat_ngram_size": 3}
