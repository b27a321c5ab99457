"""loralib: every layer of its checkpoints, and the oldest PEFT's copies of them, compute the same here."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_lora import LoRAConfig, LoRAError, LoRAModel
from hf_lora.errors import AdapterFileError, AdapterMismatchError, ConfigError, ModelError

from .cases import Named
from .tiny import CLOSE, IDS, tiny

loralib = pytest.importorskip("loralib")


def randomised(module: nn.Module) -> nn.Module:
    """Fill a loralib model's factors as training might."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return module


# --- loralib: every layer ---------------------------------------------------------------------------------------------


def _merged(enabled: list[bool], **more: Any) -> Callable[[], nn.Module]:
    return lambda: loralib.MergedLinear(6, 4 * len(enabled), r=2, lora_alpha=3, enable_lora=enabled, **more)


LINEAR, IDS_8 = (4, 6), "ids"
# loralib's layer, the plain one, the input's shape, the enable_lora that the caller has to give.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Any, list[bool] | None]] = {
    "linear": (lambda: loralib.Linear(6, 8, r=2, lora_alpha=3), lambda: nn.Linear(6, 8), LINEAR, None),
    "transposed linear": (lambda: loralib.Linear(6, 8, r=2, lora_alpha=3, fan_in_fan_out=True), lambda: Conv1D(8, 6), LINEAR, None),
    "embedding": (lambda: loralib.Embedding(8, 6, r=2, lora_alpha=3), lambda: nn.Embedding(8, 6), IDS_8, None),
    "conv2d": (lambda: loralib.Conv2d(3, 5, 3, r=2, lora_alpha=3), lambda: nn.Conv2d(3, 5, 3), (2, 3, 7, 7), None),
    "conv2d with strides": (lambda: loralib.Conv2d(4, 6, 2, r=3, lora_alpha=5, stride=2, padding=1, bias=False), lambda: nn.Conv2d(4, 6, 2, stride=2, padding=1, bias=False), (2, 4, 6, 6), None),
    "merged q k v": (_merged([True, True, True]), lambda: nn.Linear(6, 12), LINEAR, None),
    "merged q v": (_merged([True, False, True]), lambda: nn.Linear(6, 12), LINEAR, [True, False, True]),
    "merged of four": (_merged([False, True, False, True]), lambda: nn.Linear(6, 16), LINEAR, [False, True, False, True]),
    "merged transposed": (_merged([True, False, True], fan_in_fan_out=True), lambda: Conv1D(12, 6), LINEAR, [True, False, True]),
}  # fmt: skip


def _loralib_case(case: str, file: Path) -> tuple[nn.Module, Tensor, Tensor, LoRAConfig]:
    """Return (the plain network, an input, what loralib computes, the caller's config)."""
    theirs, plain, shape, enabled = LAYERS[case]
    torch.manual_seed(3)
    layer, network = randomised(theirs()), Named(plain())
    inner = getattr(layer, "conv", layer)
    network.layer.load_state_dict({k: v for k, v in inner.state_dict().items() if "lora_" not in k}, strict=True)
    torch.save(loralib.lora_state_dict(Named(layer)), file)
    x = torch.arange(8)[None] if shape == IDS_8 else torch.randn(shape)
    other = {} if enabled is None else {"enable_lora": enabled}
    return network, x, layer(x).detach(), LoRAConfig(lora_alpha=layer.lora_alpha, other=other)


@pytest.mark.parametrize("case", LAYERS)
def test_a_loralib_layer_computes_the_same_here_merged_saved_and_in_peft(case: str, tmp_path: Path) -> None:
    network, x, want, config = _loralib_case(case, tmp_path / "lora.pt")
    assert not torch.allclose(network(x), want, atol=1e-2), "or the adapter would say nothing"
    model = LoRAModel.from_pretrained(tmp_path / "lora.pt", config, base_model=network)
    torch.testing.assert_close(model(x), want, **CLOSE)
    model.save_pretrained(tmp_path / "out")
    model.merge_adapter()
    torch.testing.assert_close(model(x), want, **CLOSE)
    model.unload()
    again = LoRAModel.from_pretrained(tmp_path / "out", base_model=network)
    torch.testing.assert_close(again(x), want, **CLOSE)
    torch.testing.assert_close(_in_peft(again.unload(), tmp_path / "out")(x), want, **CLOSE)


