"""The laws, over every kind x variant x dtype: what an adapter must never change, and what it must keep."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_lora import LoRAModel, add_lora

from .cases import (
    COVER,
    KIND_CASES,
    PAIRS,
    adapted,
    config_of,
    data_of,
    example,
    is_exact,
    is_packed,
    mergeable,
    move,
    network,
    readable,
    widened,
)  # fmt: skip
from .peek import FORMULAS, INITS, KINDS, SCALINGS
from .quantising import LIBRARIES, bits_of, is_here, same_bits

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
laws = pytest.mark.parametrize(("kind", "variant"), PAIRS, ids=[f"{k}-{v}" for k, v in PAIRS])
cover = pytest.mark.parametrize(("kind", "variant"), COVER, ids=[f"{k}-{v}" for k, v in COVER])
HALF_COVER = [(k, v) for k, v in COVER if not is_packed(k)]
TYPED = [(k, v, d) for k, v in PAIRS for d in DTYPES if d is torch.float32 or (k, v) in HALF_COVER]
typed = pytest.mark.parametrize(("kind", "variant", "dtype"), TYPED, ids=[f"{k}-{v}-{str(d)[6:]}" for k, v, d in TYPED])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))


@typed
def test_a_fresh_adapter_leaves_every_output_bitwise_as_it_was(kind: str, variant: str, dtype: torch.dtype) -> None:
    model, x = network(kind, dtype), example(kind, dtype)
    before = model(x)
    after = add_lora(model, config_of(kind, variant), **data_of(kind, variant))(x)
    if variant == "loftq":  # it goes back to what the layer was before it was quantised
        want = data_of(kind, variant)["data"].to(dtype)(x)  # type: ignore[attr-defined]
        assert (after - want).norm() < (before - want).norm()
    elif not is_exact(variant):  # the product at birth is added and subtracted, both in one sum
        assert close(after, before, 1e-5)
    else:
        assert torch.equal(after, before)


@typed
def test_the_forward_equals_the_forward_of_the_merged_weight(kind: str, variant: str, dtype: torch.dtype) -> None:
    model, x = mergeable(kind, variant, dtype), example(kind, dtype)
    live, base = model(x), network(kind, dtype)(x)
    model.merge_adapter()
    tolerance = max(TOLERANCE[dtype], KIND_CASES[kind].tolerance)
    assert close(model(x), live, tolerance)
    assert not close(live, base, 3 * tolerance), "the adapter has no effect, so this test proves nothing"


@typed
def test_merging_then_unmerging_restores_every_bit(kind: str, variant: str, dtype: torch.dtype) -> None:
    model, x = mergeable(kind, variant, dtype), example(kind, dtype)
    before, live = bits_of(model.state_dict()), model(x)
    model.merge_adapter()
    model.unmerge_adapter()
    assert same_bits(bits_of(model.state_dict()), before)
    assert torch.equal(model(x), live)


@laws
def test_disabling_gives_the_pristine_base_bit_for_bit(kind: str, variant: str) -> None:
    model, x = adapted(kind, variant), example(kind)
    live, pristine = model(x), network(kind).requires_grad_(False)(x)
    with model.adapters_disabled():
        assert torch.equal(model(x), pristine)
    assert torch.equal(model(x), live)


@laws
def test_saving_then_loading_restores_every_bit_and_the_same_bytes(kind: str, variant: str, tmp_path) -> None:
    model, x = adapted(kind, variant), example(kind)
    model.save_pretrained(tmp_path / "a")
    again = LoRAModel.from_pretrained(tmp_path / "a", base_model=network(kind), is_trainable=True)
    assert torch.equal(again(x), model(x))
    again.save_pretrained(tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@laws
def test_leaving_restores_classes_keys_and_flags_with_the_bases_tensors_or_outputs(kind: str, variant: str) -> None:
    x = example(kind)
    live = mergeable(kind, variant)(x)
    for leave in ("unload", "merge_and_unload"):
        plain = getattr(mergeable(kind, variant), leave)()
        reference = network(kind) if leave == "unload" else readable(kind)
        assert [type(m) for m in plain.modules()] == [type(m) for m in reference.modules()]
        assert [m.__dict__.keys() for m in plain.modules()] == [m.__dict__.keys() for m in reference.modules()]
        got, want = plain.state_dict(), reference.state_dict()
        assert list(got) == list(want)
        if leave == "unload":
            assert same_bits(bits_of(got), bits_of(want))
            assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in reference.parameters()]
        else:
            assert close(plain(x), live, KIND_CASES[kind].tolerance)


@laws
def test_gradients_land_in_the_adapter_only_and_match_a_float64_reference(kind: str, variant: str) -> None:
    """The reference is the same adapter in float64, differentiated through the merged weight, not the live path."""
    model, x = adapted(kind, variant).train(), example(kind)
    wide = widened(model, kind, variant)
    weights = torch.randn(model(x).shape, dtype=torch.float64)
    (model(x) * weights.float()).sum().backward()
    _through_the_weight(wide, x.double() if x.is_floating_point() else x, weights)
    for (name, got), want in zip(model.named_parameters(), wide.parameters(), strict=True):
        assert (got.grad is not None) == ("adapters" in name and got.requires_grad), name
        if got.grad is not None:
            assert want.grad is not None, name
            assert close(got.grad.double(), want.grad, 1e-5), name


def _through_the_weight(model: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> None:
    """Backpropagate through parameters that are replaced by their effective values: plain autograd, no live path."""
    from torch.func import functional_call

    reference, values = copy.deepcopy(model).unload(), {}
    for module, layer in model._lora.layers.items():
        for adapter in layer.adapters["default"].values():
            name = f"{module}.{adapter.parameter}"
            own = layer._parameters[adapter.parameter].detach()
            if adapter.parameter == "weight" and getattr(layer, "groups", 1) > 1:
                values[name] = _ungrouped(layer, own, adapter.scaling * adapter.product())
                reference.get_submodule(module).groups = 1
            else:
                values[name] = adapter.effective(values.get(name, own))
            if getattr(adapter, "lora_bias", None) is not None:
                values[f"{module}.bias"] = adapter.effective_bias(layer._parameters["bias"].detach())
    (functional_call(reference, values, (x,)) * weights).sum().backward()


def _ungrouped(layer: nn.Module, weight: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Return the weight of a convolution without groups: what a grouped one computes, and added to its matrix."""
    matrix = torch.block_diag(*weight.reshape(layer.groups, -1, weight[0].numel()))
    return (matrix + added).reshape(len(weight), -1, *weight.shape[2:])


