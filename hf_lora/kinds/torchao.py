"""Linear layers whose weight is torchao's: integers of at most eight bits, or eight-bit floats, weight-only or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .quantised import Grid, QuantisedKind, float_levels, of_library, rebuilt

_INT8, _FLOAT8, _INTX = "Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor"


class TorchAoKind(QuantisedKind):
    """A plain linear layer around a tensor of torchao's that keeps scales of rows, blocks or the whole."""

    package = "torchao"
    added = frozenset({"extra_repr"})

    def holds(self, layer: nn.Linear, weight: Any) -> bool:
        if not of_library(weight, "torchao", _INT8, _FLOAT8, _INTX):
            return False
        # Scales of the input that were measured with this weight would not fit another one.
        measured = (getattr(weight, name, None) for name in ("act_pre_scale", "act_quant_scale"))
        return weight.ndim == 2 and all(value is None for value in measured)

    def read(self, layer: nn.Module, weight: Any) -> Tensor:
        return weight.detach().dequantize()

    def packed(self, layer: nn.Module, like: Any, values: Tensor) -> Tensor:
        inner, values = like.data, values.to(like.dtype)
        if of_library(inner, "torchao", _INT8):
            made = type(inner).from_hp(
                values,
                _granularity(inner),
                _mapping(inner),
                act_quant_kwargs=inner.act_quant_kwargs,
                reduce_range=inner.reduce_range,
            )
        elif of_library(inner, "torchao", _FLOAT8):
            kept = {name: getattr(inner, name) for name in ("mm_config", "kernel_preference", "act_quant_kwargs")}
            made = type(inner).from_hp(values, float8_dtype=inner.qdata.dtype, granularity=_granularity(inner), **kept)
        else:
            made = type(inner).from_hp(
                values,
                inner.block_size,
                inner.target_dtype,
                mapping_type=_mapping(inner),
                activation_quantization=inner.activation_quantization,
            )
        return nn.Parameter(made, requires_grad=False)

    def grid(self, layer: nn.Module, weight: Any) -> Grid:
        inner = weight.data
        scale = _spread(inner.scale, inner.qdata.shape)
        if inner.qdata.is_floating_point():
            levels = float_levels(inner.qdata.dtype).to(inner.qdata.device)
            return Grid(levels, scale, 0.0, torch.bucketize(inner.qdata.float(), levels))
        low, high = _bounds(inner)
        shift: Tensor | float = 0.0
        if inner.zero_point is not None:
            shift = -_spread(inner.zero_point, inner.qdata.shape) * scale
        levels = torch.arange(float(low), high + 1.0, device=inner.qdata.device)
        return Grid(levels, scale, shift, inner.qdata.long() - low)

    def on_grid(self, layer: nn.Module, like: Any, index: Tensor) -> Tensor:
        inner = like.data
        if inner.qdata.is_floating_point():
            data = float_levels(inner.qdata.dtype).to(index.device)[index].to(inner.qdata.dtype)
        else:
            data = (index + _bounds(inner)[0]).to(inner.qdata.dtype)
        return nn.Parameter(rebuilt(inner, qdata=data), requires_grad=False)


def _bounds(inner: Any) -> tuple[int, int]:
    """Return the least and the largest integer that a weight's values are multiples of."""
    from torchao.quantization.quant_primitives import _DTYPE_TO_QVALUE_BOUNDS

    low, high = _DTYPE_TO_QVALUE_BOUNDS[getattr(inner, "target_dtype", torch.int8)]
    return (low // 2, high // 2) if getattr(inner, "reduce_range", False) else (low, high)


def _mapping(inner: Any) -> Any:
    from torchao.quantization.quant_primitives import MappingType

    centred = inner.zero_point is None or not bool(inner.zero_point.any())
    return MappingType.SYMMETRIC if centred else MappingType.ASYMMETRIC


def _granularity(inner: Any) -> Any:
    """Return what a weight's scales belong to: a row, a group within a row, or all of it."""
    from torchao.quantization.granularity import PerGroup, PerRow, PerTensor

    rows, columns = inner.block_size
    if tuple(inner.block_size) == tuple(inner.qdata.shape) and rows > 1:
        return PerTensor()
    return PerRow() if columns == inner.qdata.shape[1] else PerGroup(columns)


def _spread(values: Tensor, shape: torch.Size) -> Tensor:
    """Return scales of blocks as (out, in), float32."""
    values = values.float().reshape(values.shape if values.ndim == 2 else (1, 1))
    for dim in (0, 1):
        values = values.repeat_interleave(shape[dim] // values.shape[dim], dim)
    return values
