"""The model card: what the Hub understands, what a user wrote and keeps, and what never gets in."""

from __future__ import annotations

import math
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from torch import nn
from transformers.pipelines import SUPPORTED_TASKS

from hf_lora import LoRAConfig, LoRAModel, add_lora

from .cases import PAIRS, adapted
from .peek import (
    _BY_MAPPING,
    CARD_NAME,
    FORMULAS,
    INITS,
    PAPERS,
    SCALINGS,
    TASKS,
    CardRecord,
    TrainingFacts,
    amend_card,
    frontmatter,
    hub_id,
    is_private,
    public_name,
    public_setting,
    sections,
    template,
    write_card,
)

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).parents[1]
REPO = "me/tiny-lora"
# Pipeline tags of the Hub (huggingface.js, packages/tasks) that an adapter may get here.
HUB_TAGS = set(
    "text-classification token-classification table-question-answering question-answering feature-extraction "
    "text-generation fill-mask text-to-speech text-to-audio automatic-speech-recognition audio-classification "
    "audio-text-to-text depth-estimation image-classification object-detection image-segmentation image-to-image "
    "video-classification multiple-choice image-text-to-text visual-question-answering document-question-answering "
    "zero-shot-image-classification mask-generation zero-shot-object-detection image-feature-extraction "
    "keypoint-detection any-to-any".split()
)

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
BERT = {**SMALL, "vocab_size": 16, "max_position_embeddings": 8}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "vocab_size": 16}
VIT = {**SMALL, "image_size": 4, "patch_size": 2}
WHISPER = {
    "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 16,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_mel_bins": 4,
    "max_source_positions": 8, "max_target_positions": 8, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
GPT2 = {
    "n_layer": 1,
    "n_embd": 8,
    "n_head": 2,
    "vocab_size": 16,
    "n_positions": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# class, its config, task type, pipeline tag, the class that PEFT's snippet loads by
MODELS: dict[str, tuple[str, dict[str, Any], str | None, str | None, str]] = {
    "seq-cls": ("BertForSequenceClassification", BERT, "SEQ_CLS", "text-classification", "AutoPeftModelForSequenceClassification"),
    "seq-cls-no-task": ("BertForSequenceClassification", BERT, None, "text-classification", "AutoModelForSequenceClassification"),
    "token-cls": ("BertForTokenClassification", BERT, "TOKEN_CLS", "token-classification", "AutoPeftModelForTokenClassification"),
    "question": ("BertForQuestionAnswering", BERT, "QUESTION_ANS", "question-answering", "AutoPeftModelForQuestionAnswering"),
    "features": ("BertModel", BERT, "FEATURE_EXTRACTION", "feature-extraction", "AutoPeftModelForFeatureExtraction"),
    "features-no-task": ("BertModel", BERT, None, "feature-extraction", "AutoModel"),
    "masked": ("BertForMaskedLM", BERT, None, "fill-mask", "AutoModelForMaskedLM"),
    "causal": ("GPT2LMHeadModel", GPT2, "CAUSAL_LM", "text-generation", "AutoPeftModelForCausalLM"),
    "causal-no-task": ("GPT2LMHeadModel", GPT2, None, "text-generation", "AutoModelForCausalLM"),
    "seq2seq": ("T5ForConditionalGeneration", T5, "SEQ_2_SEQ_LM", "text-generation", "AutoPeftModelForSeq2SeqLM"),
    "image": ("ViTForImageClassification", VIT, None, "image-classification", "AutoModelForImageClassification"),
    "image-features": ("ViTModel", VIT, None, "image-feature-extraction", "AutoModel"),
    "speech": ("WhisperForConditionalGeneration", WHISPER, None, "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
    "speech-as-seq2seq": ("WhisperForConditionalGeneration", WHISPER, "SEQ_2_SEQ_LM", "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
}  # fmt: skip


def build(case: str, base: str | None = "org/base", **settings: Any) -> LoRAModel:
    """Return a tiny model of a case with an adapter; base: what it says it was loaded from."""
    name, config, task, _, _ = MODELS[case]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**config))
    model.name_or_path = base or ""
    return LoRAModel.from_model(model, LoRAConfig(**{"r": 2, "task_type": task, **settings}))


def write(path: Path, model: LoRAModel, **more: Any) -> str:
    """Write a model's card and return its text."""
    (name,) = model.active_adapters()
    write_card(path, model, model.peft_config[name], model.get_adapter_state_dict(), **more)
    return path.read_bytes().decode()


@pytest.fixture(scope="module")
def model() -> LoRAModel:
    return build("causal")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / CARD_NAME


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def check_metadata(path: Path) -> dict[str, Any]:
    """Return a card's metadata, which huggingface_hub's own parsers read and write again without loss."""
    found = metadata_load(path)
    assert found is not None
    assert ModelCard.load(path).data.to_dict() == ModelCardData(**found).to_dict() == found
    if "model-index" in found:
        name, results = model_index_to_eval_results(found["model-index"])
        assert eval_results_to_model_index(name, results) == found["model-index"]
    return found


# --- what the Hub understands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODELS)
def test_the_metadata_says_base_library_and_task(case: str, path: Path) -> None:
    text = write(path, build(case), repo_id=REPO)
    found = check_metadata(path)
    _, _, _, tag, loader = MODELS[case]
    assert found["base_model"] == "org/base"
    assert found["base_model_relation"] == "adapter"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == tag
    assert found["tags"][:3] == ["lora", "hf_lora", "transformers"]
    assert ("text2text-generation" in found["tags"]) == (case == "seq2seq")
    assert f"import {loader}\n" in text


@pytest.mark.parametrize("case", MODELS)
def test_every_snippet_compiles_and_names_the_repo(case: str, path: Path) -> None:
    text = write(path, build(case), repo_id=REPO)
    codes = fences(text, "python")
    assert len(codes) in (2, 3)
    for code in codes:
        compile(code, "card", "exec")
        assert f'"{REPO}"' in code
    for code in re.findall(r"from (transformers|peft|hf_lora) import (\w+)", text):
        assert hasattr(pytest.importorskip(code[0]), code[1])


def test_every_tag_is_one_of_the_hub_s_and_every_pipeline_one_of_transformers() -> None:
    for task in (*_BY_MAPPING.values(), *TASKS.values()):
        assert task.tag in HUB_TAGS
        if task.pipeline and task.tag not in ("text-to-speech", "audio-text-to-text"):
            assert task.tag in SUPPORTED_TASKS


def test_a_class_that_nobody_knows_has_the_task_of_its_type(path: Path) -> None:
    class Unheard(transformers.GPT2LMHeadModel):
        pass

    base = Unheard(transformers.GPT2Config(**GPT2))
    write(path, LoRAModel.from_model(base, LoRAConfig(r=2, task_type="CAUSAL_LM")))
    assert check_metadata(path)["pipeline_tag"] == "text-generation"
    path.unlink()
    write(path, LoRAModel.from_model(Unheard(transformers.GPT2Config(**GPT2)), LoRAConfig(r=2)))
    assert "pipeline_tag" not in check_metadata(path)


@pytest.mark.parametrize(("kind", "variant"), [p for p in PAIRS if p[0] in ("linear", "embedding", "conv2d", "experts", "attention")])  # fmt: skip
def test_every_variant_has_a_card_that_can_be_read(kind: str, variant: str, path: Path) -> None:
    text = write(path, adapted(kind, variant))
    found = check_metadata(path)
    assert "base_model" not in found
    assert "pipeline_tag" not in found
    assert "transformers" not in found["tags"]
    assert [t for t in PAPERS if t in found["tags"]] == ["lora", *(t for t in PAPERS if t in variant and t != "lora")]
    for name in PAPERS:
        assert (PAPERS[name].link in text) == (name in found["tags"])
    assert [compile(code, "card", "exec") for code in fences(text, "python")]
    assert fences(text, "sh") == []


def test_every_row_of_the_variants_tables_has_its_paper_or_is_plain() -> None:
    rows = {*FORMULAS, *SCALINGS, *(name for name, row in INITS.items() if isinstance(name, str) and not row.read_only)}
    assert rows - PAPERS.keys() == {"gaussian"}
    assert PAPERS.keys() <= rows
    for key, paper in PAPERS.items():
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
        assert paper.bibtex(key).count("{") == paper.bibtex(key).count("}")


@pytest.mark.parametrize(
    ("settings", "served"),
    [
        ({}, True), ({"r": 9}, True), ({"use_rslora": True}, True), ({"use_dora": True}, False), ({"r": 513}, False),
        ({"modules_to_save": ["lm_head"]}, False), ({"init_lora_weights": "pissa"}, False),
        ({"bias": "all"}, False), ({"rank_pattern": {"c_attn": 4}}, False), ({"lora_bias": True}, False),
    ],
)  # fmt: skip
def test_vllm_is_named_where_it_serves_the_adapter_as_it_is_meant(
    settings: dict[str, Any], served: bool, path: Path
) -> None:
    codes = fences(write(path, build("causal", **settings), repo_id=REPO), "sh")
    assert len(codes) == served
    if served:
        assert codes[0].startswith(
            "vllm serve org/base --enable-lora --max-lora-rank " + ("16" if "r" in settings else "8")
        )
        assert "--lora-modules tiny-lora=me/tiny-lora" in codes[0]


def test_the_numbers_are_the_adapter_s_own(path: Path) -> None:
    model = build("causal", alpha_pattern={"c_attn": 4.0}, lora_alpha=16, lora_dropout=0.25)
    model.add_adapter(LoRAConfig(r=4), "other")
    model.set_adapter("default")
    tensors = model.get_adapter_state_dict("default")
    text = write(path, model)
    count = sum(t.numel() for t in tensors.values())
    every = sum(p.numel() for n, p in model.named_parameters() if ".other." not in n)
    assert f"{count:,d} parameters, {count / every:.2%} of the model's {every:,d}" in text
    for row in ("rank `r` | 2", "`lora_alpha` | 16", "scaling | 8 (alpha / r)", "dropout | 0.25", "targets | `c_attn`"):
        assert f"| {row} |" in text
    assert "| alphas of their own | `c_attn`: 4 |" in text
    assert f"| size | {4 * count:,d} bytes of tensors |" in text
    model.save_pretrained(path.parent / "both")
    size = (path.parent / "both" / "adapter_model.safetensors").stat().st_size
    assert f"({size:,d} bytes on disk)" in (path.parent / "both" / CARD_NAME).read_text()


def test_the_snippet_of_hf_lora_loads_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for base_is_named in (False, True):
        torch.manual_seed(0)
        base = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3))
        base.save_pretrained(tmp_path / "base")
        model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2, task_type="SEQ_CLS"))
        model.save_pretrained(tmp_path / "out")
        text = (tmp_path / "out" / CARD_NAME).read_text()
        assert "path/or/repo-of-its-base" in text
        assert str(tmp_path) not in text
        code = fences(text, "python")[0].replace("path/or/repo-of-its-base", str(tmp_path / "base"))
        if base_is_named:
            code = code.replace(f', base_model="{tmp_path / "base"}"', "")
        found: dict[str, Any] = {}
        exec(code.replace("path/or/repo-of-this-adapter", str(tmp_path / "out")), found)
        for name, tensor in model.get_adapter_state_dict().items():
            assert torch.equal(found["model"].get_adapter_state_dict()[name], tensor)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