def _in_peft(network: nn.Module, directory: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on models without a config
        return peft.PeftModel.from_pretrained(network, str(directory))


def test_two_of_three_blocks_are_taken_for_query_and_value_and_that_is_said(tmp_path: Path) -> None:
    network, x, want, _ = _loralib_case("merged transposed", tmp_path / "lora.pt")
    with pytest.warns(UserWarning, match="enable_lora"):
        model = LoRAModel.from_pretrained(tmp_path / "lora.pt", LoRAConfig(lora_alpha=3), base_model=network)
    torch.testing.assert_close(model(x), want, **CLOSE)


# --- loralib: whole models --------------------------------------------------------------------------------------------


def _bert_in_loralib(ranks: dict[str, int]) -> nn.Module:
    """Return the small BERT with loralib's layers in place of those whose names end in a key."""
    model = tiny("bert_mlm", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for name, module in list(model.named_modules()):
        r = next((r for ending, r in ranks.items() if name.endswith(ending)), None)
        if r is not None:
            layer = loralib.Linear(module.in_features, module.out_features, r=r, lora_alpha=16)
            layer.load_state_dict(module.state_dict(), strict=False)
            model.set_submodule(name, layer)
    return randomised(model).train()  # in eval loralib would merge


def _gpt2_in_loralib(enabled: list[bool]) -> nn.Module:
    model = tiny("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    for block in model.transformer.h:
        layer = loralib.MergedLinear(16, 48, r=3, lora_alpha=16, enable_lora=enabled, fan_in_fan_out=True)
        layer.load_state_dict(block.attn.c_attn.state_dict(), strict=False)
        block.attn.c_attn = layer
    return randomised(model).train()


@pytest.mark.parametrize(("enabled", "suffix"), [([True, True, True], "pt"), ([False, True, True], "safetensors")])
def test_loralibs_gpt2_gives_the_same_logits_here(enabled: list[bool], suffix: str, tmp_path: Path) -> None:
    theirs, file = _gpt2_in_loralib(enabled), tmp_path / f"lora.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(loralib.lora_state_dict(theirs), file)
    config = LoRAConfig(lora_alpha=16, other={"enable_lora": enabled})
    ours = LoRAModel.from_pretrained(file, config, base_model=tiny("gpt2"))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)
    saved = ours.peft_config["default"]
    assert (saved.r, saved.lora_alpha, saved.target_modules) == (3 * sum(enabled), 16 * sum(enabled), ["c_attn"])
    assert saved.fan_in_fan_out
    assert "enable_lora" not in saved.to_dict()


def test_layers_of_several_ranks_get_a_pattern_and_keep_their_scalings(tmp_path: Path) -> None:
    theirs = _bert_in_loralib({"query": 2, "0.attention.self.value": 4, "1.output.dense": 3})
    torch.save(loralib.lora_state_dict(theirs), tmp_path / "lora.pt")
    ours = LoRAModel.from_model(tiny("bert_mlm"), LoRAConfig(r=2))
    ours.load_adapter(tmp_path / "lora.pt", "theirs", lora_config=LoRAConfig(lora_alpha=16))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)
    config = ours.peft_config["theirs"]
    assert (config.r, config.rank_pattern) == (2, {"value": 4, "dense": 3})
    ours.save_pretrained(tmp_path / "out", adapter_name="theirs")
    again = _in_peft(tiny("bert_mlm"), tmp_path / "out")
    torch.testing.assert_close(again(IDS).logits, theirs(IDS).logits, **CLOSE)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_loralib_trained_come_along(bias: str, tmp_path: Path) -> None:
    theirs = _bert_in_loralib({"query": 2, "value": 2})
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias") and (bias == "all" or "query" in name or "value" in name):
            parameter.data += 0.1
    torch.save(loralib.lora_state_dict(theirs, bias=bias), tmp_path / "lora.pt")
    ours = LoRAModel.from_pretrained(tmp_path / "lora.pt", LoRAConfig(lora_alpha=16), base_model=tiny("bert_mlm"))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)
    assert ours.peft_config["default"].bias == bias


