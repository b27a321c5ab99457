"""No dead adapters: in every family, with every preset, what is attached trains, and trains by the right gradient.

The reference is the merged model, trained in full: where W' = W + s B A, the chain rule alone says that
dL/dB = s (dL/dW') A^T and dL/dA = s B^T (dL/dW'), wherever and however often the model uses that weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import TargetError

from .peek import KINDS, LoRA
from .tiny import FAMILIES, floats, inputs, outputs, tiny

PRESETS = ("auto", "attention", "all-linear")
# Presets that must raise: nothing in the family is an attention, or (XLNet) it is made of raw 3-D parameters.
REFUSED = [("xlnet", "auto"), *((name, "attention") for name in ("convnext", "mamba", "mamba2", "xlnet"))]
# Weights to which the example forward of a family gives no gradient, whoever trains them.
# DETR: the first decoder layer attends over the zeros that the object queries start from, so its value has no input.
IDLE = {"detr": {"model.decoder.layers.0.self_attn.v_proj.weight"}}
CASES = [(name, preset) for name in FAMILIES for preset in PRESETS if (name, preset) not in REFUSED]
every_case = pytest.mark.parametrize(("name", "preset"), CASES, ids=["-".join(case) for case in CASES])


@cache
def _base(name: str) -> nn.Module:
    """Return a family's model, frozen: torch's matmul takes another path, with other bits, for weights that train."""
    return tiny(name, noisy=True).requires_grad_(False)


@cache
def _pristine(name: str) -> list[Tensor]:
    return outputs(_base(name), name)


def _attach(name: str, preset: str) -> LoRAModel:
    """Return a copy of a family's model with a random adapter, strong enough to be seen."""
    torch.manual_seed(11)
    config = LoRAConfig(r=2, lora_alpha=4, target_modules=preset, init_lora_weights=False)
    return LoRAModel.from_model(copy.deepcopy(_base(name)), config)


def _sites(model: LoRAModel) -> Iterator[tuple[str, LoRA]]:
    for layer_name, layer in model._lora.layers.items():
        for adapter in layer.adapters["default"].values():
            yield f"{layer_name}.{adapter.parameter}".lstrip("."), adapter


def _train_step(model: nn.Module, name: str) -> None:
    """Backpropagate a random mixture of all outputs, in train mode, with the same dropout masks every time."""
    model.train()
    torch.manual_seed(7)
    weights = torch.Generator().manual_seed(8)
    found = floats(model(**inputs(name)))
    sum((y * torch.randn(y.shape, generator=weights)).sum() for y in found if y.requires_grad).backward()


def _close(got: list[Tensor], want: list[Tensor], tolerance: float) -> bool:
    return all((g - w).abs().max() <= tolerance * w.abs().max() for g, w in zip(got, want, strict=True))


def _equal(got: list[Tensor], want: list[Tensor]) -> bool:
    return all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@every_case
def test_every_adapter_gets_the_gradient_of_its_merged_weight_and_the_base_gets_none(name: str, preset: str) -> None:
    """Experts that no token reached are no exception: theirs is zero in the reference too, expert by expert."""
    model = _attach(name, preset)
    merged = copy.deepcopy(model).merge_and_unload().requires_grad_(True)
    _train_step(model, name)
    _train_step(merged, name)
    weights, wrong, idle = dict(merged.named_parameters(remove_duplicate=False)), [], set()
    for where, adapter in _sites(model):
        a, b = adapter.lora_A, adapter.lora_B
        assert None not in (a.grad, b.grad), f"{where} is not part of the forward"
        for factor, got, want in zip("AB", (a.grad, b.grad), _chain_rule(adapter, weights[where].grad), strict=True):
            error, size = float((got - want).abs().max()), float(want.abs().max())
            if error > 1e-4 * size + 1e-7:
                wrong.append(f"{where} {factor}: off by {error:.2g} of {size:.2g}")
        if not (a.grad.any() and b.grad.any()):
            idle.add(where)
    assert not wrong
    own = {id(p) for _, adapter in _sites(model) for p in adapter.parameters()}
    assert own == {id(p) for p in model.parameters() if p.grad is not None}
    assert own == {id(p) for p in model.parameters() if p.requires_grad}
    assert idle == {where for where in IDLE.get(name, ()) if where in dict(_sites(model))}


def _chain_rule(adapter: LoRA, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of A and B, in their shapes, from the one of the whole weight."""
    kind = KINDS[adapter.kind]
    matrix = kind.matrix(gradient)
    a, b = kind.flat(adapter.lora_A.detach(), adapter.lora_B.detach())
    return (
        (adapter.scaling * b.mT @ matrix).reshape(adapter.lora_A.shape),
        (adapter.scaling * matrix @ a.mT).reshape(adapter.lora_B.shape),
    )


@every_case
def test_off_or_unloaded_a_model_is_its_base_to_the_bit_and_merged_it_is_the_live_one(name: str, preset: str) -> None:
    model, pristine = _attach(name, preset), _pristine(name)
    live = outputs(model, name)
    assert any((y - p).abs().max() > 1e-2 * p.abs().max() for y, p in zip(live, pristine, strict=True))
    with model.adapters_disabled():
        assert _equal(outputs(model, name), pristine)
    model.merge_adapter()
    assert _close(outputs(model, name), live, 1e-4)
    model.unmerge_adapter()
    assert _equal(outputs(model, name), live)
    assert _close(outputs(copy.deepcopy(model).merge_and_unload(), name), live, 1e-4)
    plain = model.unload()
    assert type(plain) is type(_base(name))
    assert _equal(outputs(plain, name), pristine)


@pytest.mark.parametrize(("name", "preset"), REFUSED, ids=["-".join(case) for case in REFUSED])
def test_a_preset_that_finds_no_attention_to_adapt_says_so_and_leaves_the_model_alone(name: str, preset: str) -> None:
    model = copy.deepcopy(_base(name))
    with pytest.raises(TargetError, match="attention"):
        LoRAModel.from_model(model, LoRAConfig(target_modules=preset))
    assert type(model) is type(_base(name))
    assert _equal(outputs(model, name), _pristine(name))