def test_the_snippet_of_peft_loads_a_head_of_three_labels(tmp_path: Path, path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    bare = transformers.BertModel(transformers.BertConfig(**BERT))
    bare.save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2, task_type="SEQ_CLS"), num_labels=3)
    model.save_pretrained(tmp_path / "out")
    config = model.peft_config["default"]
    config.base_model_name_or_path = "org/base"
    write(path, model)
    code = fences(path.read_text(), "python")[1]
    assert "AutoPeftModelForSequenceClassification" in code
    assert "num_labels=3" in code
    found: dict[str, Any] = {}
    exec(code.replace("path/or/repo-of-this-adapter", str(tmp_path / "out")), found)
    ids = torch.arange(4).reshape(1, 4)
    assert torch.allclose(found["model"].eval()(ids).logits, model.eval()(ids).logits, atol=1e-5)


# --- what a Trainer and a user say ----------------------------------------------------------------------------------

FACTS = TrainingFacts(
    hyperparameters={"learning_rate": 2e-3, "num_epochs": 3, "fp16": False, "output_dir": "/home/me/out"},
    metrics={"loss": 0.25, "accuracy": 0.8859, "epoch": 3.0, "runtime": 1.5},
    dataset="IMDB",
    dataset_tags="stanfordnlp/imdb",
    dataset_args="plain_text",
    language="en",
    license="mit",
    tags=["sentiment"],
    model_name="tiny",
)


