"""Merging: what it loses to rounding is measured, told, limited and avoided; what it leaves alone, and what it refuses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterStateError, MergeError

from .cases import KIND_CASES, PAIRS, mergeable, move
from .peek import LF, LoRA
from .tiny import CLOSE, IDS, tiny
from .trainings import same, weights

METHODS = pytest.mark.parametrize("method", ["merge_adapter", "merge_and_unload"])
FLOATS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])


def _adapted(dtype: torch.dtype, scale: float, **settings: object) -> LoRAModel:
    """A GPT-2 whose adapters change its weights by about `scale` of them."""
    config = LoRAConfig(r=4, target_modules=["c_attn", "c_fc"], **settings)
    model = LoRAModel.from_model(tiny("gpt2").to(dtype), config)
    move(model)
    with torch.no_grad():
        for layer in model._lora.layers.values():
            for adapter in layer.carried("default").values():
                weight = layer.weight.float()
                delta = adapter.effective(weight) - weight
                adapter.lora_B *= scale * weight.norm() / delta.norm()
    return model.eval()


def _line(count: int, dtype: torch.dtype = torch.float32) -> Any:
    """Return linear layers in a line, each with an adapter that is away from its start."""
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(count))).to(dtype)
    model = add_lora(net, LoRAConfig(r=2, target_modules=[str(i) for i in range(count)]))
    move(model)
    return model


# --- what is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_report_is_what_rounding_takes_of_the_effect(dtype: torch.dtype) -> None:
    model, wide = _adapted(dtype, 1e-2), torch.float64
    report = model.merge_report()
    lost = effect = 0.0
    for name, layer in model._lora.layers.items():
        (adapter,) = layer.carried("default").values()
        base = layer.weight.to(wide)
        delta = adapter.scaling * (adapter.lora_B.to(wide) @ adapter.lora_A.to(wide)).T  # Conv1D
        delta, merged = delta.detach(), adapter.effective(layer.weight).detach().to(wide)
        own = (merged - base - delta).norm() / delta.norm()
        assert report.losses[f"{name}.weight"] == pytest.approx(float(own), rel=1e-2)
        lost, effect = lost + float((merged - base - delta).square().sum()), effect + float(delta.square().sum())
    assert report.total == pytest.approx((lost / effect) ** 0.5, rel=1e-2)
    assert 0.05 < report.total < 0.3 if dtype == torch.bfloat16 else report.total < 1e-4
    assert str(report).startswith(f"{report.total:.2%} ")


def test_a_lossy_merge_is_told_and_a_good_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_lora"):
        _adapted(torch.float32, 1e-3).merge_adapter()
        _adapted(torch.bfloat16, 1.0).merge_adapter()
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "hf_lora"):
        _adapted(torch.bfloat16, 1e-3).merge_and_unload()
    (record,) = caplog.records
    assert "%" in record.getMessage()
    assert "torch.float32" in record.getMessage()


@METHODS
def test_a_merge_that_loses_more_than_allowed_is_refused_with_nothing_merged(method: str) -> None:
    model = _adapted(torch.bfloat16, 1e-3)
    before = weights(model)
    with pytest.raises(MergeError, match=r"verify=0\.01.*torch\.float32"):
        getattr(model, method)(verify=0.01)
    assert isinstance(model, LoRAModel)
    same(model, before)
    getattr(_adapted(torch.float32, 1e-3), method)(verify=0.01)


@pytest.mark.parametrize("dora", [False, True])
def test_float32_on_request_loses_nothing(dora: bool) -> None:
    model = _adapted(torch.bfloat16, 1e-3, use_dora=dora)
    exact = LoRAModel.from_model(tiny("gpt2").to(torch.bfloat16).float(), model.peft_config["default"])
    exact.load_state_dict(model.state_dict())
    want = exact.eval()(IDS).logits
    with pytest.raises(MergeError, match=r"verify=-1"):
        model.merge_and_unload(dtype=torch.float32, verify=-1)
    assert model.transformer.wte.weight.dtype == torch.bfloat16, "a refused merge widens nothing"
    assert model.config.dtype != torch.float32
    merged = model.merge_and_unload(dtype=torch.float32, verify=1e-3)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert merged.config.dtype == torch.float32
    assert torch.allclose(merged(IDS).logits, want, atol=1e-5)


def test_saved_modules_and_several_adapters_count_into_the_report() -> None:
    base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    net = add_lora(base, LoRAConfig(r=2, target_modules=["0"], modules_to_save=["1"]))
    move(net)
    net.add_adapter(LoRAConfig(r=2, target_modules=["0"]), "b")
    move(net)
    report = net.merge_report(["default", "b"])
    assert report.losses.keys() == {"0.weight", "1.weight", "1.bias"}
    assert report.losses["1.weight"] == 0.0
    assert 0 < report.losses["0.weight"] < 1e-5
    assert net.merge_report([]).losses == {}


# --- what is refused ----------------------------------------------------------------------------------------------


def test_what_cannot_be_merged_as_asked_is_refused() -> None:
    model = _adapted(torch.float32, 1e-3)
    for dtype in (torch.bfloat16, torch.int8):
        with pytest.raises(MergeError, match=f"dtype={dtype}.*torch.float64"):
            model.merge_and_unload(dtype=dtype)
    with pytest.raises(MergeError, match="wider"):
        _adapted(torch.float64, 1e-3).merge_and_unload(dtype=torch.float32)
    model.set_adapter([])
    for method in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(AdapterStateError, match="no adapter is active"):
            method()
    model.set_adapter("default")
    model.merge_adapter()
    late: list[dict[str, Any]] = [{"dtype": torch.float32}, {"verify": 0.5}]
    for call in (model.merge_report, *(lambda kw=kw: model.merge_and_unload(**kw) for kw in late)):
        with pytest.raises(AdapterStateError, match="unmerge_adapter"):
            call()


def _overflows(layer: Any) -> None:
    top = torch.finfo(layer.weight.dtype).max
    layer.weight.fill_(top)
    for factor in layer.adapters["default"].parameters():
        factor.fill_((top / 64) ** 0.5)


def _is_packed(layer: Any) -> None:
    layer.adapters["default"]["weight"].kind = "packed"


# What keeps a layer from being merged, its dtype, and what is said of it.
UNFIT = {
    **{f"an overflow in {dtype}": (_overflows, dtype, "finite") for dtype in (torch.float16, torch.bfloat16, torch.float32)},
    "a base that is not finite": (lambda layer: layer.weight[1, 2].fill_(float("inf")), torch.float32, "finite"),
    "packed weights": (_is_packed, torch.float32, "packed"),
}  # fmt: skip


@METHODS
@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_last_layer_is_named_and_leaves_every_layer_as_it_was(case: str, method: str) -> None:
    spoil, dtype, match = UNFIT[case]
    model = _line(3, dtype)
    with torch.no_grad():
        spoil(model[2])
    before, objects = weights(model), [layer.weight for layer in model]
    with pytest.raises(MergeError, match=f"^2: .*{match}"):
        getattr(model, method)()
    same(model, before)
    assert all(layer.weight is weight for layer, weight in zip(model, objects, strict=True))


def test_what_overflows_in_half_precision_merges_in_float32() -> None:
    model = _adapted(torch.float16, 1e7)
    with pytest.raises(MergeError, match="finite"):
        model.merge_and_unload()
    merged = model.merge_and_unload(dtype=torch.float32, verify=1e-3)
    assert all(p.isfinite().all() for p in merged.parameters())


# --- what it leaves alone -----------------------------------------------------------------------------------------


def test_merging_for_good_gives_what_merging_gives_and_writes_into_no_tensor_of_before() -> None:
    """Tied as one parameter, as two parameters on one storage, and to a buffer; with two adapters at once."""
    for tie in (
        lambda one, other: setattr(other, "weight", one.weight),
        lambda one, other: setattr(other, "weight", nn.Parameter(one.weight.data)),
        lambda one, other: one.register_buffer("seen", one.weight.data),
    ):
        net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        tie(*net)
        model = add_lora(net, LoRAConfig(r=2, target_modules=["0"]))
        move(model)
        model.add_adapter(LoRAConfig(r=3, target_modules=["0"]), "b")
        move(model)
        tensors = dict(net.state_dict(keep_vars=True))
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        model.merge_adapter(["default", "b"])
        want = net[0].weight.clone()
        model.unmerge_adapter()
        plain = model.merge_and_unload(["default", "b"])
        assert torch.equal(plain[0].weight, want)
        assert not torch.equal(want, before["0.weight"])
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
        assert torch.equal(plain[1].weight, before["1.weight"])


@FLOATS
def test_the_largest_weight_takes_a_small_update(dtype: torch.dtype) -> None:
    """Half a last bit cannot take the largest number past its end, so nothing needs to be tried."""
    model = _line(1, dtype)
    with torch.no_grad():
        model[0].weight.fill_(torch.finfo(dtype).max)
    assert torch.isfinite(model.merge_and_unload()[0].weight).all()


@pytest.mark.parametrize(("kind", "variant"), PAIRS, ids=[f"{k}-{v}" for k, v in PAIRS])
def test_the_factors_bound_what_changes(kind: str, variant: str) -> None:
    model = mergeable(kind, variant)
    for layer in model._lora.layers.values():
        for adapter in (a for a in layer.adapters["default"].values() if isinstance(a, LoRA)):
            own = adapter.numbers(layer, layer._parameters[adapter.parameter]).detach()
            assert 0 < float((adapter.effective(own) - own).abs().max().detach()) <= adapter.largest_change()
            assert variant != "lora" or math.isfinite(adapter.largest_change()) is KIND_CASES[kind].merges


@FLOATS
def test_finite_is_told_from_a_sum_that_overflows(dtype: torch.dtype) -> None:
    values = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    assert LF.is_finite(values)
    for bad in (float("inf"), float("-inf"), float("nan")):
        values[7] = bad
        assert not LF.is_finite(values)


@FLOATS
def test_adding_a_product_leaves_the_weight_as_it_was(dtype: torch.dtype) -> None:
    weight, left, right = torch.randn(5, 4).to(dtype), torch.randn(5, 2), torch.randn(2, 4)
    before, want = weight.clone(), weight.double() + 0.5 * left.double() @ right.double()
    terms = weight.double().abs() + 0.5 * left.double().abs() @ right.double().abs()  # a sum rounds as its terms do
    got = LF.add_product(weight, left, right, 0.5)
    assert got.dtype is dtype
    assert ((got.double() - want).abs() <= 4 * torch.finfo(dtype).eps * terms).all()
    assert torch.equal(weight, before)


# --- tied tables, and one merge after another -----------------------------------------------------------------------

ROWS = LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 7])
HEAD = LoRAConfig(r=2, target_modules=["lm_head", "q_proj"])
TIES: dict[str, tuple[str, LoRAConfig, bool]] = {
    "rows of both": ("llama", ROWS, True),
    "the head alone": ("llama", HEAD, False),
    "nothing of either": ("llama", LoRAConfig(r=2, target_modules=["q_proj"]), True),
    "a saved head that stays tied": (
        "llama", LoRAConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True), True,
    ),
    "a head with a tied bias": ("bert_mlm", LoRAConfig(r=2, target_modules=["decoder"]), False),
    "a table beside a tied bias": ("bert_mlm", LoRAConfig(r=2, target_modules=["word_embeddings"]), False),
    "tied biases alone": ("bert_mlm", LoRAConfig(r=2, target_modules=["query"], bias="all"), False),
    "one table of three": ("bart", LoRAConfig(r=2, target_modules=["encoder.embed_tokens"]), False),
}  # fmt: skip


@pytest.mark.parametrize("first", [False, True], ids=["at once", "merged before"])
@pytest.mark.parametrize(("family", "config", "stays"), TIES.values(), ids=TIES)
def test_merging_for_good_parts_tied_tables_only_where_they_differ(
    family: str, config: LoRAConfig, stays: bool, first: bool, tmp_path: Path
) -> None:
    model = LoRAModel.from_model(tiny(family, noisy=True, tie_word_embeddings=True), config)
    move(model)
    want = model.eval()(IDS).logits
    if first:
        model.merge_adapter()
    plain = model.merge_and_unload()
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == stays
    assert plain.config.tie_word_embeddings == stays
    plain.save_pretrained(tmp_path)
    assert torch.allclose(type(plain).from_pretrained(tmp_path)(IDS).logits, want, **CLOSE)


class _Reader(nn.Module):
    """A model whose output is a product with the table's weight, which no layer is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.up = nn.Embedding(16, 4), nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=nn.functional.linear(self.up(self.embed_tokens(ids)), self.embed_tokens.weight))


