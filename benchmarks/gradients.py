"""The proof that the arms compute the same: their gradients against a formula of its own, in float64.

    W' = W + s B A,   G = dL/dW',   dL/dA = s B^T G,   dL/dB = s G A^T

The chain rule through the merged weight, which no arm makes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .arms import Factors, lora_parameters

# Of the norm of each gradient. Seen over 4 layers: 1e-6 in float32, 1.5e-2 in bfloat16, in every library alike.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
INPUT = ("input", "x")

Gradients = dict[tuple[str, str], Tensor]  # (layer, "A" or "B") -> its gradient; INPUT -> the input's


def backward(model: nn.Module, x: Tensor, cotangent: Tensor) -> Tensor:
    """Run forward and backward with a given gradient of the output, and return the input's.

    A loss of the mean square would not do: behind a layer norm it is constant, and its gradient is rounding.
    """
    leaf = x.detach().requires_grad_()
    model(inputs_embeds=leaf).last_hidden_state.backward(cotangent)
    assert leaf.grad is not None
    return leaf.grad


def reference(base: nn.Module, factors: Factors, scaling: float, x: Tensor, cotangent: Tensor) -> Gradients:
    """Return the exact gradients, in float64. The base is left unchanged."""
    model = copy.deepcopy(base).double().train().requires_grad_(False)
    wide = {key: factor.double() for key, factor in factors.items()}
    weights = {layer: model.get_parameter(f"{layer}.weight") for layer, letter in factors if letter == "A"}
    for layer, weight in weights.items():
        weight.addmm_(wide[layer, "B"], wide[layer, "A"], alpha=scaling).requires_grad_(True)
    result = {INPUT: backward(model, x.double(), cotangent.double())}
    for layer, weight in weights.items():
        assert weight.grad is not None
        result[layer, "A"] = scaling * wide[layer, "B"].T @ weight.grad
        result[layer, "B"] = scaling * weight.grad @ wide[layer, "A"].T
    return result


def errors(model: nn.Module, x: Tensor, cotangent: Tensor, want: Gradients) -> dict[tuple[str, str], float]:
    """Return how far each gradient of a model is from the wanted one, as a part of its norm; NaN if it is not there."""
    model.zero_grad(set_to_none=True)
    got: Mapping[tuple[str, str], Tensor | None] = {
        INPUT: backward(model, x, cotangent),
        **{key: parameter.grad for key, parameter in lora_parameters(model).items()},
    }
    model.zero_grad(set_to_none=True)
    return {key: _distance(got.get(key), gradient) for key, gradient in want.items()}


def _distance(got: Tensor | None, want: Tensor) -> float:
    return float("nan") if got is None else float((got.double() - want).norm() / want.norm())


def check(arm: str, model: nn.Module, x: Tensor, cotangent: Tensor, want: Gradients, dropout: float) -> float:
    """Return an arm's largest error, with its dropout switched off; the model is left in training mode.

    Raises AssertionError beyond TOLERANCE, or where dropout, switched on, changes no gradient.
    """
    tolerance = TOLERANCE[x.dtype]
    found = errors(model.train(not dropout), x, cotangent, want)
    wrong = {".".join(key): error for key, error in found.items() if not error <= tolerance}
    if wrong:
        raise AssertionError(f"{arm}: {len(wrong)} of {len(found)} gradients are off by more than {tolerance}: {wrong}")
    model.train()
    if dropout and max(errors(model, x, cotangent, want).values()) <= max(found.values()):
        raise AssertionError(f"{arm}: with dropout {dropout} the gradients are the ones without it.")
    return max(found.values())
