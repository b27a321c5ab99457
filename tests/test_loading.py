"""Loading: what a name stands for, which class, which head, and every way in which files can be wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, BertModel, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterFileError, AdapterMismatchError, ConfigError, ModelError

from .cases import move
from .peek import hub_client
from .tiny import CLOSE, IDS, edit_config, tiny

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CLASSES = LoRAConfig(task_type="SEQ_CLS")


@pytest.fixture
def bert_mlm(tmp_path: Path) -> Path:
    tiny("bert_mlm").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def gpt2_lm(tmp_path: Path) -> Path:
    tiny("gpt2").save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.fixture
def adapter(gpt2_lm: Path, tmp_path: Path) -> Path:
    model = LoRAModel.from_pretrained(gpt2_lm, LoRAConfig(r=2, target_modules=["c_attn", "c_fc"]))
    return _saved(model, tmp_path / "adapter")


def _saved(model: LoRAModel, directory: Path) -> Path:
    """Save an adapter whose every trained value is away from its start."""
    move(model)
    model.eval().save_pretrained(directory)
    return directory


def _tensors(
    path: Path, change: Callable[[dict[str, torch.Tensor]], Any], metadata: dict[str, str] | None = None
) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / WEIGHTS, metadata)


# --- the class, the head and the labels ----------------------------------------------------------------------------------

# The base, the caller's config and class, the model's class, what is adapted and what is trained in full.
BASES: dict[str, tuple[str, LoRAConfig | None, Any, str, list[str], list[str] | None]] = {
    "its own class": ("bert_mlm", None, None, "BertForMaskedLM", ["query", "value"], None),
    "a language model": ("gpt2", None, None, "GPT2LMHeadModel", ["c_attn"], None),
    "a task": ("bert_mlm", CLASSES, None, "BertForSequenceClassification", ["query", "value"], ["classifier", "pooler"]),
    "a class": ("bert_mlm", None, BertModel, "BertModel", ["query", "value"], ["pooler"]),
    "an auto class's name": ("bert_mlm", None, "AutoModel", "BertModel", ["query", "value"], ["pooler"]),
    "a head in the checkpoint": ("bert", None, None, "BertForSequenceClassification", ["query", "value"], None),
    "a head in the checkpoint for a task": ("bert", CLASSES, None, "BertForSequenceClassification", ["query", "value"], ["classifier"]),
    "a whole head": ("roberta", CLASSES, None, "RobertaForSequenceClassification", ["query", "value"], ["classifier"]),
    "an encoder-decoder": ("t5", LoRAConfig(task_type="SEQ_2_SEQ_LM"), None, "T5ForConditionalGeneration", ["q", "v"], None),
    "a task that says nothing of an image": ("vit", LoRAConfig(task_type="CAUSAL_LM"), None, "ViTForImageClassification", ["q_proj", "v_proj"], None),
}  # fmt: skip


@pytest.mark.parametrize("case", BASES)
def test_a_base_is_loaded_as_its_checkpoint_its_task_or_its_caller_says(case: str, tmp_path: Path) -> None:
    name, config, auto_class, cls, targets, saved = BASES[case]
    tiny(name).save_pretrained(tmp_path)
    model = LoRAModel.from_pretrained(tmp_path, config, **({"auto_class": auto_class} if auto_class else {}))
    assert isinstance(model, getattr(transformers, cls))
    if name != "vit":  # whose names have changed
        assert model.peft_config["default"].target_modules == targets
    assert sorted(model.peft_config["default"].modules_to_save or ()) == (saved or [])


def test_newly_initialised_parameters_train_and_are_saved_and_come_back(bert_mlm: Path, tmp_path: Path) -> None:
    """With no task_type at all: the class alone makes the head new."""
    model = LoRAModel.from_pretrained(bert_mlm, LoRAConfig(r=2), auto_class=BertForSequenceClassification, num_labels=3)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {"classifier.adapters.default.saved_weight.value", "classifier.adapters.default.saved_bias.value"} <= trained
    assert any("pooler" in n for n in trained), "an MLM checkpoint has no pooler either"
    again = LoRAModel.from_pretrained(_saved(model, tmp_path / "out"))
    assert isinstance(again, BertForSequenceClassification)
    assert again.config.num_labels == 3
    assert torch.equal(again(IDS).logits, model.eval()(IDS).logits)
    assert not any(p.requires_grad for p in again.parameters())


def test_new_parameters_that_an_adapter_does_not_hold_are_named(bert_mlm: Path, tmp_path: Path) -> None:
    LoRAModel.from_pretrained(bert_mlm, LoRAConfig(target_modules=["query"])).save_pretrained(tmp_path / "out")
    with pytest.warns(UserWarning, match=r"bert\.pooler.*classifier"):
        LoRAModel.from_pretrained(tmp_path / "out", auto_class=BertForSequenceClassification)


LABELS = {0: "bad", 1: "fair", 2: "good"}


@pytest.fixture
def labelled(bert_mlm: Path, tmp_path: Path) -> Path:
    """An adapter of a classifier of three labels."""
    return _saved(LoRAModel.from_pretrained(bert_mlm, CLASSES, id2label=LABELS), tmp_path / "out")


def test_an_adapters_head_and_labels_replace_those_of_the_base(labelled: Path, bert_mlm: Path, tmp_path: Path) -> None:
    BertForSequenceClassification.from_pretrained(bert_mlm, num_labels=2).save_pretrained(tmp_path / "two")
    for base in (bert_mlm, tmp_path / "two"):
        edit_config(labelled, base_model_name_or_path=str(base))
        again = LoRAModel.from_pretrained(labelled)
        assert again.config.id2label == LABELS
        assert again.config.label2id == {v: k for k, v in LABELS.items()}
    held = load_file(tmp_path / "out" / WEIGHTS)["base_model.model.classifier.weight"]
    assert torch.equal(again.classifier.adapters["default"]["saved_weight"].value, held)


# Notes that nobody should have written, or none, and the head's own size says how many labels there are.
ODD_NOTES = {
    "none": None,
    "no JSON": "{",
    "deep JSON": "[" * 100_000,
    "labels that are a list": json.dumps({"id2label": ["a", "b", "c"]}),
    "labels of no number": json.dumps({"id2label": {"a": "b"}}),
    "a superscript": json.dumps({"id2label": {"\u00b2": "a", "0": "b", "1": "c"}}),
    "huge numbers": json.dumps({"id2label": {"9" * 5000: "a", "0": "b", "1": "c"}}),
    "more labels than the head has": json.dumps({"id2label": {str(i): "x" for i in range(200_000)}}),
}


@pytest.mark.parametrize("notes", ODD_NOTES)
def test_odd_notes_are_passed_over_for_the_heads_own_size(notes: str, labelled: Path) -> None:
    said = {"hf_lora": ODD_NOTES[notes]} if ODD_NOTES[notes] else {}
    _tensors(labelled, lambda tensors: None, {"format": "pt", **said})
    again = LoRAModel.from_pretrained(labelled)
    assert again.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_the_head_of_an_old_file_says_how_many_labels_there_are(labelled: Path) -> None:
    def respell(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "classifier." in key]:
            tensors[key.replace("classifier.", "classifier.modules_to_save.default.")] = tensors.pop(key)

    want = LoRAModel.from_pretrained(labelled)(IDS).logits
    _tensors(labelled, respell)
    again = LoRAModel.from_pretrained(labelled)
    assert again.config.num_labels == 3
    assert torch.equal(again(IDS).logits, want)


# --- the base that an adapter names --------------------------------------------------------------------------------------


def test_an_adapter_alone_is_saved_finds_its_base_and_loads_for_inference_unless_told(adapter: Path) -> None:
    assert {p.name for p in adapter.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    assert all("lora_" in key for key in load_file(adapter / WEIGHTS))
    for named in (None, 3, "pipeline", "Trainer", "AutoConfig"):  # no class of a model: the base's own is taken
        edit_config(adapter, auto_mapping={"base_model_class": named, "parent_library": "transformers"})
        model = LoRAModel.from_pretrained(adapter)
        assert isinstance(model, GPT2LMHeadModel)
    assert model.get_nb_trainable_parameters()[0] == 0
    assert LoRAModel.from_pretrained(adapter, is_trainable=True).get_nb_trainable_parameters()[0] > 0


def test_dtype_passes_through_and_adapters_stay_float32_masters(gpt2_lm: Path, adapter: Path) -> None:
    for model in (
        LoRAModel.from_pretrained(gpt2_lm, LoRAConfig(r=2), dtype=torch.bfloat16),
        LoRAModel.from_pretrained(adapter, dtype=torch.bfloat16, is_trainable=True),
    ):
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_config_of_a_base_is_read_once_before_transformers_reads_it(
    gpt2_lm: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = transformers.PreTrainedConfig._dict_from_json_file
    files: list[Any] = []
    monkeypatch.setattr(
        transformers.PreTrainedConfig, "_dict_from_json_file", lambda file: files.append(Path(file).name) or read(file)
    )
    for name, config in ((gpt2_lm, LoRAConfig(r=2)), (adapter, None)):
        files.clear()
        LoRAModel.from_pretrained(name, config)
        assert files.count("config.json") == 2, files


def _on_the_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """Let a folder be what a Hub id stands for, and return the id."""
    found = lambda file: folder / file if (folder / file).is_file() else None  # noqa: E731
    monkeypatch.setattr(hub_client, "fetch", lambda _, file, **__: found(file))
    return "someone/adapter"


# What a config may call a base where it names none, or a path of somebody's that leads to nothing here.
LOCAL_NAMES = (None, "/no/such/base", "~/base", "./base", "../base", "file:///home/me/base", "C:\\Users\\me", "c:/base", "models/base/last", "two words", "")  # fmt: skip


@pytest.mark.parametrize("base", LOCAL_NAMES)
def test_a_base_that_is_somebodys_path_is_asked_for_and_never_looked_up(
    base: str | None, adapter: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(adapter, base_model_name_or_path=base)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)
    for name in (str(adapter), _on_the_hub(monkeypatch, adapter)):
        with pytest.raises(ModelError, match="base_model="):
            LoRAModel.from_pretrained(name)
    assert isinstance(LoRAModel.from_pretrained(name, base_model=tiny("gpt2")), GPT2LMHeadModel)


def test_an_adapter_from_the_hub_leads_to_no_path_of_this_machine_and_a_local_one_may(
    adapter: Path, gpt2_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gpt2_lm.parent)
    for base in ("gpt2", "./gpt2", str(gpt2_lm), f"../{gpt2_lm.parent.name}/gpt2"):
        edit_config(adapter, base_model_name_or_path=base)
        assert isinstance(LoRAModel.from_pretrained(adapter), GPT2LMHeadModel)
        with monkeypatch.context() as patched:
            name = _on_the_hub(patched, adapter)
            with pytest.raises(ModelError, match="Hub.*base_model="):
                LoRAModel.from_pretrained(name)
            assert isinstance(LoRAModel.from_pretrained(name, base_model="gpt2"), GPT2LMHeadModel)


def test_a_base_that_fails_to_load_is_named_with_adapter_and_cause(
    adapter: Path, gpt2_lm: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (gpt2_lm / "model.safetensors").write_bytes(b"damaged")
    for base in ("org/there-is-none", str(tmp_path / "empty"), str(gpt2_lm)):
        edit_config(adapter, base_model_name_or_path=base)
        with pytest.raises(ModelError, match=f"(?s){base}.*{adapter}.*base_model=") as refused:
            LoRAModel.from_pretrained(adapter)
        assert refused.value.__cause__ is not None


@pytest.mark.parametrize("revision", [5, ["main"], "../x", "/x", "a b", "-x"])
def test_a_bases_revision_that_can_be_none_is_refused(revision: object, adapter: Path) -> None:
    edit_config(adapter, revision=revision)
    with pytest.raises(ConfigError, match="revision="):
        LoRAModel.from_pretrained(adapter)


def test_no_adapter_lets_code_run(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a base that brings code, nor by a class of another library, nor by asking in a terminal."""
    base = tmp_path / "remote"
    base.mkdir()
    (base / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    mapped = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (base / "config.json").write_text(json.dumps({"model_type": "evil", "architectures": ["E"], "auto_map": mapped}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    edit_config(adapter, base_model_name_or_path=str(base), task_type="CAUSAL_LM")
    for mapping in (None, {"base_model_class": "Config", "parent_library": "evil"}):
        edit_config(adapter, auto_mapping=mapping)
        with pytest.raises(ModelError, match="trust_remote_code"):
            LoRAModel.from_pretrained(adapter)
    assert not (tmp_path / "ran").exists()
    edit_config(adapter, trust_remote_code=True)
    with pytest.raises(ConfigError, match="trust_remote_code"):
        LoRAModel.from_pretrained(adapter)


def test_the_bases_revision_is_noted_and_asked_for_again_and_only_the_caller_trusts_remote_code(
    gpt2_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, asked = tmp_path / "out", []
    original = GPT2LMHeadModel.from_pretrained.__func__

    def noting(cls: type, name: str, *args: Any, **kwargs: Any) -> Any:
        asked.append((name, kwargs.get("revision"), bool(kwargs.get("trust_remote_code"))))
        return original(cls, name, *args, **kwargs)

    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", classmethod(noting))
    LoRAModel.from_pretrained(gpt2_lm, LoRAConfig(), revision="v2").save_pretrained(adapter)
    assert LoRAConfig.from_pretrained(adapter).revision == "v2"
    for mapping in (None, {"base_model_class": "GPT2LMHeadModel", "parent_library": "somewhere.else"}, ["x"], "x"):
        edit_config(adapter, auto_mapping=mapping)
        LoRAModel.from_pretrained(adapter, revision="of-the-adapter")
    LoRAModel.from_pretrained(adapter, trust_remote_code=True)
    assert asked == [*[(str(gpt2_lm), "v2", False)] * 5, (str(gpt2_lm), "v2", True)]


# --- files that are wrong ------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
FAULTS = {
    "a missing weights file": (lambda d: (d / WEIGHTS).unlink(), AdapterFileError, r"adapter_model\.bin"),
    "a truncated weights file": (lambda d: _cut(d / WEIGHTS), AdapterFileError, "damaged"),
    "another PEFT method": (lambda d: edit_config(d, peft_type="IA3"), ConfigError, "IA3"),
    "an unknown key with a value": (lambda d: edit_config(d, new_maths=3), ConfigError, "new_maths"),
    "rank zero": (lambda d: edit_config(d, r=0), ConfigError, "r=0"),
    "a rank that the file does not have": (lambda d: edit_config(d, r=4), AdapterMismatchError, r"\(2, 16\).*\(4, 16\)"),
    "a tensor of another shape": (lambda d: _tensors(d, lambda t: t.update({FIRST: t[FIRST][:, :5]})), AdapterMismatchError, "h.0.attn.c_attn"),
    "a missing half": (lambda d: _tensors(d, lambda t: t.pop(FIRST)), AdapterMismatchError, "missing lora_A"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_adapter_is_a_clear_error_and_leaves_the_model_and_its_adapters_as_they_were(
    fault: str, adapter: Path, gpt2_lm: Path, tmp_path: Path
) -> None:
    damage, error, match = FAULTS[fault]
    model = LoRAModel.from_pretrained(adapter)
    logits, keys = model(IDS).logits, list(model.state_dict())
    shutil.copytree(adapter, tmp_path / "bad")
    damage(tmp_path / "bad")
    with pytest.raises(error, match=match):
        model.load_adapter(tmp_path / "bad", "bad")
    assert list(model.state_dict()) == keys
    assert list(model.peft_config) == model.active_adapters() == ["default"]
    assert torch.equal(model(IDS).logits, logits)
    base = GPT2LMHeadModel.from_pretrained(gpt2_lm)
    before = {n: (type(m), set(m.__dict__)) for n, m in base.named_modules()}
    with pytest.raises(error, match=match):
        LoRAModel.from_pretrained(tmp_path / "bad", base_model=base)
    assert {n: (type(m), set(m.__dict__)) for n, m in base.named_modules()} == before
    assert all(p.requires_grad for p in base.parameters())


def _vit(folder: Path) -> Path:
    tiny("vit").save_pretrained(folder / "vit")
    return folder / "vit"


# Arguments that cannot be, of `from_pretrained` and of `load_adapter`.
ARGUMENTS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a config beside the adapter's own": (lambda a: LoRAModel.from_pretrained(a, LoRAConfig()), ModelError, "is_trainable=True"),
    "a directory without an adapter": (lambda a: LoRAModel.from_pretrained(a).load_adapter(a.parent, "other"), AdapterFileError, r"adapter_config\.json"),
    "a word that loading does not know": (lambda a: LoRAModel.from_pretrained(a).load_adapter(a, adpater_name="x"), TypeError, "adpater_name"),
    "a base that is another": (lambda a: LoRAModel.from_pretrained(a, base_model=tiny("bert_mlm")), AdapterMismatchError, "BertForMaskedLM.*unexpected"),
    "a class that there is not": (lambda a: LoRAModel.from_pretrained(a, auto_class="AutoModelForNothing"), ModelError, "AutoModelForNothing"),
    "a task that the architecture does not know": (lambda a: LoRAModel.from_pretrained(_vit(a.parent), CLASSES), ModelError, "AutoModelForSequenceClassification.*ViTConfig"),
    "one for a base that is loaded already": (lambda a: LoRAModel.from_pretrained(a, base_model=tiny("gpt2"), dtype=torch.bfloat16), TypeError, "dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_argument_that_cannot_be_is_refused(case: str, adapter: Path) -> None:
    call, error, match = ARGUMENTS[case]
    with pytest.raises(error, match=match):
        call(adapter)
    LoRAModel.from_pretrained(adapter, base_model=tiny("gpt2"), local_files_only=True)


def test_a_pickled_adapter_is_read_without_running_it(adapter: Path) -> None:
    want = LoRAModel.from_pretrained(adapter)(IDS).logits
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    assert torch.equal(LoRAModel.from_pretrained(adapter)(IDS).logits, want)
    torch.save({"x": Path("x")}, adapter / "adapter_model.bin")
    with pytest.raises(AdapterFileError):
        LoRAModel.from_pretrained(adapter)


def test_saving_from_a_gathered_state_dict_writes_its_values(adapter: Path, tmp_path: Path) -> None:
    model = LoRAModel.from_pretrained(adapter)
    gathered = {k: v + 1 if "lora_A" in k else v for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out", state_dict=gathered)
    old, new = (load_file(d / WEIGHTS) for d in (adapter, tmp_path / "out"))
    assert all(torch.equal(new[k], old[k] + ("lora_A" in k)) for k in old)
    with pytest.raises(RuntimeError, match="lora_A"):
        model.save_pretrained(tmp_path / "out", state_dict={})


def test_keys_that_nobody_knows_are_accepted_on_request_and_kept(adapter: Path, tmp_path: Path) -> None:
    edit_config(adapter, brand_new_switch=3)
    with pytest.raises(ConfigError, match="brand_new_switch=3"):
        LoRAModel.from_pretrained(adapter)
    model = LoRAModel.from_pretrained(adapter, ignore_unknown=True)
    model.load_adapter(adapter, "other", ignore_unknown=True)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "other" / CONFIG).read_text())["brand_new_switch"] == 3


def test_what_a_start_keeps_as_it_began_stays_so_where_a_file_trains_on(tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, init_lora_weights="mica"))
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"), is_trainable=True)
    for each in (model, again):
        assert {n.rpartition(".")[2] for n, p in each.named_parameters() if p.requires_grad} == {"lora_A"}


RESUMED: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "fewer layers": ({"target_modules": ["query"]}, {}, r"attention\.self\.value"),
    "another rank": ({"r": 2}, {}, "lora_A"),
    "another alpha": ({"lora_alpha": 99}, {}, "scaled"),
    "rslora": ({"use_rslora": True}, {}, "scaled"),
    "other tokens": ({"trainable_token_indices": [1, 2]}, {"trainable_token_indices": [2, 3]}, "rows"),
    "pissa": ({"init_lora_weights": "pissa"}, {}, "pissa"),
    "into pissa": ({}, {"init_lora_weights": "pissa"}, "pissa"),
    "dora": ({"use_dora": True}, {}, "magnitude"),
}


@pytest.mark.parametrize(("saved", "there", "match"), RESUMED.values(), ids=RESUMED)
def test_resuming_from_another_adapter_is_refused_with_nothing_copied(
    saved: dict[str, object], there: dict[str, object], match: str, bert_mlm: Path, tmp_path: Path
) -> None:
    first = LoRAConfig(r=4, target_modules=["query", "value"])
    _saved(LoRAModel.from_pretrained(bert_mlm, first.copy(**saved)), tmp_path / "other")
    model = LoRAModel.from_pretrained(bert_mlm, first.copy(**there))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterMismatchError, match=match):
        model.load_weights(tmp_path / "other")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_adapters_revision_and_subfolder_are_asked_of_the_hub_and_not_of_the_base(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing is called org/base
    edit_config(adapter, base_model_name_or_path="org/base")
    asked = []

    def fetch(repo: str, file: str, **kwargs: object) -> Path | None:
        asked.append((repo, file, kwargs))
        return adapter / file if (adapter / file).is_file() else None

    def load(name: str, *_: object, **kwargs: object) -> object:
        asked.append((name, kwargs.get("revision"), kwargs.get("subfolder")))
        raise OSError("no network")

    monkeypatch.setattr(hub_client, "fetch", fetch)
    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", load)
    with pytest.raises(ModelError, match="no network"):
        LoRAModel.from_pretrained("someone/adapter", revision="v1", subfolder="a")
    wanted = {"revision": "v1", "subfolder": "a"}
    assert asked == [*(("someone/adapter", file, wanted) for file in (CONFIG, WEIGHTS)), ("org/base", None, None)]


class Experts(torch.nn.Module):
    """A stack of matrices, (experts, out, in)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stack = torch.nn.Parameter(torch.randn(3, outputs, inputs, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.stack.mT


@pytest.mark.parametrize("outputs", [5, 6])
@pytest.mark.parametrize("version", ["0.17.0", "0.18.1", "0.19.0", "0.21.2"])
def test_experts_of_peft_before_0_19_are_read_with_their_axes_the_other_way(
    outputs: int, version: str, tmp_path: Path
) -> None:
    """PEFT took a matrix's first dimension for its inputs then. Saved again, the file is one of today's."""

    def base() -> torch.nn.Module:
        return torch.nn.Sequential(Experts(outputs, 6))

    config = LoRAConfig(r=2, target_modules=[], target_parameters=["0.stack"])
    model = add_lora(base(), config)
    move(model)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    want = model.eval()(x)
    model.save_pretrained(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "adapter_model.safetensors")
    if version < "0.19":
        (key_a, a), (key_b, b) = sorted(tensors.items())
        tensors = {
            key_a: b.reshape(outputs, 2, 3).permute(2, 1, 0).reshape(6, outputs).contiguous(),
            key_b: a.reshape(3, 2, 6).permute(2, 1, 0).reshape(6, 6).contiguous(),
        }
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    save_file(tensors, tmp_path / "old" / "adapter_model.safetensors")
    edit_config(tmp_path / "old", peft_version=version)
    loaded = LoRAModel.from_pretrained(tmp_path / "old", base_model=base())
    assert torch.allclose(loaded.eval()(x), want, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    again = LoRAModel.from_pretrained(tmp_path / "again", base_model=base())
    assert torch.allclose(again.eval()(x), want, atol=1e-5)


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [5, 6]},
    ],
)  # fmt: skip
def test_pefts_adapters_that_ensure_tied_weights_load_and_compute_the_same(settings: Any, tmp_path: Path) -> None:
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "ensure_weight_tying": True, **settings}
    theirs = peft.get_peft_model(tiny("llama", tie_word_embeddings=True), peft.LoraConfig(**config))
    for parameter in (p for p in theirs.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    theirs.save_pretrained(tmp_path)
    ours = LoRAModel.from_pretrained(tmp_path, base_model=tiny("llama", tie_word_embeddings=True))
    assert torch.allclose(ours.eval()(IDS).logits, theirs.eval()(IDS).logits, atol=1e-5)
    assert ours.peft_config["default"].ensure_weight_tying
    assert LoRAConfig(ensure_weight_tying=True).ensure_weight_tying


def _gradients(model: Any, names: str) -> list[torch.Tensor]:
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [p.grad for n, p in model.named_parameters() if p.requires_grad and re.search(names, n)]


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_a_saved_table_whose_tie_is_ensured_trains_as_one_here_and_in_peft(saved: list[str], tmp_path: Path) -> None:
    config = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": saved, "ensure_weight_tying": True}
    base = partial(tiny, "llama", tie_word_embeddings=True)
    ours = LoRAModel.from_model(base(), LoRAConfig(**config))
    theirs = peft.get_peft_model(base(), peft.LoraConfig(**config)).eval()
    (mine,), (its,) = _gradients(ours, r"\.saved\.|value"), _gradients(theirs, r"modules_to_save")
    assert torch.allclose(mine, its, **CLOSE)
    move(ours)
    ours.save_pretrained(tmp_path / "ours")
    again = LoRAModel.from_pretrained(tmp_path / "ours", base_model=base(), is_trainable=True)
    assert ours.get_nb_trainable_parameters() == again.get_nb_trainable_parameters()
    again.load_weights(tmp_path / "ours")
    for other in (again, peft.PeftModel.from_pretrained(base(), str(tmp_path / "ours")).eval()):
        assert torch.equal(other(IDS).logits, ours(IDS).logits)
    theirs.save_pretrained(tmp_path / "theirs")
    LoRAModel.from_pretrained(tmp_path / "theirs", base_model=base()).save_pretrained(tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(base(), str(tmp_path / "ours")).eval()
    assert torch.equal(back(IDS).logits, theirs(IDS).logits)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_product_on_one_name_of_a_tie_that_is_ensured_is_refused(target: str, tmp_path: Path) -> None:
    config, base = {"r": 2, "target_modules": [target], "ensure_weight_tying": True}, partial(tiny, "llama")
    with pytest.raises(
        ConfigError, match=r"ensure_weight_tying.*embed_tokens and lm_head are one weight.*modules_to_save"
    ):
        LoRAModel.from_model(base(tie_word_embeddings=True), LoRAConfig(**config))
    LoRAModel.from_model(base(tie_word_embeddings=False), LoRAConfig(**config))
    peft.get_peft_model(base(tie_word_embeddings=True), peft.LoraConfig(**config)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="ensure_weight_tying"):
        LoRAModel.from_pretrained(tmp_path, base_model=base(tie_word_embeddings=True), is_trainable=True)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "rank_pattern": {"v_proj": 3}}, {"use_dora": True}])
@pytest.mark.parametrize("start", ["pissa", "olora", "milora"])
def test_pefts_argument_that_converts_a_start_writes_plain_lora_of_twice_the_rank(
    start: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=start, **settings))
    move(model)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "anything"))
    again = LoRAModel.from_pretrained(tmp_path / "plain", base_model=tiny("llama"))
    found = again.peft_config["default"]
    assert (found.r, found.init_lora_weights) == (4, True)
    assert (again(IDS).logits - model(IDS).logits).abs().max() < 1e-4
    assert (tiny("llama")(IDS).logits - model(IDS).logits).abs().max() > 1e-2
    theirs = peft.PeftModel.from_pretrained(tiny("llama"), tmp_path / "plain")
    assert (theirs(IDS).logits - model(IDS).logits).abs().max() < 1e-4


def test_pefts_argument_that_converts_a_start_is_refused_where_there_is_none(tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2))
    with pytest.raises(ConfigError, match="path_initial_model_for_weight_conversion.*took nothing out of the base"):
        model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path))
    assert not (tmp_path / "plain").exists()
