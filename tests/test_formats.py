"""Formats: what AdapterHub wrote computes the same here, shards are put together, and what cannot be is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hf_lora import LoRAConfig, LoRAError, LoRAModel
from hf_lora.errors import AdapterFileError, ConfigError

from .cases import move
from .peek import READERS, open_adapter
from .tiny import CLOSE, IDS, tiny

# --- AdapterHub -------------------------------------------------------------------------------------------------------

LORA = {
    "alpha": 6, "architecture": "lora", "attn_matrices": ["q", "v"], "composition_mode": "add", "dropout": 0.1,
    "dtype": None, "init_weights": "lora", "init_weights_seed": None, "intermediate_lora": False, "leave_out": [],
    "output_lora": False, "r": 3, "selfattn_lora": True, "use_dora": False, "use_gating": False, "vera_b": None,
    "vera_d": None,
}  # fmt: skip
AROUND = {
    "hidden_size": 16, "model_class": "BertAdapterModel", "model_name": "org/base", "model_type": "bert", "name": "md",
    "version": "adapters.1.2.0",
}  # fmt: skip


def _adapterhub(directory: Path, tensors: dict[str, Tensor], file: str = "pytorch_adapter.bin", **changes: Any) -> Path:
    """Write an AdapterHub folder; changes go to the config where it has such a key, else around it."""
    directory.mkdir()
    (save_file if file.endswith("safetensors") else torch.save)(tensors, directory / file)
    around = AROUND | {k: v for k, v in changes.items() if k in AROUND}
    config = LORA | {k: v for k, v in changes.items() if k not in AROUND}
    (directory / "adapter_config.json").write_text(json.dumps({"config": config, **around}))
    return directory


def _pairs(layers: dict[str, tuple[tuple[int, int], tuple[int, int]]]) -> dict[str, Tensor]:
    torch.manual_seed(11)
    shaped = {
        f"{layer}.loras.md.lora_{ab}": s for layer, both in layers.items() for ab, s in zip("AB", both, strict=True)
    }
    return {key: torch.randn(shape) for key, shape in shaped.items()}


def _with_weights(model: Any, tensors: dict[str, Tensor], scaling: float, matrices: str = "qv") -> Any:
    """Return the model with AdapterHub's product added to its weights, by the published formula."""
    for key, a in tensors.items():
        if not key.endswith("lora_A"):
            continue
        layer = model.get_submodule(key.removesuffix(".loras.md.lora_A"))
        b = tensors[key.removesuffix("A") + "B"]
        if key.split(".loras")[0].endswith("c_attn"):  # one grouped convolution, its outputs put into their blocks
            change = torch.zeros(3, 16, a.shape[1])
            groups = nn.functional.conv1d(a[None], b[..., None], groups=len(matrices))[0]
            change[["qkv".index(m) for m in sorted(matrices, key="qkv".index)]] = groups.reshape(len(matrices), 16, -1)
            change = change.flatten(0, 1)
        else:
            change = b @ a
        layer.weight.data += scaling * (change.T if isinstance(layer, Conv1D) else change)
    return model


BERT_PAIRS = {
    f"bert.encoder.layer.{i}.{where}": shapes
    for i in range(2)
    for where, shapes in {
        "attention.self.query": ((3, 16), (16, 3)),
        "attention.self.value": ((3, 16), (16, 3)),
        "intermediate.dense": ((3, 16), (32, 3)),
        "output.dense": ((3, 32), (16, 3)),
    }.items()
}


def _fused(matrices: str) -> dict[str, Tensor]:
    n = len(set(matrices) & set("qkv"))
    layers = {f"transformer.h.{i}.attn.c_attn": ((3 * n, 16), (16 * n, 3)) for i in range(2)}
    return _pairs({**layers, "transformer.h.1.mlp.c_fc": ((3, 16), (64, 3))})


