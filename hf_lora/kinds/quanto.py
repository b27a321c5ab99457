"""optimum-quanto's linear layers: integers of two, four and eight bits, and eight-bit floats."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .quantised import Grid, QuantisedKind, float_levels, of_library

_BYTES, _BITS = "WeightQBytesTensor", "WeightQBitsTensor"
_SETTINGS = ("weight_qtype", "weight_group_size", "activation_qtype", "optimizer")


class QuantoKind(QuantisedKind):
    """A layer of quanto's, frozen, that leaves its input and output in float."""

    package = "optimum"
    added = frozenset({*_SETTINGS, "_quantize_hooks", "input_scale", "output_scale"})

    def holds(self, layer: nn.Linear, weight: Any) -> bool:
        if not of_library(layer, "optimum", "QLinear") or not of_library(weight, "optimum", _BYTES, _BITS):
            return False
        return layer.activation_qtype is None and weight.axis in (0, None)

    def read(self, layer: nn.Module, weight: Any) -> Tensor:
        return weight.detach().dequantize()

    def packed(self, layer: Any, like: Any, values: Tensor) -> Tensor:
        settings = {name: getattr(layer, name) for name in _SETTINGS}
        made = type(layer).qweight.fget(SimpleNamespace(weight=values.to(like.dtype), **settings))
        return nn.Parameter(made, requires_grad=False)

    def grid(self, layer: nn.Module, weight: Any) -> Grid:
        inner = _standard(weight)
        shape, qtype = inner.shape, inner.qtype
        if of_library(inner, "optimum", _BITS):
            data = inner._data.unpack()
            scale, shift = inner._scale.float(), inner._shift
            shift = -shift.float() if shift.is_floating_point() else -shift.float() * scale
            scale, shift = (each.expand(data.shape).reshape(shape) for each in (scale, shift))
            return Grid(torch.arange(2.0**qtype.bits, device=data.device), scale, shift, data.long().reshape(shape))
        scale, data = inner._scale.float().expand(shape), inner._data
        if qtype.is_floating_point:
            levels = float_levels(data.dtype).to(data.device)
            return Grid(levels, scale, 0.0, torch.bucketize(data.float(), levels))
        levels = torch.arange(float(qtype.qmin), qtype.qmax + 1.0, device=data.device)
        return Grid(levels, scale, 0.0, data.long() - int(qtype.qmin))

    def on_grid(self, layer: nn.Module, like: Any, index: Tensor) -> Tensor:
        inner = _standard(like)
        qtype, size, stride = inner.qtype, inner.size(), inner.stride()
        if of_library(inner, "optimum", _BITS):
            data = index.to(torch.uint8).reshape(inner._data.shape)
            made = type(inner)(qtype, inner.axis, inner._group_size, size, stride, data, inner._scale, inner._shift)
        else:
            if qtype.is_floating_point:
                data = float_levels(inner._data.dtype).to(index.device)[index].to(inner._data.dtype)
            else:
                data = (index + int(qtype.qmin)).to(torch.int8)
            made = type(inner)(qtype, inner.axis, size, stride, data, inner._scale, inner.activation_qtype)
        return nn.Parameter(made.optimize(), requires_grad=False)


def _standard(weight: Any) -> Any:
    """Return a weight as every device reads it, which some kernels hold in an order of their own."""
    inner = weight.data
    for name in ("weight_qbits_tensor", "weight_qbytes_tensor"):
        if type(inner).__name__ not in (_BITS, _BYTES) and hasattr(inner, name):
            return getattr(inner, name)()
    return inner