@laws
def test_copies_and_pickles_compute_the_same_and_share_nothing(kind: str, variant: str) -> None:
    if not KIND_CASES[kind].copies:
        pytest.skip("the library's own layer cannot be copied")
    model, x = adapted(kind, variant), example(kind)
    live = model(x)
    for copied in (copy.deepcopy(model), *([pickle.loads(pickle.dumps(model))] if KIND_CASES[kind].pickles else [])):
        assert isinstance(copied, LoRAModel)
        assert torch.equal(copied(x), live)
        move(copied)
        copied.disable_adapters()
        assert torch.equal(model(x), live)


@laws
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's, of a library's layer
def test_compiling_changes_nothing_and_breaks_no_graph(kind: str, variant: str) -> None:
    if not KIND_CASES[kind].compiles:
        pytest.skip("the library's own layer cannot be compiled as one graph")
    model, x = adapted(kind, variant).train(), example(kind)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert close(compiled(x), model(x), 1e-5)
    torch._dynamo.reset()


@laws
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind: str, variant: str, use_reentrant: bool) -> None:
    model, x = adapted(kind, variant).train(), example(kind)
    if use_reentrant and not x.is_floating_point():
        pytest.skip("reentrant checkpointing needs an input with a gradient")
    x = x.requires_grad_() if x.is_floating_point() else x
    model(x).square().sum().backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    assert all(close(p.grad, want[n], 1e-5) for n, p in model.named_parameters() if p.grad is not None)
    assert want


@laws
def test_dropout_falls_on_the_adapter_alone_and_only_in_training(kind: str, variant: str) -> None:
    if not KIND_CASES[kind].dropout:
        with pytest.raises(ValueError, match="lora_dropout"):
            adapted(kind, variant, lora_dropout=0.5)
        return
    model, x = adapted(kind, variant, lora_dropout=0.5), example(kind)
    assert torch.equal(model(x), adapted(kind, variant)(x))
    model.train()
    assert not x.is_floating_point() or not torch.equal(model(x), model(x))
    model.disable_adapters()
    assert torch.equal(model(x), network(kind).train().requires_grad_(False)(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@cover
def test_adapters_on_a_half_precision_base_are_float32_masters(kind: str, variant: str, dtype: torch.dtype) -> None:
    model = add_lora(network(kind, dtype), config_of(kind, variant), **data_of(kind, variant))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert {p.dtype for p in trained} == {torch.float32}
    if dtype is torch.bfloat16:
        assert model(example(kind, dtype)).dtype is dtype


def test_every_row_of_the_kinds_table_has_a_case() -> None:
    models = [add_lora(network(kind), config_of(kind, "lora")) for kind in KIND_CASES]
    layers = [layer for model in models for layer in model._lora.layers.values()]
    seen = {adapter.kind for layer in layers for adapter in layer.carried("default").values()}
    absent = {row for row, package in LIBRARIES.items() if not is_here(package)}
    assert seen | {"packed"} | absent == set(KINDS)  # packed layers have tests of their own, without merging


def test_every_row_of_the_variant_tables_has_a_case() -> None:
    configs = [config_of("linear", variant) for variant in {v for _, v in PAIRS}]
    assert {c.formula for c in configs} == set(FORMULAS)
    assert {c.init_lora_weights for c in configs} | {False} == INITS.keys()
    assert {"rslora" if c.use_rslora else "lora" for c in configs} == set(SCALINGS)