# The base, the tensors, what else the folder says, the scaling that it was trained with.
FOLDERS: dict[str, tuple[str, dict[str, Tensor], dict[str, Any], float]] = {
    "a pickle": ("bert_mlm", _pairs(BERT_PAIRS), {"intermediate_lora": True, "output_lora": True}, 2.0),
    "safetensors": ("bert_mlm", _pairs(BERT_PAIRS), {"file": "adapter.safetensors"}, 2.0),
    **{f"fused {m}": ("gpt2", _fused(m), {"attn_matrices": list(m), "model_type": "gpt2"}, 2.0) for m in ("qv", "q", "qkv", "vo")},
    "a version that left the scaling out": ("bert_mlm", _pairs(BERT_PAIRS), {"version": "adapters.1.0.1"}, 1.0),
    "adapter-transformers": ("bert_mlm", _pairs(BERT_PAIRS), {"version": "3.2.1"}, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_adapterhubs_folders_give_the_same_logits_and_are_saved_as_pefts(case: str, tmp_path: Path) -> None:
    name, tensors, changes, scaling = FOLDERS[case]
    _adapterhub(tmp_path / "hub", tensors, **changes)
    with pytest.warns(UserWarning, match=r"1\.1\.0") if scaling == 1 else contextlib.nullcontext():
        ours = LoRAModel.from_pretrained(tmp_path / "hub", base_model=tiny(name))
    want = _with_weights(tiny(name), tensors, scaling, "".join({*"qkv"} & {*changes.get("attn_matrices", "qv")}))
    torch.testing.assert_close(ours(IDS).logits, want(IDS).logits, **CLOSE)
    assert ours.peft_config["default"].base_model_name_or_path == "org/base"
    assert ours.peft_config["default"].lora_dropout == 0.1
    ours.save_pretrained(tmp_path / "out")
    again = LoRAModel.from_pretrained(tmp_path / "out", base_model=tiny(name))
    assert torch.equal(again(IDS).logits, ours(IDS).logits)


def _head(directory: Path, model_class: str, tensors: dict[str, Tensor], config: Any = None) -> None:
    torch.save(tensors, directory / "pytorch_model_head.bin")
    values = {"model_class": model_class, "config": config, "name": None, "num_labels": 3}
    labels = {"label2id": {"bad": 0, "fair": 1, "good": 2}}
    (directory / "head_config.json").write_text(json.dumps(values | labels))


def test_a_head_of_transformers_own_comes_along_with_its_labels(tmp_path: Path) -> None:
    tiny("bert_mlm").save_pretrained(tmp_path / "base")
    tensors = _pairs(BERT_PAIRS)
    _adapterhub(tmp_path / "hub", tensors, model_name=str(tmp_path / "base"))
    head = {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.randn(3)}
    _head(tmp_path / "hub", "BertForSequenceClassification", head)
    with pytest.warns(UserWarning, match=r"bert\.pooler"):
        ours = LoRAModel.from_pretrained(tmp_path / "hub")
    assert isinstance(ours, BertForSequenceClassification)
    assert ours.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert ours.peft_config["default"].modules_to_save == ["classifier"]
    assert torch.equal(ours.classifier.adapters["default"]["saved_weight"].value, head["classifier.weight"])


OWN = {"lm_head.weight": tiny("gpt2").lm_head.weight.detach().clone()}
# The head that lies beside an adapter of GPT-2: its class, its tensors, its config, what is said of it.
HEADS: dict[str, tuple[str, dict[str, Tensor], Any, str]] = {
    "the base's own": ("GPT2LMHeadModel", OWN, None, ""),
    "another language model's": ("GPT2LMHeadModel", {"lm_head.weight": torch.ones(32, 16)}, None, "GPT2LMHeadModel"),
    "one that the model has no place for": ("GPT2ForSequenceClassification", {"score.weight": torch.ones(3, 16)}, None, r"score\.weight"),
    "AdapterHub's own": ("GPT2AdapterModel", {"heads.md.1.weight": torch.ones(3, 16)}, {"head_type": "x"}, "GPT2AdapterModel"),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_has_no_place_is_left_out_and_that_is_said_where_it_is_not_the_bases_own(
    head: str, tmp_path: Path
) -> None:
    model_class, held, config, said = HEADS[head]
    tensors = _pairs({"transformer.h.0.mlp.c_fc": ((3, 16), (64, 3))})
    _head(_adapterhub(tmp_path / "hub", tensors, model_type="gpt2"), model_class, held, config)
    with pytest.warns(UserWarning, match=said) if said else contextlib.nullcontext():
        ours = LoRAModel.from_pretrained(tmp_path / "hub", base_model=tiny("gpt2"))
    torch.testing.assert_close(ours(IDS).logits, _with_weights(tiny("gpt2"), tensors, 2.0)(IDS).logits, **CLOSE)


ODD_KEY = {"bert.encoder.layer.0.attention.self.query.loras.md.gate.weight": torch.ones(1, 16)}
SECOND = {k.replace(".md.", ".other."): v for k, v in _pairs(BERT_PAIRS).items()}
REFUSED_ADAPTERHUB: dict[str, tuple[dict[str, Tensor], dict[str, Any], type[LoRAError], str]] = {
    "IA3": ({}, {"composition_mode": "scale"}, ConfigError, "composition_mode='scale'"),
    "a gate": ({}, {"use_gating": True}, ConfigError, "use_gating=True"),
    "DoRA": ({}, {"use_dora": True}, ConfigError, "use_dora=True"),
    "VeRA": ({}, {"vera_d": 0.1}, ConfigError, r"vera_d=0\.1"),
    "prefix tuning": ({}, {"architecture": "prefix_tuning"}, ConfigError, "'prefix_tuning'"),
    "a union": ({}, {"architecture": "union"}, ConfigError, "'union'"),
    "a bottleneck": ({}, {"architecture": None}, ConfigError, "bottleneck"),
    "an unknown key": ({}, {"new_maths": 3}, ConfigError, "new_maths=3"),
    "matrices that are not": ({}, {"attn_matrices": "qv"}, ConfigError, "attn_matrices='qv'"),
    "a rank that is a word": ({}, {"r": "8"}, ConfigError, "r='8'"),
    "another rank": ({}, {"r": 4}, ConfigError, "r=4.*rank 3"),
    "a gate's tensor": (ODD_KEY, {}, AdapterFileError, r"loras\.md\.gate"),
    "two adapters": (SECOND, {}, AdapterFileError, "md, other"),
}


@pytest.mark.parametrize("fault", REFUSED_ADAPTERHUB)
def test_what_adapterhub_has_beside_plain_lora_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    more, changes, error, match = REFUSED_ADAPTERHUB[fault]
    _adapterhub(tmp_path / "hub", _pairs(BERT_PAIRS) | more, **changes)
    with pytest.raises(error, match=match):
        LoRAModel.from_pretrained(tmp_path / "hub", base_model=tiny("bert_mlm"))


def test_an_adapterhub_config_without_weights_says_which_were_looked_for(tmp_path: Path) -> None:
    (_adapterhub(tmp_path / "hub", {}) / "pytorch_adapter.bin").unlink()
    with pytest.raises(AdapterFileError, match=r"adapter\.safetensors.*pytorch_adapter\.bin"):
        open_adapter(str(tmp_path / "hub"), {})


# --- PEFT's folder: shards, and folders of folders --------------------------------------------------------------------


def _peft_folder(directory: Path) -> Path:
    model = LoRAModel.from_model(tiny("bert_mlm"), LoRAConfig(r=2, target_modules=["query", "value"]))
    move(model)
    model.save_pretrained(directory)
    return directory


def _shard(directory: Path, kind: str = "safetensors") -> dict[str, str]:
    """Split a folder's weights into two files with an index, and return its weight_map."""
    whole = directory / "adapter_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    files = [f"adapter_model-0000{i}-of-00002.{kind}" for i in (1, 2)]
    for file, part in zip(files, (names[:3], names[3:]), strict=True):
        (save_file if kind == "safetensors" else torch.save)({name: tensors[name] for name in part}, directory / file)
    places = {name: files[i >= 3] for i, name in enumerate(names)}
    _index(directory, places, kind)
    return places


def _index(directory: Path, places: Any, kind: str = "safetensors") -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": places}
    (directory / f"adapter_model.{kind}.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_sharded_adapter_gives_the_same_bits_as_a_whole_one(kind: str, tmp_path: Path) -> None:
    folder = _peft_folder(tmp_path / "out")
    want = LoRAModel.from_pretrained(folder, base_model=tiny("bert_mlm"))(IDS).logits
    _shard(folder, kind)
    assert torch.equal(LoRAModel.from_pretrained(folder, base_model=tiny("bert_mlm"))(IDS).logits, want)


def _drop(folder: Path, places: dict[str, str]) -> None:
    (folder / places[max(places)]).unlink()


INDEX_FAULTS: dict[str, tuple[Callable[[Path, dict[str, str]], None], str]] = {
    "a missing shard": (_drop, r"missing.*adapter_model-00002-of-00002\.safetensors"),
    "a promised tensor": (lambda f, p: _index(f, p | {"more": p[min(p)]}), r"\bmore\b.*adapter_model-00001"),
    "an unnamed tensor": (lambda f, p: _index(f, {k: v for k, v in p.items() if k != min(p)}), r"layer\.0\..*adapter_model-00001"),
    "tensors in the other shard": (lambda f, p: _index(f, p | {min(p): p[max(p)]}), r"layer\..*adapter_model-00001"),
    **{
        f"no shard but {place!r}": (lambda f, p, place=place: _index(f, p | {min(p): place}), r"index\.json.*shard")
        for place in ("/etc/x.safetensors", "../x.safetensors", "a\\x.safetensors", "C:x.safetensors", "x.bin", ".x.safetensors", "", 3, ["x.safetensors"], "x.safetensors\n", "x\0.safetensors")
    },
    "no map": (lambda f, _: _index(f, None), "weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_an_index_that_does_not_say_what_there_is_is_refused(fault: str, tmp_path: Path) -> None:
    damage, match = INDEX_FAULTS[fault]
    folder = _peft_folder(tmp_path / "out")
    damage(folder, _shard(folder))
    with pytest.raises(AdapterFileError, match=match):
        open_adapter(str(folder), {})


def test_a_folder_of_adapters_is_refused_with_their_names_and_each_is_found_as_a_subfolder(tmp_path: Path) -> None:
    first, *_, last = names = [f"checkpoint-{step}" for step in (50, 500, 1000)]
    for name in names:
        _peft_folder(tmp_path / "out" / name)
    for call in (LoRAModel.from_pretrained, LoRAModel.from_model(tiny("bert_mlm")).load_adapter):
        with pytest.raises(AdapterFileError, match=f"{', '.join(names)}.*subfolder='{last}'"):
            call(tmp_path / "out", adapter_name="other")
    want = LoRAModel.from_pretrained(tmp_path / "out" / first, base_model=tiny("bert_mlm"))(IDS).logits
    ours = LoRAModel.from_pretrained(tmp_path / "out", subfolder=first, base_model=tiny("bert_mlm"))
    assert torch.equal(ours(IDS).logits, want)
    with pytest.raises(AdapterFileError, match="folder c .*adapter_config"):
        ours.load_adapter(tmp_path / "out", "other", subfolder="c")


def test_a_whole_model_with_adapters_in_folders_is_still_a_base(tmp_path: Path) -> None:
    tiny("bert_mlm").save_pretrained(tmp_path / "base")
    _peft_folder(tmp_path / "base" / "adapter")
    assert isinstance(LoRAModel.from_pretrained(tmp_path / "base"), BertForMaskedLM)


# --- nobody's -----------------------------------------------------------------------------------------------------------


def test_the_table_of_formats_ends_with_pefts() -> None:
    assert list(READERS)[-1] == "peft"


def test_a_file_of_another_kind_and_a_folder_without_a_config_are_no_adapter(tmp_path: Path) -> None:
    assert open_adapter(str(tmp_path), {}) is None
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert open_adapter(str(tmp_path / "model.gguf"), {}) is None
    with pytest.raises(AdapterFileError, match="gguf"):
        open_adapter(str(tmp_path / "model.gguf"), {}, required=True)
