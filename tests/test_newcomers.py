"""What people write who come from PEFT, loralib, AdapterHub or unsloth: it works, or the error says what to write here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from torch import nn

import hf_lora
from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import ArgumentError, ConfigError, LoRAError, TargetError

from .tiny import IDS, tiny

# --- targets --------------------------------------------------------------------------------------------------------

A_WORD = "is a word of its own and not in a list, target_modules="
# The model, its target_modules, what the error says.
TARGETS: dict[str, tuple[str, Any, str]] = {
    "all_linear": ("llama", "all_linear", f"'all-linear' {A_WORD}'all-linear'"),
    "all linear": ("llama", "All Linear", f"'all-linear' {A_WORD}'all-linear'"),
    "a word in a list": ("bert", ["all-linear"], f"'all-linear' {A_WORD}'all-linear'"),
    "a word among names": ("llama", ["q_proj", "auto"], f"'auto' {A_WORD}'auto'"),
    "names with commas": ("llama", "q_proj,v_proj", r"Write a list, ['q_proj', 'v_proj']"),
    "names with spaces": ("bert", "query, value", r"Write a list, ['query', 'value']"),
    "one name": ("llama", "q_proj", r"Write a list, ['q_proj']"),
    "Llama's names on GPT-2": ("gpt2", ["q_proj", "v_proj"], "end in c_attn, c_fc, c_proj, lm_head; name some of them, or use 'auto' (c_attn here)"),
    "Llama's names on BERT": ("bert", ["q_proj", "v_proj"], "or use 'auto' (query, value here)"),
    "Llama's names on T5": ("t5", ["q_proj"], "or use 'auto' (q, v here)"),
    "letters in another order": ("llama", ["q_porj"], "'q_porj' (did you mean 'q_proj'?)"),
    "another language": ("bert", ["quary", "valu"], "'quary' (did you mean 'query'?); 'valu' (did you mean 'value'?)"),
    "a query's, where values are alike": ("llama", ["v_prj"], "'v_prj' (did you mean 'v_proj'?)"),
}  # fmt: skip


@pytest.mark.parametrize("what", TARGETS)
def test_targets_that_are_not_there_are_answered_with_those_that_are(what: str) -> None:
    model, targets, told = TARGETS[what]
    config = LoRAConfig(r=2, target_modules=targets)
    for attach in (lambda: LoRAModel.from_model(tiny(model), config), lambda: add_lora(tiny(model), config)):
        with pytest.raises(TargetError, match=re.escape(told)):
            attach()


def test_a_model_without_usual_targets_is_answered_too() -> None:
    with pytest.raises(TargetError, match="Its linear layers end in 0; name some of them, or use 'auto'"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), LoRAConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    "given", [("q_proj", "v_proj"), {"v_proj", "q_proj"}, frozenset(["q_proj", "v_proj"])], ids=type
)
def test_names_come_in_any_collection(given: Any) -> None:
    model = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, target_modules=given))
    assert sorted(model.peft_config["default"].target_modules) == ["q_proj", "v_proj"]


# --- settings -------------------------------------------------------------------------------------------------------

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"target_module": ["q_proj"]}, "did you mean 'target_modules'"),
    ({"alpha": 16}, "did you mean 'lora_alpha'"),
    ({"task_type": "CAUSALLM"}, "Did you mean 'CAUSAL_LM'"),
    ({"task_type": "causal_lm"}, "Did you mean 'CAUSAL_LM'"),
    ({"task_type": "seq-cls"}, "Did you mean 'SEQ_CLS'"),
    ({"task_type": "text-classification"}, "the choices are SEQ_CLS"),
    ({"r": "8"}, "r='8', but the rank"),
    ({"bias": True}, "bias=True; the choices are"),
    ({"modules_to_save": "classifier"}, r"write a list, \['classifier'\]"),
    ({"lora_dropout": "0.1"}, "lora_dropout='0.1'"),
    ({"use_gradient_checkpointing": "unsloth"}, "no setting 'use_gradient_checkpointing'"),
]


@pytest.mark.parametrize(("settings", "told"), SETTINGS, ids=str)
def test_settings_of_another_spelling_or_type_are_answered(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        LoRAConfig(**settings)
    assert isinstance(raised.value, TypeError)


def test_pefts_task_types_and_configs_are_taken_everywhere(tmp_path: Path) -> None:
    assert LoRAConfig(task_type=peft.TaskType.CAUSAL_LM) == LoRAConfig(task_type="CAUSAL_LM")
    tiny("gpt2").save_pretrained(tmp_path)
    theirs = peft.LoraConfig(r=3, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = LoRAModel.from_pretrained(tmp_path, theirs)
    model.add_adapter(theirs, "second")
    assert {config.r for config in model.peft_config.values()} == {3}


# --- calls ----------------------------------------------------------------------------------------------------------

Call = Callable[[Any, str], object]
# What is written about a model and the path of a base; what the error says.
CALLS: dict[str, tuple[Call, str]] = {
    "PEFT's order": (lambda m, p: LoRAModel.from_pretrained(m, "adapter"), r"from_model\(model, config\)"),
    "PEFT's call": (lambda m, p: LoRAModel(m, LoRAConfig()), "from_model"),
    "AdapterHub's order": (lambda m, p: LoRAModel.from_model(m, LoRAConfig(r=2)).add_adapter("b", LoRAConfig()), r"\(config, name\)"),
    "a config by Transformers' word": (lambda m, p: LoRAModel.from_pretrained(p, config=LoRAConfig()), "config: lora_config="),
    "a config by PEFT's word": (lambda m, p: LoRAModel.from_pretrained(p, peft_config=LoRAConfig()), "peft_config: lora_config="),
    "settings beside the base": (lambda m, p: LoRAModel.from_pretrained(p, r=8, lora_alpha=16), r"lora_alpha: LoRAConfig\(lora_alpha=\.\.\.\); r: LoRAConfig"),
    "settings beside the model": (lambda m, p: LoRAModel.from_model(m, r=16, target_modules=["c_attn"]), r"r: LoRAConfig\(r=\.\.\.\)"),
    "unsloth's": (
        lambda m, p: LoRAModel.from_model(m, use_gradient_checkpointing="unsloth", random_state=3407, max_seq_length=9),
        "max_seq_length: .*random_state: LoRAConfig.*use_gradient_checkpointing: gradient_checkpointing=True",
    ),
    "unsloth's, by name": (lambda m, p: LoRAModel.from_pretrained(p, random_state=3407), "random_state: LoRAConfig"),
    "four bits": (lambda m, p: LoRAModel.from_pretrained(p, load_in_4bit=True), "load_in_4bit: quantization_config=Bits"),
    "a config on a plain model": (lambda m, p: m.add_adapter(LoRAConfig()), "from_model.*add_lora"),
    "a config by name on a plain model": (lambda m, p: m.add_adapter(adapter_config=LoRAConfig(), adapter_name="b"), "from_model"),
    "a dict for a config": (lambda m, p: LoRAModel.from_model(m, {"r": 8}), r"LoRAConfig\(\*\*it\)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    tiny("gpt2").save_pretrained(folder := tmp_path_factory.mktemp("base"))
    return str(folder)


@pytest.mark.parametrize("what", CALLS)
def test_calls_of_other_libraries_are_answered_and_change_nothing(what: str, base: str) -> None:
    call, told = CALLS[what]
    model = tiny("gpt2")
    with pytest.raises(ArgumentError, match=told) as raised:
        call(model, base)
    assert isinstance(raised.value, TypeError)
    assert isinstance(model, LoRAModel) == (what == "AdapterHub's order")
    assert not getattr(model, "_hf_peft_config_loaded", False) or isinstance(model, LoRAModel)


def test_pefts_own_configs_go_on_a_plain_model_as_ever() -> None:
    model = tiny("gpt2")
    model.add_adapter(peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True), "theirs")
    assert model.active_adapters() == ["theirs"]


def test_a_fresh_adapter_whose_config_says_inference_trains_and_says_so() -> None:
    with pytest.warns(UserWarning, match="inference_mode=True has no effect.*trains"):
        model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, inference_mode=True))
    assert model.get_nb_trainable_parameters()[0] > 0


# --- several adapters ------------------------------------------------------------------------------------------------

ROWS = ["default", "fr"]
NO_NAME = "no adapter 'frr' (did you mean 'fr'?); the model has ['default', 'fr']"
ALONE = "'__base__' is a row of adapter_names= by itself"
ONE_A_ROW = "adapter_names=[...] names one for each row of the batch; model.set_adapter(name) one for all"
TWO_NAMES = "it takes two names of adapters and their LoRAModel, compare('a', 'b', model)"
# What is written about a model that has the adapters "default" and "fr", and the path of an adapter; what the error says.
SEVERAL: dict[str, tuple[Call, str]] = {
    "a typo in a row": (lambda m, p: m(IDS, adapter_names=["default", "frr"]), NO_NAME),
    "a typo in generate": (lambda m, p: m.generate(IDS, adapter_names=["default", "frr"]), NO_NAME),
    "a typo in set_adapter": (lambda m, p: m.set_adapter("frr"), NO_NAME),
    "a typo in a hot swap": (lambda m, p: m.load_adapter("not/read", "frr", hotswap=True), NO_NAME),
    "the base by another word": (lambda m, p: m(IDS, adapter_names=["base", "fr"]), "'base' (did you mean '__base__'?)"),
    "the base among names": (lambda m, p: m(IDS, adapter_names=["fr", {"__base__": 0.5, "fr": 0.5}]), ALONE),
    "the base for all": (lambda m, p: m.set_adapter("__base__"), ALONE),
    "the base's word as a name": (lambda m, p: m.add_adapter(LoRAConfig(r=2), "__base__"), "it stands for none"),
    "a name for the batch": (lambda m, p: m(IDS, adapter_names="fr"), "a list with an entry a row"),
    "names for fewer rows": (lambda m, p: m(IDS, adapter_names=["fr"]), "a batch of 2 rows, with adapters named for 1"),
    "names for what is repeated": (
        lambda m, p: m.generate(IDS, adapter_names=ROWS * 2, num_return_sequences=2, do_sample=True),
        "a batch of 2 rows, with adapters named for 4",
    ),
    "numbers": (lambda m, p: m(IDS, adapter_names=[0, 1]), "0 for a row; a name"),
    "nothing for a row": (lambda m, p: m(IDS, adapter_names=["fr", {}]), "{} for a row; a name"),
    "lists in lists": (lambda m, p: m(IDS, adapter_names=["fr", [["fr"]]]), "no adapter ['fr']"),
    "a text for a weight": (lambda m, p: m(IDS, adapter_names=["fr", {"fr": "1"}]), "a weight is a finite number"),
    "one name in a call": (lambda m, p: m(IDS, adapter_name="fr"), f"adapter_name=: {ONE_A_ROW}"),
    "vLLM's word": (lambda m, p: m.generate(IDS, lora_request="fr"), f"lora_request=: {ONE_A_ROW}"),
    "rows in training": (lambda m, p: m.train()(IDS, adapter_names=ROWS), "set_requires_grad(['default', 'fr']) before. To train none, call eval()"),
    "weights of what is active": (lambda m, p: m.set_adapter({"fr": 0.5}), "add_weighted_adapter makes one adapter"),
    "weights by name": (lambda m, p: m.add_weighted_adapter(ROWS, {"default": 1, "fr": 2}, "n"), "a list of names and one of weights"),
    "capital letters": (lambda m, p: m.add_weighted_adapter(ROWS, [1, 1], "n", "TIES"), "Did you mean 'ties'?"),
    "compare's order": (lambda m, p: hf_lora.compare(m, *ROWS), TWO_NAMES),
    "compare's models": (lambda m, p: hf_lora.compare(m, m), TWO_NAMES),
    "diffusers' hotswap": (lambda m, p: m.load_adapter(p, "fr", hotswap="auto"), "hotswap='auto': True puts"),
    "PEFT's room": (lambda m, p: m.prepare_hotswap(target_rank=8), "target_rank: max_r="),
    "name and path": (lambda m, p: m.load_adapter("fr", p), "load_adapter(path, name)"),
    "a cache's name and path": (lambda m, p: hf_lora.AdapterCache(m).register(p, "new"), "register(name, path)"),
    "a cache's path": (lambda m, p: hf_lora.AdapterCache(m).register("new", None), "a NoneType is given where a name"),
    "vLLM's limits": (lambda m, p: hf_lora.AdapterCache(m, max_loras=2), "max_loras: max_adapters="),
}  # fmt: skip


@pytest.mark.parametrize("what", SEVERAL)
def test_calls_about_several_adapters_are_answered_and_change_nothing(what: str, tmp_path: Path) -> None:
    call, told = SEVERAL[what]
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, init_lora_weights=False)).eval()
    model.add_adapter(LoRAConfig(r=2, init_lora_weights=False), "fr")
    with pytest.raises(LoRAError, match=re.escape(told)):
        call(model, str(tmp_path))
    assert [*model.peft_config] == ROWS
    assert model.active_adapters() == ["fr"]


METHODS = {
    "add_classification_head": "SEQ_CLS", "train_adapter": "set_adapter", "save_adapter": "adapter_name=name",
    "save_pretrained_merged": r"merge_and_unload\(\)\.save_pretrained", "for_inference": r"model\.eval\(\)",
    "disable_adapter": "adapters_disabled", "active_adapter": r"active_adapters\(\)",
    "get_base_model": "adapters_disabled.*unload",
    "enable_adapter_layers": "enable_adapters", "get_layer_status": "targets_report",
    "set_adapters": "add_weighted_adapter", "unload_adapter": "delete_adapter", "compare": r"hf_lora\.compare",
    "prepare_model_for_compiled_hotswap": "prepare_hotswap",
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_other_libraries_are_answered(name: str) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=METHODS[name]):
        getattr(model, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing_at_all'"):
        model.nothing_at_all  # noqa: B018


NAMES = {
    "LoraConfig": "LoRAConfig", "PeftModel": "LoRAModel", "PeftConfig": "LoRAConfig", "TaskType": "CAUSAL_LM",
    "get_peft_model": r"LoRAModel\.from_model", "AutoPeftModelForCausalLM": "from_pretrained",
    "mark_only_lora_as_trainable": "freezes everything else", "FastLanguageModel": "from_pretrained",
    "prepare_model_for_kbit_training": "as it is",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_libraries_are_answered_where_they_are_imported(name: str) -> None:
    with pytest.raises(ImportError, match=f"{name}.*{NAMES[name]}"):
        exec(f"from hf_lora import {name}")
    with pytest.raises(AttributeError, match=f"{name}.*{NAMES[name]}"):
        getattr(hf_lora, name)
    with pytest.raises(AttributeError, match="nothing_at_all"):
        hf_lora.nothing_at_all  # noqa: B018
