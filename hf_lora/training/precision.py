"""Adapter weights that train are float32 masters, also where somebody cast the whole model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..layers.layer import LoRALayer

__all__ = ["widen_masters"]


def widen_masters(model: nn.Module) -> int:
    """Make half-precision adapter weights that require gradients float32, in place, and return how many there were.

    Casting a whole model (half(), bfloat16(), to(dtype)) casts its adapters as well. Steps of a usual learning rate are
    lost below half precision, and a GradScaler refuses float16. The parameters stay the same objects.
    """
    narrow = [p for p in _adapter_parameters(model) if p.requires_grad and p.is_floating_point() and p.itemsize < 4]
    for parameter in narrow:
        parameter.data = parameter.data.to(torch.float32)
        parameter.grad = None  # of the old dtype
    return len(narrow)


def _adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.adapters.parameters() if isinstance(module, LoRALayer) else ():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter
