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
    CARD_NAME,
    FORMULAS,
    INITS,
    PAPERS,
    SCALINGS,
    TASKS,
    amend_card,
    generated,
    hub_id,
    is_private,
    public_name,
    public_setting,
    write_card,
)
from .tiny import tiny

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).parents[1]
REPO = "me/tiny-lora"
BASE_TAG = "base_model:adapter:org/base"
# Pipeline tags of the Hub (huggingface.js, packages/tasks) that an adapter may get here.
HUB_TAGS = set(
    "text-classification token-classification table-question-answering question-answering feature-extraction "
    "text-generation fill-mask text-to-speech text-to-audio automatic-speech-recognition audio-classification "
    "audio-text-to-text depth-estimation image-classification object-detection image-segmentation image-to-image "
    "video-classification multiple-choice image-text-to-text visual-question-answering document-question-answering "
    "zero-shot-image-classification mask-generation zero-shot-object-detection image-feature-extraction "
    "keypoint-detection any-to-any".split()
)
# family, class, task type, pipeline tag, the class that PEFT's snippet loads by
MODELS: dict[str, tuple[str, str | None, str | None, str, str]] = {
    "seq-cls": ("bert", None, "SEQ_CLS", "text-classification", "AutoPeftModelForSequenceClassification"),
    "seq-cls-no-task": ("bert", None, None, "text-classification", "AutoModelForSequenceClassification"),
    "token-cls": ("roberta", None, "TOKEN_CLS", "token-classification", "AutoPeftModelForTokenClassification"),
    "question": ("electra", None, "QUESTION_ANS", "question-answering", "AutoPeftModelForQuestionAnswering"),
    "features": ("bert", "BertModel", "FEATURE_EXTRACTION", "feature-extraction", "AutoPeftModelForFeatureExtraction"),
    "features-no-task": ("bert", "BertModel", None, "feature-extraction", "AutoModel"),
    "masked": ("bert_mlm", None, None, "fill-mask", "AutoModelForMaskedLM"),
    "causal": ("gpt2", None, "CAUSAL_LM", "text-generation", "AutoPeftModelForCausalLM"),
    "causal-no-task": ("gpt2", None, None, "text-generation", "AutoModelForCausalLM"),
    "seq2seq": ("t5", None, "SEQ_2_SEQ_LM", "text-generation", "AutoPeftModelForSeq2SeqLM"),
    "image": ("vit", None, None, "image-classification", "AutoModelForImageClassification"),
    "image-features": ("vit", "ViTModel", None, "image-feature-extraction", "AutoModel"),
    "speech": ("whisper", None, None, "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
    "speech-as-seq2seq": ("whisper", None, "SEQ_2_SEQ_LM", "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
}


def build(case: str, base: str | None = "org/base", **settings: Any) -> LoRAModel:
    """Return a tiny model of a case with an adapter; base: what it says it was loaded from."""
    family, cls, task, *_ = MODELS.get(case, (case, None, "CAUSAL_LM"))
    model = tiny(family, cls)
    model.name_or_path = base or ""
    return LoRAModel.from_model(model, LoRAConfig(**{"r": 2, "task_type": task, **settings}))


def write(path: Path, model: LoRAModel, *more: Any, **named: Any) -> str:
    """Write a model's card and return its text."""
    (name,) = model.active_adapters()
    write_card(path, model, model.peft_config[name], model.get_adapter_state_dict(), *more, **named)
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


def result(kind: str, value: Any, data: str = "imdb", **more: Any) -> EvalResult:
    return EvalResult("", data, "IMDB", kind, value, **more)


def said(*results: EvalResult, name: str = "tiny", **more: Any) -> ModelCardData:
    return ModelCardData(model_name=name, eval_results=list(results), **more)


def told() -> tuple[ModelCardData, dict[str, Any]]:
    """Return what a Trainer and its user say of a run."""
    data = said(
        result("accuracy", 0.8859), result("loss", 0.25), language="en", license="mit", datasets="stanfordnlp/imdb",
        tags=["sentiment"],
    )  # fmt: skip
    return data, {"learning_rate": 2e-3, "fp16": False, "output_dir": "/home/me/out"}


# --- what the Hub understands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODELS)
def test_metadata_and_snippets_say_base_library_and_task(case: str, path: Path) -> None:
    *_, tag, loader = MODELS[case]
    text = write(path, build(case), repo_id=REPO)
    found = check_metadata(path)
    assert list(found.items())[:4] == [
        ("base_model", "org/base"), ("base_model_relation", "adapter"), ("library_name", "peft"), ("pipeline_tag", tag),
    ]  # fmt: skip
    assert found["tags"][:4] == [BASE_TAG, "lora", "transformers", "hf_lora"]
    assert ("text2text-generation" in found["tags"]) == (case == "seq2seq")
    assert f"import {loader}\n" in text
    codes = fences(text, "python")
    assert len(codes) in (2, 3)
    for code in codes:
        compile(code, "card", "exec")
        assert f'"{REPO}"' in code
    for package, name in re.findall(r"from (transformers|peft|hf_lora) import (\w+)", text):
        assert hasattr(pytest.importorskip(package), name)


def test_every_tag_is_one_of_the_hub_s_and_every_pipeline_one_of_transformers() -> None:
    for task in TASKS:
        assert task.tag in HUB_TAGS
        if task.pipeline and task.tag != "text-to-speech":
            assert task.tag in SUPPORTED_TASKS


@pytest.mark.parametrize(("task_type", "tag"), [("CAUSAL_LM", "text-generation"), (None, None)])
def test_a_class_that_nobody_knows_has_the_task_of_its_type(task_type: str, tag: str, path: Path) -> None:
    class Unheard(transformers.GPT2LMHeadModel):
        pass

    write(path, LoRAModel.from_model(tiny("gpt2", Unheard), LoRAConfig(r=2, task_type=task_type)))
    assert check_metadata(path).get("pipeline_tag") == tag


@pytest.mark.parametrize(("kind", "variant"), [p for p in PAIRS if p[0] in ("linear", "embedding", "experts")])
def test_every_variant_has_a_card_with_its_papers(kind: str, variant: str, path: Path) -> None:
    text = write(path, adapted(kind, variant))
    found = check_metadata(path)
    assert not {"base_model", "base_model_relation", "pipeline_tag"} & found.keys()
    assert "transformers" not in found["tags"]
    assert [t for t in PAPERS if t in found["tags"]] == ["lora", *(t for t in PAPERS if t in variant and t != "lora")]
    for name in PAPERS:
        assert (PAPERS[name].link in text) == (name in found["tags"])
    assert [compile(code, "card", "exec") for code in fences(text, "python")]
    assert fences(text, "sh") == []


def test_every_row_of_the_variants_tables_has_its_paper_or_is_plain() -> None:
    rows = {*FORMULAS, *SCALINGS, *(name for name, row in INITS.items() if isinstance(name, str))}
    assert rows - PAPERS.keys() == {"gaussian", "orthogonal"}
    assert PAPERS.keys() <= rows
    for key, paper in PAPERS.items():
        assert re.fullmatch(r"\d{4}\.\d{5}|https://openreview\.net/forum\?id=\w{10}", paper.arxiv)
        assert paper.bibtex(key).count("{") == paper.bibtex(key).count("}")


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({}, 8), ({"r": 9}, 16), ({"use_rslora": True}, 8), ({"use_dora": True}, None), ({"r": 513, "lora_alpha": 513}, None),
        ({"modules_to_save": ["lm_head"]}, None), ({"init_lora_weights": "pissa"}, None),
        ({"bias": "all"}, None), ({"rank_pattern": {"q_proj": 4}}, None), ({"lora_bias": True}, None),
        ({"target_modules": ["q_proj", "embed_tokens"]}, None), ({"target_modules": ["q_proj", "lm_head"]}, None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:bias='all'")
def test_vllm_is_named_where_it_serves_the_adapter_as_it_is_meant(settings: Any, rank: int | None, path: Path) -> None:
    command = f"vllm serve org/base --enable-lora --max-lora-rank {rank} \\\n  --lora-modules tiny-lora={REPO}\n"
    assert fences(write(path, build("llama", **settings), repo_id=REPO), "sh") == ([command] if rank else [])


@pytest.mark.parametrize("case", ["causal", "causal-no-task", "seq2seq", "masked", "bloom", "falcon"])
def test_vllm_is_not_named_for_models_whose_adapters_it_refuses(case: str, path: Path) -> None:
    assert "vllm" not in write(path, build(case), repo_id=REPO).lower()


def test_the_numbers_are_the_adapter_s_own(path: Path) -> None:
    model = build("causal", alpha_pattern={"c_attn": 4.0}, lora_alpha=16, lora_dropout=0.25)
    model.add_adapter(LoRAConfig(r=4), "other")
    model.set_adapter("default")
    text = write(path, model)
    count = sum(t.numel() for t in model.get_adapter_state_dict("default").values())
    every = sum(p.numel() for n, p in model.named_parameters() if ".other." not in n)
    assert f"{count:,d} parameters, {count / every:.2%} of the model's {every:,d}" in text
    for row in (
        "rank `r` | 2", "`lora_alpha` | 16", "scaling | 8 (alpha / r)", "dropout | 0.25", "targets | `c_attn`",
        "alphas of their own | `c_attn`: 4", f"size | {4 * count:,d} bytes of tensors",
    ):  # fmt: skip
        assert f"| {row} |" in text
    model.save_pretrained(path.parent / "both")
    size = (path.parent / "both" / "adapter_model.safetensors").stat().st_size
    assert f"({size:,d} bytes on disk)" in (path.parent / "both" / CARD_NAME).read_text()


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")  # PEFT 0.18's, of keys of newer ones
def test_the_snippets_of_hf_lora_and_peft_load_the_adapter_and_a_head_of_three_labels(tmp_path: Path) -> None:
    tiny("bert", "BertModel").save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2, task_type="SEQ_CLS"), num_labels=3)
    model.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / CARD_NAME).read_text()
    assert str(tmp_path) not in text
    ids = torch.arange(4).reshape(1, 4)
    for number, package in enumerate(("hf_lora", "peft")):
        pytest.importorskip(package)
        code = fences(text, "python")[number].replace("path/or/repo-of-its-base", str(tmp_path / "base"))
        found: dict[str, Any] = {}
        exec(code.replace("path/or/repo-of-this-adapter", str(tmp_path / "out")), found)
        assert torch.allclose(found["model"].eval()(ids).logits, model.eval()(ids).logits, atol=1e-5)
    model.peft_config["default"].base_model_name_or_path = "org/base"
    code = fences(write(tmp_path / CARD_NAME, model), "python")[1]
    assert "AutoPeftModelForSequenceClassification.from_pretrained" in code
    assert ", num_labels=3)" in code


def test_plain_modules_have_snippets_that_ask_for_the_base(path: Path) -> None:
    text = write(path, add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(r=2, target_modules=["0"])))
    assert "base_model=base" in text
    assert "PeftModel.from_pretrained(base" in text
    assert "pipeline(" not in text


# --- what a Trainer and a user say ----------------------------------------------------------------------------------


def test_what_a_trainer_knows_is_in_metadata_and_text_and_stays(model: LoRAModel, path: Path) -> None:
    text = write(path, model, *told(), repo_id=REPO)
    found = check_metadata(path)
    assert (found["license"], found["language"], found["datasets"]) == ("mit", "en", ["stanfordnlp/imdb"])
    assert "sentiment" in found["tags"]
    name, results = model_index_to_eval_results(found["model-index"])
    assert name == "tiny"
    assert {(r.task_type, r.dataset_type, r.dataset_name) for r in results} == {("text-generation", "imdb", "IMDB")}
    assert {r.metric_type: r.metric_value for r in results} == {"loss": 0.25, "accuracy": 0.8859}
    for row in ("`learning_rate` | 0.002", "accuracy | 0.8859 | IMDB"):
        assert f"| {row} |" in text
    assert "# tiny: a LoRA adapter for org/base\n" in text
    assert "output_dir" not in text
    before = path.stat()
    assert write(path, model) == text  # name, repo, results and training too
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [p.name for p in path.parent.iterdir()] == [CARD_NAME]


def test_a_base_that_is_only_here_is_told_by_its_class_or_by_the_name_that_the_user_gives(path: Path) -> None:
    model = build("seq-cls", base=None)
    assert "for a base without a name on the Hub, a `BertForSequenceClassification` (text-class" in write(path, model)
    args = transformers.TrainingArguments(str(path.parent), report_to=[], use_cpu=True)
    run = transformers.Trainer(model=model, args=args)
    run.create_model_card(finetuned_from="org/named")
    assert "for [org/named](https://huggingface.co/org/named) as `BertForSeq" in path.read_text()
    model.peft_config["default"].base_model_name_or_path = "org/base"
    run.create_model_card(finetuned_from="org/other")
    assert check_metadata(path)["base_model"] == "org/base"


def test_nothing_is_said_of_a_training_that_nobody_knows(model: LoRAModel, path: Path) -> None:
    text = write(path, model)
    assert "## Training" not in text
    assert "## Results" not in text
    text = write(path, model, said(result("accuracy", 0.5, data="")))  # the Hub wants a data set
    assert "model-index" not in check_metadata(path)
    assert "| accuracy | 0.5 |" in text


def test_what_a_user_says_counts_more_than_what_is_found(model: LoRAModel, path: Path) -> None:
    write(path, model, *told())
    data = said(
        result("perplexity", 12.5, "org/data", source_name="Mine", source_url="https://a.org/b"), license="apache-2.0", language="de", datasets=["org/data"],
        tags=["mine", "lora"], base_model="org/renamed", pipeline_tag="translation", inference=False,
    )  # fmt: skip
    text = write(path, model, data)
    found = check_metadata(path)
    assert (found["license"], found["language"], found["pipeline_tag"]) == ("apache-2.0", "de", "translation")
    assert found["datasets"] == ["stanfordnlp/imdb", "org/data"]
    assert found["inference"] is False
    assert found["tags"].count("lora") == 1
    assert {"mine", "sentiment", "base_model:adapter:org/renamed"} < set(found["tags"])
    assert BASE_TAG not in found["tags"]
    assert found["model-index"][0]["results"][1]["source"] == {"name": "Mine", "url": "https://a.org/b"}
    assert "for [org/renamed](https://huggingface.co/org/renamed)" in text
    write(path, model)
    assert check_metadata(path)["pipeline_tag"] == "translation"


def test_a_metric_that_is_measured_again_gets_the_new_value_once(model: LoRAModel, path: Path) -> None:
    for value in (0.5, 0.5, 0.75):
        write(path, model, said(result("accuracy", value), result("f1", 1, metric_args={"average": "macro"})))
    (entry,) = check_metadata(path)["model-index"][0]["results"]
    assert [(metric["type"], metric["value"]) for metric in entry["metrics"]] == [("accuracy", 0.75), ("f1", 1)]
    assert "| f1 (average=macro) | 1 |" in path.read_text()


def test_another_tool_s_results_stay(model: LoRAModel, path: Path) -> None:
    foreign = {"task": {"type": "x"}, "dataset": {"type": "d", "name": "D"}, "metrics": [{"type": "f1", "value": 1}]}
    named = {"name": "Mine", "type": "accuracy", "value": 0, "verified": True}
    same = {"task": {"type": "text-generation"}, "dataset": {"type": "imdb", "name": "Films"}, "metrics": [named]}
    index = [{"name": "theirs", "results": [{**foreign, "extra": {"kept": True}}, same]}, {"name": "b", "results": []}]
    path.write_text(f"---\n{yaml.dump({'model-index': index})}---\n")
    write(path, model, *told())
    found = metadata_load(path)["model-index"]
    assert (found[0]["name"], found[0]["results"][0], found[1]) == ("theirs", index[0]["results"][0], index[1])
    assert found[0]["results"][1]["dataset"]["name"] == "Films"
    assert found[0]["results"][1]["metrics"][0] == {"name": "Mine", "type": "accuracy", "value": 0.8859}


@pytest.mark.parametrize("index", ["5", "[{name: x}]", "[1, 2]", "{a: b}", "[{name: x, results: 3}]"])
def test_a_model_index_that_is_none_is_left_alone(index: str, model: LoRAModel, path: Path) -> None:
    path.write_text(f"---\nmodel-index: {index}\n---\n")
    write(path, model, *told())
    assert metadata_load(path)["model-index"] == yaml.safe_load(index)
    assert metadata_load(path)["library_name"] == "peft"


def test_numbers_of_any_library_are_written_plainly_and_only_finite_ones_count(model: LoRAModel, path: Path) -> None:
    """YAML has pickled objects for those of NumPy and torch, which no reader of a card takes."""
    values = {
        "f1": np.float64(0.5),
        "accuracy": torch.tensor(0.25),
        "count": np.int64(3),
        "loss": math.nan,
        "p": -math.inf,
    }
    data = said(*(result(*each) for each in values.items()), license=np.str_("mit"), note=Path("x"))
    text = write(path, model, data)
    found = metadata_load(path)
    assert (found["license"], found["note"]) == ("mit", "x")
    _, kept = model_index_to_eval_results(found["model-index"])
    assert {r.metric_type: r.metric_value for r in kept} == {"f1": 0.5, "accuracy": 0.25, "count": 3}
    assert "| loss | nan | IMDB |" in text
    assert write(path, model, data) == text


# --- what the owner wrote -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_written_outside_of_the_markers_survives_any_update(seed: int, newline: str, path: Path) -> None:
    """Insert random text above and below, and change what the card is about again and again."""
    rng = random.Random(seed)
    models = [build("causal"), build("causal", r=4, use_rslora=True), build("seq-cls", base=None)]
    text = write(path, models[0]).replace("\n", newline)
    written: list[str] = []
    for step in range(4):
        words = rng.choices(["# Mine", "---", "- a", "", "  ", "é😀", "<!-- x -->", "```", "$x {{ y }}", "| a |"], k=4)
        written.append(newline.join(["", f"user text {step}", *words, ""]))
        front, line, body = text.partition(f"{newline}---{newline}")
        body = written[-1] + body if rng.random() < 0.5 else body + written[-1]
        path.write_bytes(f"{front}{line}{body}".encode())
        text = write(path, rng.choice(models), *rng.choice([(), told()]), repo_id=rng.choice([None, REPO]))
        assert generated.split(ModelCard(text).text)[1]
        assert all(text.count(piece) == 1 for piece in written)
        assert newline == "\n" or not re.search(r"(?<!\r)\n", text)
        assert write(path, models[0]) == write(path, models[0])
        text = path.read_bytes().decode()


def test_an_edit_between_the_markers_is_renewed_with_a_word_and_a_copy(path: Path) -> None:
    write(path, build("causal"), *told())
    edited = path.read_text().replace(
        "everything else comes from the base.", "all else is the base's. Not for medicine."
    )
    path.write_text(edited)
    with pytest.warns(UserWarning, match="edited between hf_lora's markers.* is kept as README.edited-"):
        text = write(path, build("causal", base="org/new", r=4), said(result("accuracy", 0.25)))
    assert "medicine" not in text
    for new in ("| accuracy | 0.25 |", "| rank `r` | 4 |", "adapter for org/new"):
        assert new in text
    assert "`learning_rate`" not in text
    (copy,) = path.parent.glob("README.edited-*.md")
    assert copy.read_text() == edited
    write(path, build("causal"))  # warns no more


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: re.sub("<!-- hf_lora: generated.*-->\n", "", text),
        lambda text: re.sub("<!-- hf_lora: end.*-->\n", "", text),
        lambda text: re.sub("<!-- hf_lora: .*-->\n", "", text),
        lambda text: re.sub("<!-- hf_lora: .*-->\n", "", text).replace("everything else", "the rest"),
        lambda text: text + re.sub("(?s).*<!-- hf_lora: generated", "<!-- hf_lora: generate", text),
    ],
    ids=["no begin", "no end", "neither", "neither and edited", "twice"],
)
def test_what_may_be_generated_and_has_no_markers_stays_with_a_warning(edit: Any, path: Path) -> None:
    text = edit(write(path, build("causal")))
    path.write_text(text)
    for r in (4, 8):
        with pytest.warns(
            UserWarning, match="text of hf_lora's outside of its markers, which may describe other weights"
        ):
            write(path, build("causal", base="org/new", r=r), *told())
        assert "| rank `r` | 2 |" in path.read_text()
    assert check_metadata(path)["base_model"] == "org/new"


def test_a_text_that_replaced_the_generated_one_is_the_owner_s(path: Path) -> None:
    path.write_text(re.sub("(?s)<!-- hf_lora: generated.*-->\n", "Only this.\n", write(path, build("causal"))))
    text = write(path, build("causal", base="org/new", r=4), *told())
    assert check_metadata(path)["base_model"] == "org/new"
    assert ModelCard(text).text == "\nOnly this.\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("is_edited", [False, True])