PRODUCT, ROWS_TOO = {"target_modules": ["embed_tokens"]}, {"trainable_token_indices": {"embed_tokens": [5, 9]}}
# The model, and what two adapters have on one parameter of it.
ON_ONE: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "a table's product and rows": (lambda: tiny("llama"), PRODUCT, {"target_modules": ["q_proj"], **ROWS_TOO}),
    "a tied head's product and rows": (
        lambda: tiny("llama", tie_word_embeddings=True), {"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], **ROWS_TOO},
    ),
    "those of a table that is read": (_Reader, PRODUCT, {"target_modules": ["up"], **ROWS_TOO}),
    "a bias's share and a bias": (
        lambda: tiny("gpt2"), {"target_modules": ["c_attn"], "lora_bias": True}, {"target_modules": ["c_attn"], "bias": "lora_only"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ON_ONE)
def test_the_order_of_two_adapters_on_one_parameter_has_no_say(what: str) -> None:
    make, *both = ON_ONE[what]
    model = add_lora(make(), LoRAConfig(r=2, **both[0]), "a").eval()
    model.add_adapter(LoRAConfig(r=2, **both[1]), "b")
    for name in "ab":
        model.set_adapter(name)
        move(model)
    found = []
    for names in (["a", "b"], ["b", "a"]):
        model.set_adapter(names)
        found.append(model(IDS).logits)
        model.merge_adapter()
        found.append(model(IDS).logits)
        model.unmerge_adapter()
    assert all(torch.allclose(each, found[0], **CLOSE) for each in found)


def _three() -> LoRAModel:
    model = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, target_modules=["q_proj", "v_proj"]), "a")
    for name in ("b", "c"):
        model.add_adapter(LoRAConfig(r=2, target_modules=["q_proj", "o_proj"]), name)
    for name in "cba":
        model.set_adapter(name)
        move(model)
    return model.eval()