def test_a_loralib_checkpoint_names_its_base_by_the_caller_and_remembers_it(tmp_path: Path) -> None:
    tiny("bert_mlm").save_pretrained(tmp_path / "base")
    theirs = _bert_in_loralib({"query": 2})
    torch.save(loralib.lora_state_dict(theirs), tmp_path / "lora.pt")
    with pytest.raises(ModelError, match="base_model="):
        LoRAModel.from_pretrained(tmp_path / "lora.pt", LoRAConfig(lora_alpha=16))
    base = str(tmp_path / "base")
    ours = LoRAModel.from_pretrained(tmp_path / "lora.pt", LoRAConfig(lora_alpha=16), base_model=base)
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)
    assert ours.peft_config["default"].base_model_name_or_path == base


Q = "bert.encoder.layer.0.attention.self.query"
PAIR = {f"{Q}.lora_A": torch.ones(2, 16), f"{Q}.lora_B": torch.ones(16, 2)}
FUSED = {"layer.lora_A": torch.ones(2, 6), "layer.lora_B": torch.ones(4, 2)}
BERT = functools.partial(tiny, "bert_mlm")
# The file's tensors, the caller's config, what it is loaded onto, the error and what it says.
REFUSED_LORALIB: dict[str, tuple[dict[str, Tensor], LoRAConfig | None, Callable[[], nn.Module], type[LoRAError], str]] = {
    "no config": (PAIR, None, BERT, ConfigError, r"LoRAConfig\(lora_alpha"),
    "no adapter": ({"x.weight": torch.ones(2)}, LoRAConfig(), BERT, AdapterFileError, r"x\.weight"),
    "nothing": ({}, LoRAConfig(), BERT, AdapterFileError, "none"),
    "PEFT's file": ({"base_model.model.x.lora_A.weight": torch.ones(2)}, LoRAConfig(), BERT, AdapterFileError, r"adapter_config\.json"),
    "the base's weight": (PAIR | {f"{Q}.weight": torch.ones(16, 16)}, LoRAConfig(), BERT, AdapterFileError, r"loralib\.lora_state_dict"),
    "half a pair": ({f"{Q}.lora_A": PAIR[f"{Q}.lora_A"]}, LoRAConfig(), BERT, AdapterMismatchError, "missing lora_B"),
    "a rank that the file has not": (PAIR, LoRAConfig(r=4), BERT, ConfigError, "rank 4"),
    "targets that the file has not": (PAIR, LoRAConfig(target_modules=["key"]), BERT, ConfigError, "query.*target_modules"),
    "too many targets": (PAIR, LoRAConfig(target_modules=["query", "key"]), BERT, AdapterMismatchError, r"missing .*\.key"),
    "an unknown layer": ({k.replace("query", "qry"): v for k, v in PAIR.items()}, LoRAConfig(), BERT, AdapterMismatchError, "qry"),
    "another width": ({f"{Q}.lora_A": torch.ones(2, 15), f"{Q}.lora_B": torch.ones(16, 2)}, LoRAConfig(), BERT, AdapterMismatchError, r"\(2, 15\)"),
    "no rank": ({f"{Q}.lora_A": torch.ones(0, 16), f"{Q}.lora_B": torch.ones(16, 0)}, LoRAConfig(), BERT, AdapterMismatchError, r"\(0, 16\)"),
    "one of three blocks": (FUSED, LoRAConfig(), lambda: Named(nn.Linear(6, 12)), ConfigError, "1 of 3 .*enable_lora"),
    "other blocks": (FUSED, LoRAConfig(other={"enable_lora": [True, True, False]}), lambda: Named(nn.Linear(6, 12)), ConfigError, "1 of 3 .*2 of 3"),
    "blocks that are words": (FUSED, LoRAConfig(other={"enable_lora": "qv"}), lambda: Named(nn.Linear(6, 12)), ConfigError, "enable_lora='qv'"),
    "a thousand blocks": ({"layer.lora_A": torch.ones(1024, 6), "layer.lora_B": torch.ones(1024, 1)}, LoRAConfig(), lambda: Named(nn.Linear(6, 1024)), AdapterMismatchError, r"\(1024, 1\)"),
    "a thousand flags": (FUSED, LoRAConfig(other={"enable_lora": [True, *[False] * 1023]}), lambda: Named(nn.Linear(6, 12)), ConfigError, "enable_lora="),
    "a grouped convolution": ({"layer.lora_A": torch.ones(6, 12), "layer.lora_B": torch.ones(6, 6)}, LoRAConfig(), lambda: Named(nn.Conv2d(4, 4, 3, groups=2)), AdapterMismatchError, r"\(6, 4, 3, 3\) in the model"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED_LORALIB)
def test_a_loralib_checkpoint_that_cannot_be_followed_is_refused_and_leaves_the_model(
    fault: str, tmp_path: Path
) -> None:
    tensors, config, build, error, match = REFUSED_LORALIB[fault]
    torch.save(tensors, tmp_path / "lora.pt")
    base = build()
    before = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(error, match=match):
        LoRAModel.from_pretrained(tmp_path / "lora.pt", config, base_model=base)
    assert {name: type(module) for name, module in base.named_modules()} == before


# --- the oldest PEFT --------------------------------------------------------------------------------------------------


def _oldest_peft(directory: Path, enabled: list[bool], **changes: Any) -> nn.Module:
    """Write a merged adapter as PEFT 0.1 did, and return loralib's model of it."""
    theirs = _gpt2_in_loralib(enabled)
    tensors = {}
    for key, tensor in loralib.lora_state_dict(theirs).items():
        tensors[f"base_model.model.{key}.weight"] = tensor[..., None] if key.endswith("lora_B") else tensor
    directory.mkdir()
    torch.save(tensors, directory / "adapter_model.bin")
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 16, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    values |= {"enable_lora": enabled, "merge_weights": True, "modules_to_save": None, "bias": "none", **changes}
    (directory / "adapter_config.json").write_text(json.dumps(values))
    return theirs


@pytest.mark.parametrize("enabled", [[True, False, True], [False, False, True]], ids=str)
def test_the_oldest_pefts_merged_adapters_give_the_same_logits(enabled: list[bool], tmp_path: Path) -> None:
    theirs = _oldest_peft(tmp_path / "old", enabled)
    ours = LoRAModel.from_pretrained(tmp_path / "old", base_model=tiny("gpt2"))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)
    ours.save_pretrained(tmp_path / "new")
    again = LoRAModel.from_pretrained(tmp_path / "new", base_model=tiny("gpt2"))
    assert torch.equal(again(IDS).logits, ours(IDS).logits)


OLDEST = {
    "another rank": ({"r": 4}, ConfigError, "r=4.*rank 3"),
    "other blocks": ({"enable_lora": [True, False, False]}, ConfigError, "2 of 3 "),
    "no blocks": ({"enable_lora": [False, False]}, ConfigError, "enable_lora="),
}


@pytest.mark.parametrize("fault", OLDEST)
def test_an_oldest_config_that_does_not_fit_its_factors_is_refused(fault: str, tmp_path: Path) -> None:
    changes, error, match = OLDEST[fault]
    _oldest_peft(tmp_path / "old", [True, False, True], **changes)
    with pytest.raises(error, match=match):
        LoRAModel.from_pretrained(tmp_path / "old", base_model=tiny("gpt2"))