def test_what_a_trainer_knows_is_in_metadata_and_text(model: LoRAModel, path: Path) -> None:
    text = write(path, model, facts=FACTS)
    found = check_metadata(path)
    assert (found["license"], found["language"], found["datasets"]) == ("mit", ["en"], ["stanfordnlp/imdb"])
    assert "sentiment" in found["tags"]
    name, results = model_index_to_eval_results(found["model-index"])
    assert name == "tiny"
    assert {r.metric_type: r.metric_value for r in results} == {"loss": 0.25, "accuracy": 0.8859}
    assert {(r.task_type, r.dataset_type, r.dataset_name, r.dataset_config) for r in results} == {
        ("text-generation", "stanfordnlp/imdb", "IMDB", "plain_text")
    }
    assert "| `learning_rate` | 0.002 |" in text
    assert "| accuracy | 0.8859 |" in text
    assert "output_dir" not in text
    assert "| runtime |" not in text
    assert "| epoch |" not in text


def test_metrics_without_a_data_set_stay_out_of_the_model_index(model: LoRAModel, path: Path) -> None:
    text = write(path, model, facts=TrainingFacts(metrics={"accuracy": 0.5}))
    assert "model-index" not in check_metadata(path)
    assert "| accuracy | 0.5 |" in text


def test_nothing_is_said_of_a_training_that_nobody_knows(model: LoRAModel, path: Path) -> None:
    text = write(path, model)
    assert "## Training" not in text
    assert "## Results" not in text
    assert "nformation needed" not in text.lower()