def test_an_adapter_is_merged_on_top_of_another_and_all_come_out_again() -> None:
    model = _three()
    base = {name: p.clone() for name, p in model.named_parameters() if "adapters" not in name}
    model.set_adapter(["a", "b"])
    want = model(IDS).logits
    model.merge_adapter(["a"])
    model.merge_adapter(["b"])
    assert torch.allclose(model(IDS).logits, want, **CLOSE)
    at_once = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(AdapterStateError, match="merged"):
        model.merge_adapter(["a", "b"])
    model.unmerge_adapter()
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    model.merge_adapter(["a", "b"])
    assert all(torch.equal(p, at_once[name]) for name, p in model.named_parameters())
    model.unmerge_adapter()
    model.merge_adapter(["a"])
    assert torch.allclose(model.merge_and_unload(["b"])(IDS).logits, want, **CLOSE)


def test_an_adapter_that_is_not_merged_can_be_deleted_meanwhile() -> None:
    model = _three()
    want = model(IDS).logits
    model.merge_adapter()
    model.delete_adapter("c")
    with pytest.raises(AdapterStateError, match="'a'.*merged"):
        model.delete_adapter(["b", "a"])
    assert list(model.peft_config) == ["a", "b"]
    assert torch.allclose(model(IDS).logits, want, **CLOSE)
    model.unmerge_adapter()
    assert torch.allclose(model(IDS).logits, want, **CLOSE)