def test_a_card_of_the_version_before_is_renewed_and_the_owner_s_text_stays(
    is_edited: bool, newline: str, path: Path
) -> None:
    card = (ROOT / "tests" / "data" / "card_in_parts.md").read_text()
    head, tail = "<!-- hf_lora:begin title", "<!-- hf_lora:begin adapter"
    card = card.replace(head, f"# Above\n\n{head}").replace(tail, f"Between.\n\n{tail}") + "Below.\n"
    card = card.replace("It holds what was", "It has what was") if is_edited else card
    path.write_bytes(card.replace("\n", newline).encode())
    model = build("token-cls", base="org/new", r=4)
    if is_edited:
        with pytest.warns(UserWarning, match="edited between"):
            text = write(path, model)
    else:
        text = write(path, model)
    assert len(list(path.parent.iterdir())) == 1 + is_edited
    found = check_metadata(path)
    assert (found["pipeline_tag"], found["base_model"], found["license"]) == ("token-classification", "org/new", "mit")
    assert found["tags"] == ["lora", "hf_lora", "transformers", "base_model:adapter:org/new"]
    for gone in (
        "org/old",
        "hf_lora:begin",
        "hf_lora:card",
        "| rank `r` | 2",
        "DoRA",
        "PiSSA",
        "| accuracy",
        "learning_",
    ):
        assert gone not in text
    assert newline == "\n" or not re.search(r"(?<!\r)\n", text)
    plain = text.replace(newline, "\n")
    assert f'"{REPO}"' in plain
    assert "-->\n# tiny: a LoRA adapter for org/new\n" in plain
    assert [plain.count(mine) for mine in ("# Above\n", "\nBetween.\n", "\nBelow.\n")] == [1, 1, 1]
    assert plain.index("# Above") < plain.index("# tiny") < plain.index("Between.") < plain.index("Below.")
    assert write(path, model) == text


def test_results_and_training_stay_for_the_same_weights_alone(path: Path) -> None:
    model = build("causal")
    text = write(path, model, *told())
    assert write(path, model) == text
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1)
    text = write(path, model)
    assert "## Results" not in text
    assert "## Training" not in text
    assert "# tiny: a LoRA adapter for org/base\n" in text