def test_what_a_training_run_said_stays_when_the_adapter_is_saved_again(model: LoRAModel, path: Path) -> None:
    first = write(path, model, facts=FACTS)
    assert write(path, model) == first


def test_what_a_user_says_counts_more_than_what_is_found(model: LoRAModel, path: Path) -> None:
    result = EvalResult("text-generation", "org/data", "Data", "perplexity", 12.5)
    data = ModelCardData(
        license="apache-2.0", language="de", datasets=["org/data"], tags=["mine", "lora"], base_model="org/renamed",
        pipeline_tag="translation", model_name="named", eval_results=[result], inference=False,
    )  # fmt: skip
    text = write(path, model, facts=FACTS, card_data=data)
    found = check_metadata(path)
    assert (found["license"], found["language"], found["pipeline_tag"]) == ("apache-2.0", "de", "translation")
    assert found["datasets"] == ["stanfordnlp/imdb", "org/data"]
    assert found["inference"] is False
    assert found["tags"].count("lora") == 1
    assert "mine" in found["tags"]
    assert len(found["model-index"][0]["results"]) == 2
    assert "for org/renamed" in text
    assert "(https://huggingface.co/org/renamed)" in text
    assert write(path, model) == text


def test_a_metric_that_is_measured_again_gets_the_new_value_once(model: LoRAModel, path: Path) -> None:
    for value in (0.5, 0.5, 0.75):
        write(path, model, facts=TrainingFacts(metrics={"accuracy": value}, dataset_tags="imdb"))
    (entry,) = check_metadata(path)["model-index"]
    (result,) = entry["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75}]


def test_another_tool_s_results_stay(model: LoRAModel, path: Path) -> None:
    foreign = {"task": {"type": "x"}, "dataset": {"type": "d", "name": "D"}, "metrics": [{"type": "f1", "value": 1}]}
    index = [{"name": "theirs", "results": [{**foreign, "extra": {"kept": True}}]}]
    path.write_text(f"---\n{yaml.dump({'model-index': index})}---\n")
    write(path, model, facts=FACTS)
    found = metadata_load(path)
    assert found is not None
    assert found["model-index"][0]["name"] == "theirs"
    assert found["model-index"][0]["results"][0] == index[0]["results"][0]
    assert len(found["model-index"][0]["results"]) == 2


@pytest.mark.parametrize("index", ["5", "[]", "[{name: x}]", "[1, 2]", "{a: b}", "[{name: x, results: 3}]"])
def test_a_model_index_that_is_none_is_left_alone(index: str, model: LoRAModel, path: Path) -> None:
    path.write_text(f"---\nmodel-index: {index}\n---\n")
    write(path, model, facts=FACTS)
    found = metadata_load(path)
    assert found is not None
    assert found["library_name"] == "peft"


# --- what the user wrote --------------------------------------------------------------------------------------------


def test_saving_again_writes_the_same_bytes_and_no_file(model: LoRAModel, path: Path) -> None:
    first = write(path, model, facts=FACTS, repo_id=REPO)
    before = path.stat()
    assert write(path, model, facts=FACTS) == first  # the repo's id is kept
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [p.name for p in path.parent.iterdir()] == [CARD_NAME]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_written_outside_of_the_parts_survives_any_update(seed: int, newline: str, path: Path) -> None:
    """Insert random text between, before and behind the parts, and change what the card is about again and again."""
    rng = random.Random(seed)
    models = [build("causal"), build("causal", r=4, use_rslora=True), build("seq-cls", base=None)]
    text = write(path, models[0]).replace("\n", newline)
    written: list[str] = []
    for step in range(5):
        words = rng.choices(["# Mine", "---", "- a", "", "  ", "é😀", "<!-- x -->", "```", "$x ${y} {z}", "| a |"], k=4)
        mine = newline.join([f"user text {step}", *words, ""])
        body = frontmatter.split(text)[1]
        head = text[: len(text) - len(body)]
        cuts = [0, len(body)] + [found.end() for found in re.finditer(r"<!-- hf_lora:end [a-z]+ -->\r?\n", body)]
        cut = rng.choice(cuts)
        path.write_bytes((head + body[:cut] + mine + body[cut:]).encode())
        written.append(mine)
        text = write(path, rng.choice(models), facts=rng.choice([None, FACTS]), repo_id=rng.choice([None, REPO]))
        outside = sections._PART.sub("", text)
        assert all(outside.count(piece) == 1 for piece in written)
        assert len(sections.parts(text)) == len(template())
        assert newline == "\n" or not re.search(r"(?<!\r)\n", text)
        assert write(path, models[0]) == write(path, models[0])
        text = path.read_bytes().decode()


def test_a_part_that_the_user_edited_is_left_alone_and_the_others_go_on(model: LoRAModel, path: Path) -> None:
    text = write(path, model)
    path.write_text(text.replace("# LoRA adapter for org/base", "# Mine"))
    again = write(path, build("causal", r=4))
    assert "\n# Mine\n" in again
    assert "# LoRA adapter" not in again
    assert "| rank `r` | 4 |" in again


def test_parts_whose_markers_were_deleted_stay_away(model: LoRAModel, path: Path) -> None:
    text = write(path, model)
    short = re.sub(r"<!-- hf_lora:begin vllm.*?end vllm -->\n", "", text, flags=re.DOTALL)
    assert short != text
    path.write_text(short)
    assert write(path, model) == short
    bare = text.partition("<!-- hf_lora:begin")[0] + "Only this.\n"
    path.write_text(bare)
    assert write(path, model) == bare


def test_a_part_without_its_end_is_the_user_s(model: LoRAModel, path: Path) -> None:
    text = write(path, model).replace("<!-- hf_lora:end about -->\n", "")
    path.write_text(text)
    assert write(path, model) == text
    again = write(path, build("causal", base="org/new"))
    assert "# LoRA adapter for org/new" in again
    assert "for [org/base](https://huggingface.co/org/base)" in again


PEFT_CARD = """---
base_model: /home/somebody/models/llama
library_name: transformers
# chosen by me
license: mit # really
pipeline_tag: translation
language:
  - en   # and
  # not de
  - fr
tags: [base_model:adapter:/home/somebody/models/llama, 'mine: own']
widget:
- text: "a: b"

---

# Model Card for Model ID

<!-- Provide a quick summary of what the model is/does. -->

## Uses

[More Information Needed]
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_another_tool_s_card_keeps_its_text_and_lines_and_gets_the_parts_once(
    newline: str, model: LoRAModel, path: Path
) -> None:
    path.write_bytes(PEFT_CARD.replace("\n", newline).encode())
    text = write(path, model)
    assert write(path, model) == text
    found = check_metadata(path)
    assert found["base_model"] == "org/base"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == "translation"
    assert found["license"] == "mit"
    assert found["tags"] == ["mine: own", "lora", "hf_lora", "transformers"]
    assert "/home" not in text
    for kept in ("# chosen by me", "license: mit # really", "  - en   # and", "  # not de", "  - fr", '- text: "a: b"'):
        assert kept + newline in text
    assert text.index("base_model:") < text.index("license:") < text.index("widget:")
    body = frontmatter.split(text)[1]
    assert body.startswith(PEFT_CARD.partition("\n---\n")[2].replace("\n", newline))
    assert text.count("hf_lora:begin load") == 1
    assert "hf_lora:begin title" not in text


@pytest.mark.parametrize(
    "block",
    [
        "tags: [a, b]", "tags:\n- a\n- b # last", "tags:\n  - a\n\n# c\nlicense: mit", "tags: a", "tags:", "{tags: [a]}",
        "# only a comment", "a: &x [1]\ntags: &t [a]\nb: *x\nc: *t", "tags: |\n  a\nx: >-\n  y\n  z", "? tags\n: - a",
        "'tags': [a]", "tags: [a,\n  b]", "x: 2020-01-01\ntags: [no, 1.0]", "tags: []", "license: mit\nlicense: x",
        "tags:\n- a\n- >-\n  b c\nz: 1\n",
    ],
)  # fmt: skip
def test_metadata_of_any_form_keeps_what_it_says(block: str, model: LoRAModel, path: Path) -> None:
    before = yaml.safe_load(block) or {}
    path.write_text(f"---\n{block}\n---\ntext\n")
    write(path, model)
    found = metadata_load(path)
    assert found is not None
    mine = [before["tags"]] if isinstance(before.get("tags"), str) else list(before.get("tags") or ())
    assert found.pop("tags") == [*(t for t in mine if isinstance(t, str)), "lora", "hf_lora", "transformers"]
    assert {k: found[k] for k in before if k != "tags"} == {k: v for k, v in before.items() if k != "tags"}
    for comment in re.findall(r"#.*", block):
        assert comment in path.read_text()
    once = path.read_bytes()
    write(path, model)
    assert path.read_bytes() == once


def _random_value(rng: random.Random, depth: int = 0) -> Any:
    texts = ["a", "x: y", "# no", "- z", "é", "", "no", "1.0", "'q'", "a\nb\n", " lead", "|", "*a", "%", "@x"]
    kind = rng.randrange(5)
    if kind < 2 or depth > 2:
        return rng.choice([*texts, 1, 2.5, True, None])
    if kind == 2:
        return {rng.choice("pqr"): _random_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    return [_random_value(rng, depth + 1) for _ in range(rng.randrange(4))]


def test_random_metadata_changes_where_it_is_told_to_and_nowhere_else() -> None:
    rng = random.Random(0)
    for _ in range(300):
        before = {key: _random_value(rng) for key in rng.sample(["tags", "license", "x", "y z", "model-index"], k=4)}
        newline = rng.choice(["\n", "\r\n"])
        entries = {
            key: yaml.dump({key: value}, indent=rng.choice([2, 4]), width=rng.choice([20, 80])) + f"# about {key}\n"
            for key, value in before.items()
        }
        text = f"---\n{''.join(entries.values())}---\nbody\n".replace("\n", newline)
        after = {key: value for key, value in before.items() if rng.random() > 0.2}
        for key, value in after.items():
            if rng.random() < 0.4:
                after[key] = [*value, "new: er"] if isinstance(value, list) else _random_value(rng)
        after |= {"new": _random_value(rng)} if rng.random() < 0.5 else {}
        result = frontmatter.replaced(text, after)
        assert frontmatter.split(result) == (after, f"body{newline}")
        assert frontmatter.replaced(result, after) == result
        for key, entry in entries.items():
            kept = key in after and after[key] == before[key]
            assert (entry if kept else f"# about {key}\n").replace("\n", newline) in result


def test_metadata_that_the_user_changed_or_took_out_stays_so(model: LoRAModel, path: Path) -> None:
    text = write(path, model)
    text = text.replace("pipeline_tag: text-generation\n", "").replace("- transformers\n", "")
    text = text.replace("base_model: org/base\n", "base_model: org/base-canonical\n")
    path.write_text(text)
    again = write(path, model)
    assert frontmatter.split(again)[0] == frontmatter.split(text)[0]
    assert "# LoRA adapter for org/base-canonical\n" in again
    found = check_metadata(path)
    assert "pipeline_tag" not in found
    assert "transformers" not in found["tags"]
    assert found["base_model"] == "org/base-canonical"
    write(path, build("causal", base="org/another"))
    assert check_metadata(path)["base_model"] == "org/another"  # the adapter belongs to something else now


def test_metadata_of_an_earlier_adapter_goes(path: Path) -> None:
    write(path, build("causal", use_rslora=True))
    write(path, build("seq-cls", base=None))
    found = check_metadata(path)
    assert "rslora" not in found["tags"]
    assert found["pipeline_tag"] == "text-classification"
    assert "base_model" not in found
    assert "base_model_relation" not in found


def test_a_card_without_front_matter_gets_one(model: LoRAModel, path: Path) -> None:
    path.write_text("# Mine\n\nwords")
    text = write(path, model)
    assert text.startswith("---\nbase_model: org/base\n")
    assert "\n---\n\n# Mine\n\nwords\n\n<!-- hf_lora:begin" in text
    check_metadata(path)


def test_a_byte_order_mark_stays_at_the_front(model: LoRAModel, path: Path) -> None:
    for start in ("", "---\nlicense: mit\n---\n"):
        path.write_bytes(f"\ufeff{start}mine\n".encode())
        text = write(path, model)
        assert text.startswith("\ufeff---\n")
        assert text.count("\ufeff") == 1
        assert frontmatter.split(text)[0]["library_name"] == "peft"  # older huggingface_hub sees none behind the mark


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"---\na: [\n---\nmine", "metadata"), (b"---\n- a\n---\n", "mapping"),
        (b"---\na: !!python/object:os.system x\n---\n", "metadata"), (b"---\n1: 2\n---\n", "mapping"),
        ("caf\xe9".encode("latin-1"), "UTF-8"), (b"\xff\xfeh\x00i\x00", "UTF-8"),
        (b"---\na: b: c\n---\n", "metadata"),
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_read_is_left_as_it_is_with_a_warning(
    content: bytes, why: str, model: LoRAModel, path: Path
) -> None:
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=why):
        write_card(path, model, model.peft_config["default"], model.get_adapter_state_dict())
    with pytest.warns(UserWarning, match=why):
        amend_card(path, ModelCardData(license="mit"), {"x": "y"})
    assert path.read_bytes() == content


def test_a_card_is_amended_in_metadata_and_by_parts(model: LoRAModel, path: Path) -> None:
    before = write(path, model)
    for words in ("first", "second"):
        amend_card(path, ModelCardData(license="mit", tags=["lora", "own"], base_model="/x/y"), {"notes": words})
    text = path.read_text()
    found = check_metadata(path)
    assert (found["license"], found["base_model"]) == ("mit", "org/base")
    assert found["tags"][-1] == "own"
    assert "second" in text
    assert "first" not in text
    assert before.partition("---\n\n")[2] in text
    assert write(path, model) == text


def test_a_user_s_text_that_looks_like_a_marker_does_no_harm(path: Path) -> None:
    facts = TrainingFacts(
        hyperparameters={"note": "<!-- hf_lora:end training --> | `x`"},
        dataset="<!-- hf_lora:begin about -->",
        dataset_tags="imdb",
        metrics={"a|b": 1.0},
        model_name="--> x",
    )
    model = build("causal")
    text = write(path, model, facts=facts)
    assert list(sections.parts(text)) == list(template())
    assert CardRecord.read(text) is not None
    assert write(path, model, facts=facts) == text


# --- what never gets in ---------------------------------------------------------------------------------------------

SECRETS = [
    "hf_" + "aBcDeFgHiJ" * 3, "sk-" + "a1" * 12, "ghp_" + "x9" * 15, "Bearer abc.def", "https://me:pw@host/x",
    "/home/somebody/data", "/root/x", "/tmp/pytest-1", "~/models/base", "~", "../up", "./here/base", "C:\\Users\\me\\x", "D:/data/x",
    "\\\\server\\share", "file:///etc/passwd", "runs/checkpoint-500", "s3 at /mnt/disk",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_no_token_and_no_path_gets_into_the_card(secret: str, path: Path) -> None:
    facts = TrainingFacts(
        hyperparameters={"note": secret, "hub_token": "plain", "output_dir": "plain", secret: 1, "lr": 0.5},
        metrics={"accuracy": 0.5, secret: 1.0},
        dataset=secret,
        dataset_tags=["imdb", secret],
        dataset_args=secret,
        language=secret,
        license=secret,
        tags=[secret, "fine"],
        model_name=secret,
        tasks=secret,
    )
    data = ModelCardData(
        base_model=secret, datasets=[secret], tags=[secret], widget=[{"text": secret}], license_link=secret,
        model_name=secret, eval_results=[EvalResult("t", secret, secret, "f1", secret)],
    )  # fmt: skip
    model = build("causal", base=secret)
    for more in ({"facts": facts}, {"card_data": data}, {"facts": facts, "card_data": data, "repo_id": secret}):
        text = write(path, model, **more)
        assert secret not in text
        assert secret.replace("\\", "\\\\") not in text
        assert "somebody" not in text
        assert "etc/passwd" not in text
        check_metadata(path)
    assert "| `lr` | 0.5 |" in text
    assert "fine" in metadata_load(path)["tags"]


def test_random_secrets_are_told_from_plain_settings() -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    for _ in range(300):
        word = "".join(rng.choices(letters, k=rng.randint(20, 40)))
        around = rng.choice(["{}", "token={}", "use '{}' now", "a,{}"])
        for secret in (f"hf_{word}", f"/{word[:5]}/{word[5:9]}", f"~/{word[:6]}", f"{word[0]}:\\{word[1:5]}"):
            if not secret[0].isdigit():
                assert is_private(around.format(secret)), (around, secret)
            assert public_setting("note", around.format(secret)) is None
    for plain in (
        "linear",
        "adamw_torch_fused with betas=(0.9,0.999) and epsilon=1e-08",
        "0.1",
        "cosine with 5% warm-up",
    ):
        assert public_setting("lr_scheduler", plain) == plain
    assert public_setting("num_input_tokens", 5) == 5
    assert public_setting("note", "use 0123456789abcdef0123456789abcdef01234567") is None
    for name in ("hub_token", "api_key", "logging_dir", "user", "hub_model_id", "resume_path"):
        assert public_setting(name, "x") is None


def test_the_names_of_this_machine_and_its_user_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr("platform.node", lambda: "box-17")
    assert public_setting("note", "trained by ada") is None
    assert public_setting("note", "on BOX-17") is None
    assert public_setting("optimizer", "adafactor of box-170") == "adafactor of box-170"
    assert hub_id("ada/bert") == "ada/bert"


@pytest.mark.parametrize(
    "name", ["hf-internal-testing/tiny-random-gpt2", "sk-lab/skip-connections-large-2", "hf_lora_demo"]
)
def test_an_id_that_only_begins_like_a_token_is_an_id(name: str) -> None:
    assert hub_id(name) == name


def test_what_lies_here_is_no_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_id("gpt2") == "gpt2"
    assert hub_id("org/name") == "org/name"
    assert public_name("/data/reviews/") == "reviews"
    assert public_name("C:\\x\\reviews") == "reviews"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_id("org/name") is None
    assert public_name("org/name") == "name"
    for no in ("", None, "a b", "a/b/c", "org/.hidden.git", "out/checkpoint-10"):
        assert hub_id(no) is None


# --- where the template lies ----------------------------------------------------------------------------------------


def test_the_template_is_the_one_of_the_repository_and_every_part_is_used(model: LoRAModel, path: Path) -> None:
    source = sections.parts((ROOT / "model_cards" / "templates" / "adapter.md").read_text(encoding="utf-8"))
    assert template() == source
    assert list(sections.parts(write(path, model))) == list(source)


def test_a_built_wheel_holds_the_template(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="the build backend is not installed here")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        held = archive.read("hf_lora/hub/card/adapter.md").decode()
    assert sections.parts(held) == template()


def test_plain_modules_have_snippets_that_ask_for_the_base(path: Path) -> None:
    text = write(path, add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(r=2, target_modules=["0"])))
    assert "base_model=base" in text
    assert "PeftModel.from_pretrained(base" in text
    assert "pipeline(" not in text


# --- values that are no metadata ------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["tags: 2024", "base_model: 5", "base_model: true", "library_name: 3", "datasets: 7"])
def test_a_value_of_another_type_in_a_card_is_no_reason_to_fail(line: str, model: LoRAModel, path: Path) -> None:
    path.write_text(f"---\n{line}\n---\nhello\n")
    write(path, model, card_data=ModelCardData(datasets=["imdb"]))
    found = metadata_load(path)
    assert found is not None
    assert found["datasets"] == ["imdb"]
    assert "lora" in found["tags"]


def test_numbers_that_are_not_finite_are_no_results_and_take_no_comment_away(model: LoRAModel, path: Path) -> None:
    path.write_text("---\n# why\nlicense: mit  # so\nmine: .nan\n---\nhello\n")
    facts = TrainingFacts({}, {"loss": math.nan, "accuracy": 0.5, "perplexity": math.inf}, dataset_tags="imdb")
    result = EvalResult("t", "imdb", "IMDB", "f1", math.nan)
    text = write(path, model, facts=facts, card_data=ModelCardData(model_name="a", eval_results=[result]))
    text = write(path, model, facts=facts)
    assert "# why" in text
    assert "license: mit  # so" in text
    found = metadata_load(path)
    assert found is not None
    _, results = model_index_to_eval_results(found["model-index"])
    assert {r.metric_type: r.metric_value for r in results} == {"accuracy": 0.5}
    assert "| loss | nan |" in text
    write(path, model, facts=TrainingFacts({}, {"loss": math.nan}, dataset_tags="imdb"))


def test_numbers_of_numpy_and_torch_and_other_objects_are_written_plainly(model: LoRAModel, path: Path) -> None:
    """YAML has pickled objects for them, which no reader of a card takes."""
    values = {"f1": np.float64(0.5), "accuracy": torch.tensor(0.25), "count": np.int64(3)}
    results = [EvalResult("t", "imdb", "IMDB", name, value) for name, value in values.items()]
    data = ModelCardData(model_name="a", license=np.str_("mit"), note=Path("x"), eval_results=results)
    text = write(path, model, card_data=data)
    assert "!!python" not in text
    found = metadata_load(path)
    assert found is not None
    assert (found["license"], found["note"]) == ("mit", "x")
    _, kept = model_index_to_eval_results(found["model-index"])
    assert {r.metric_type: r.metric_value for r in kept} == {"f1": 0.5, "accuracy": 0.25, "count": 3}
    assert write(path, model, card_data=data) == text
