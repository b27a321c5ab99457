"""Whether an adapter may sit behind a layer's forward: a subclass's own forward is called once, on a small copy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .kind import Kind, random_weight


def forward_factor(kind: Kind, module: nn.Module, cls: type[nn.Module]) -> float | None:
    """Return c where a layer's forward is c times what its kind believes, or None where it is something else.

    cls: the layer's class as the model defined it. Standard classes give 1. A subclass with a forward of its own
    (Falcon's linear, Gemma's scaled embedding) is probed: a copy with small random weights is called, so that an
    adapter is added behind the forward only where that gives exactly what the adapted weight would have given.
    """
    if kind.knows_forward(cls):
        return 1.0
    try:
        return _probe(kind, module, cls)
    except Exception:  # a forward of somebody's own may raise anything on an input it was not made for
        return None


def _probe(kind: Kind, module: nn.Module, cls: type[nn.Module]) -> float | None:
    probe = copy.copy(module)
    probe.__class__ = cls
    probe._parameters = dict(module._parameters)
    probe._buffers = {name: None if b is None else b.cpu() for name, b in module._buffers.items()}
    weight = module._parameters["weight"]
    assert weight is not None
    small = tuple(min(n, 6) for n in weight.shape[:2]) + tuple(weight.shape[2:])
    probe._parameters["weight"] = nn.Parameter(random_weight(small))
    if module._parameters.get("bias") is not None:
        probe._parameters["bias"] = nn.Parameter(random_weight(kind.factor_shapes(small, 1)[1][:1]))
    with torch.no_grad(), torch.device("cpu"):  # whatever the default device is
        x = kind.probe_input(probe)
        got, want = cls.forward(probe, x), kind.expected(probe, x)
        if not isinstance(got, Tensor) or got.shape != want.shape:
            return None
        factor = float((got * want).sum() / want.square().sum())
        if not torch.allclose(got, factor * want, rtol=1e-6, atol=1e-9):
            return None
        if kind.embeds:  # the scale as the base's own dtype rounds it
            probe._parameters["weight"] = nn.Parameter(torch.ones(small, dtype=weight.dtype, device="cpu"))
            factor = float(cls.forward(probe, x).abs().max()) * (1.0 if factor > 0 else -1.0)
    return round(factor, 12)