PEFT_CARD = """---
base_model: /home/somebody/models/llama
library_name: transformers
license: mit
pipeline_tag: translation
language:
- en
- fr
tags: [base_model:adapter:/home/somebody/models/llama, 'mine: own', rslora]
widget:
- text: "a: b"
---

# Model Card for Model ID

## Uses

[More Information Needed]
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_another_tool_s_card_keeps_its_text_and_its_metadata(newline: str, model: LoRAModel, path: Path) -> None:
    path.write_bytes(PEFT_CARD.replace("\n", newline).encode())
    text = write(path, model)
    assert write(path, model) == text
    found = check_metadata(path)
    assert (found["base_model"], found["library_name"]) == ("org/base", "peft")
    assert (found["pipeline_tag"], found["license"], found["language"]) == ("translation", "mit", ["en", "fr"])
    assert found["widget"] == [{"text": "a: b"}]
    assert found["tags"] == ["mine: own", "rslora", BASE_TAG, "lora", "transformers", "hf_lora"]
    assert "/home" not in text
    assert text.index("base_model:") < text.index("license:") < text.index("widget:")
    assert text.partition(f"{newline}---{newline}")[2] == PEFT_CARD.partition("\n---\n")[2].replace("\n", newline)


def test_metadata_of_an_earlier_adapter_goes(path: Path) -> None:
    write(path, build("causal", use_rslora=True))
    write(path, build("seq-cls", base="org/new"))
    found = check_metadata(path)
    assert found["tags"] == ["lora", "transformers", "hf_lora", "base_model:adapter:org/new"]
    assert (found["pipeline_tag"], found["base_model"]) == ("text-classification", "org/new")


@pytest.mark.parametrize(
    "block",
    [
        "tags: [a, b]", "tags:\n  - a\n\n# c\nlicense: mit", "tags: a", "tags:", "{tags: [a]}", "# only a comment",
        "a: &x [1]\ntags: &t [a]\nb: *x\nc: *t", "tags: |\n  a\nx: >-\n  y\n  z", "x: 2020-01-01\ntags: [no, 1.0]",
        "tags: []", "mine: .inf", "tags: 2024", "base_model: 5", "library_name: 3",
        "x: {y: [1, {z: ' '}], 'é': '# no'}",
    ],
)  # fmt: skip
def test_metadata_of_any_form_keeps_what_it_says(block: str, model: LoRAModel, path: Path) -> None:
    before = yaml.safe_load(block) or {}
    path.write_text(f"---\n{block}\n---\ntext\n")
    text = write(path, model, ModelCardData(datasets=["imdb"]))
    found = metadata_load(path)
    mine = [before["tags"]] if isinstance(before.get("tags"), str) else before.get("tags") or []
    assert not isinstance(mine, list) or {tag for tag in mine if isinstance(tag, str)} < set(found["tags"])
    assert {"lora", BASE_TAG} < set(found["tags"])
    ours = ("tags", "base_model", "library_name")
    assert {k: found[k] for k in before if k not in ours} == {k: v for k, v in before.items() if k not in ours}
    assert (found["datasets"], found["base_model"]) == (["imdb"], "org/base")
    assert text.endswith("\n---\ntext\n")
    assert write(path, model) == text


@pytest.mark.parametrize(
    "text",
    [
        "---\n# My model, by me\n# Do not use for medicine\n---\nmore\n", "---\n\n# My\n\n---\n\nmore\n", "---\n~\n---\n",
        "---\nlicense: mit\nmine\n", "\n\n---\n# Mine\n---\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_text_that_begins_with_a_rule_is_no_metadata(text: str, newline: str, model: LoRAModel, path: Path) -> None:
    path.write_bytes(text.replace("\n", newline).encode())
    new = write(path, model)
    assert check_metadata(path)["base_model"] == "org/base"
    assert new.endswith(text.replace("\n", newline))
    assert write(path, model) == new


@pytest.mark.parametrize(
    "text", ["---\rlicense: mit\r---\r# My\r", "# My\r\rHello\r", "---\rlicense: mit\r\n---\r# My\r"]
)
def test_a_card_with_line_ends_of_old_macs_gets_one_front_matter(text: str, model: LoRAModel, path: Path) -> None:
    path.write_bytes(text.encode())
    new = write(path, model)
    assert [check_metadata(path).get("license"), new.count("library_name")] == ["mit" if "mit" in text else None, 1]
    assert "# My\n" in new
    assert write(path, model) == new


@pytest.mark.parametrize("content", ["# Mine\n\nwords", "\ufeffmine\n", "\ufeff---\nlicense: mit\n---\nmine\n"])
def test_a_card_without_metadata_or_with_a_mark_of_bytes_gets_it(content: str, model: LoRAModel, path: Path) -> None:
    path.write_text(content, encoding="utf-8")
    text = write(path, model)
    assert text.startswith("---\n")
    assert text.endswith(content.removeprefix("\ufeff").rpartition("---\n")[2])
    assert check_metadata(path)["base_model"] == "org/base"


def test_a_card_of_metadata_alone_gets_a_text(model: LoRAModel, path: Path) -> None:
    path.write_text("---\nlicense: mit\n---\n")  # as the Hub makes it for a new repo
    assert "\n---\n\n<!-- hf_lora: generated" in write(path, model)
    assert check_metadata(path)["license"] == "mit"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"---\na: [\n---\nmine", "YAML"), (b"---\n- a\n---\n", "YAML"), (b"---\n1: 2\n---\n", "YAML"),
        (b"---\na: !!python/object:os.system x\n---\n", "YAML"), (b"---\na: b: c\n---\n", "YAML"),
        (b"---\nlicense: mit\nlicense: x\n---\n", "'license' is there twice"), (b"---\na: [{b: 1, b: 2}]\n---\n", "'b' is"),
        ("caf\xe9".encode("latin-1"), "UTF-8"), (b"\xff\xfeh\x00i\x00", "UTF-8"),
    ],
)  # fmt: skip
def test_an_unreadable_card_is_left_with_a_warning(content: bytes, why: str, model: LoRAModel, path: Path) -> None:
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=why):
        write_card(path, model, model.peft_config["default"], model.get_adapter_state_dict())
    with pytest.warns(UserWarning, match=why):
        amend_card(path, ModelCardData(license="mit"))
    assert path.read_bytes() == content


def test_a_card_is_amended_in_its_metadata(model: LoRAModel, path: Path) -> None:
    before = write(path, model)
    amend_card(path, ModelCardData(license="mit", tags=["lora", "own"], base_model="/x/y"))
    found = check_metadata(path)
    assert (found["license"], found["base_model"], found["tags"][-1]) == ("mit", "org/base", "own")
    amend_card(path, ModelCardData(base_model="org/named"))
    found = check_metadata(path)
    assert (found["base_model"], found["pipeline_tag"]) == ("org/named", "text-generation")
    assert [tag for tag in found["tags"] if ":" in tag] == ["base_model:adapter:org/named"]
    assert ModelCard.load(path).text == ModelCard(before).text


def test_a_user_s_text_that_looks_like_a_marker_or_a_template_does_no_harm(path: Path) -> None:
    data = said(result("a|b", 1.0, "<!-- hf_lora: end of what is generated -->"), name="--> {{ x }} ## Results")
    note = {"note": "<!-- hf_lora: end of what is generated --> | `x` {% y %}"}
    model = build("causal")
    text = write(path, model, data, note)
    assert ModelCard(text).text.count("<!-- ") == 2
    assert "{{ x }}" in text
    assert write(path, model, data, note) == write(path, model) == text


# --- what never gets in ---------------------------------------------------------------------------------------------

SECRETS = [
    "hf_" + "aBcDeFgHiJ" * 3, "sk-" + "a1" * 12, "ghp_" + "x9" * 15, "Bearer abc.def", "https://me:pw@host/x",
    "/home/somebody/data", "/root/x", "/tmp/pytest-1", "~/models/base", "~", "../up", "./here/base", "C:\\Users\\me\\x", "D:/data/x",
    "\\\\server\\share", "file:///etc/passwd", "runs/checkpoint-500", "s3 at /mnt/disk",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_no_token_and_no_path_gets_into_the_card(secret: str, path: Path) -> None:
    settings = {"note": secret, "hub_token": "plain", "output_dir": "plain", secret: 1, "lr": 0.5}
    results = [
        EvalResult(secret, secret, secret, "accuracy", 0.5, dataset_config=secret, metric_args={"a": secret, secret: 1}),
        EvalResult("t", "d", "D", "f1", secret), EvalResult("t", "d", "D", secret, 1.0, secret, secret, secret),
        EvalResult("t", "d", "D", "f2", 1.0, source_name="theirs", source_url=secret),
    ]  # fmt: skip
    data = said(
        *results, name=secret, base_model=secret, datasets=["imdb", secret], tags=[secret, "fine"], language=secret,
        license=secret, widget=[{"text": secret}], license_link=secret,
    )  # fmt: skip
    model = build("causal", base=secret)
    for more in ({"card_data": data}, {"card_data": data, "hyperparameters": settings, "repo_id": secret}):
        text = write(path, model, **more)
        for private in (secret, secret.replace("\\", "\\\\"), "somebody", "etc/passwd"):
            assert private not in text.replace("path/or/repo-of-its-base", "")
        check_metadata(path)
    assert "| `lr` | 0.5 |" in text
    assert "fine" in metadata_load(path)["tags"]


def test_random_secrets_are_told_from_plain_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    for _ in range(300):
        word = "".join(rng.choices(letters, k=rng.randint(20, 40)))
        around = rng.choice(["{}", "token={}", "use '{}' now", "a,{}"])
        for secret in (f"hf_{word}", f"/{word[:5]}/{word[5:9]}", f"~/{word[:6]}", f"{word[0]}:\\{word[1:5]}"):
            if not secret[0].isdigit():
                assert is_private(around.format(secret)), (around, secret)
            assert public_setting("note", around.format(secret)) is None
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr("platform.node", lambda: "box-17")
    for name, value in (
        *((name, "x") for name in ("hub_token", "api_key", "logging_dir", "user", "hub_model_id", "resume_path")),
        *(("note", text) for text in ("trained by ada", "on BOX-17", "use 0123456789abcdef0123456789abcdef01234567")),
    ):
        assert public_setting(name, value) is None
    for value in ("linear", "adamw_fused with betas=(0.9,0.999) and epsilon=1e-08", "0.1", "5% of box-170", 5):
        assert public_setting("lr_scheduler", value) == value


def test_what_lies_here_or_looks_private_is_no_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    begin_like_tokens = ("hf-internal-testing/tiny-random-gpt2", "sk-lab/skip-connections-large-2", "hf_lora_demo")
    for name in ("gpt2", "org/name", "ada/bert", *begin_like_tokens):
        assert hub_id(name) == name
    assert public_name("/data/reviews/") == public_name("C:\\x\\reviews") == "reviews"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    for no in ("", None, "a b", "a/b/c", "org/.hidden.git", "out/checkpoint-10", "org/name"):
        assert hub_id(no) is None
    assert public_name("org/name") == "name"


@pytest.mark.slow
def test_a_built_wheel_holds_the_template(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="the build backend is not installed here")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        held = archive.read("hf_lora/hub/card/adapter.md")
    assert held == (ROOT / "model_cards" / "templates" / "adapter.md").read_bytes()
