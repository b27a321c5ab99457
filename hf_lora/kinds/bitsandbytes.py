"""bitsandbytes' linear layers: four bits (NF4 and FP4, double quantisation too) and eight.

Dettmers et al. 2023, QLoRA, arXiv:2305.14314; Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .quantised import Grid, QuantisedKind, of_library


class FourBitKind(QuantisedKind):
    """Four bits a value, in blocks along the rows one after another, each with its largest absolute value."""

    package = "bitsandbytes"
    added = frozenset({
        "compute_dtype", "compute_type_is_set", "quant_state", "quant_storage", "support_avx512bf16_for_cpu",
    })  # fmt: skip

    def holds(self, layer: nn.Linear, weight: Any) -> bool:
        if not of_library(layer, "bitsandbytes", "Linear4bit") or not of_library(weight, "bitsandbytes", "Params4bit"):
            return False
        return weight.is_meta or weight.quant_state is not None

    def read(self, layer: nn.Module, weight: Any) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        data, state = _standard(weight)
        return dequantize_4bit(data, state).reshape(state.shape)

    def packed(self, layer: nn.Module, like: Any, values: Tensor) -> Tensor:
        made = _empty_like(like, values)
        made = made.to(like.device)  # which quantises
        made.quant_state.dtype = _standard(like)[1].dtype
        return made

    def grid(self, layer: nn.Module, weight: Any) -> Grid:
        data, state = _standard(weight)
        code = state.code.float()
        levels, place = code.sort(stable=True)
        size = state.shape.numel()
        data = data.view(torch.uint8).flatten().long()
        own = torch.stack((data >> 4, data & 15), dim=1).flatten()[:size].view(state.shape)
        index = torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=place.device))[own]
        scale = _scales(state).repeat_interleave(state.blocksize)[:size].view(state.shape)
        return Grid(levels, scale, 0.0, index)

    def on_grid(self, layer: nn.Module, like: Any, index: Tensor) -> Tensor:
        data, state = _standard(like)
        own = state.code.float().sort(stable=True).indices[index].to(torch.uint8).flatten()
        own = torch.nn.functional.pad(own, (0, len(own) % 2))
        whole = (own[::2] << 4 | own[1::2]).view(data.dtype).reshape(data.shape)
        made = _empty_like(like, whole)
        made.quant_state, made.bnb_quantized = state, True
        return made

    def replaced(self, layer: Any, old: Tensor, new: Tensor) -> None:
        layer.quant_state = getattr(new, "quant_state", layer.quant_state)


class EightBitKind(QuantisedKind):
    """Eight bits a value, each row with the largest absolute value for its scale."""

    package = "bitsandbytes"
    added = frozenset({"state", "index"})

    def holds(self, layer: nn.Linear, weight: Any) -> bool:
        if not of_library(layer, "bitsandbytes", "Linear8bitLt") or not of_library(
            weight, "bitsandbytes", "Int8Params"
        ):
            return False
        return weight.dtype is torch.int8 and not weight.has_fp16_weights

    def read(self, layer: nn.Module, weight: Any) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(weight.data, _row_scales(layer, weight).flatten())

    def packed(self, layer: nn.Module, like: Any, values: Tensor) -> Tensor:
        return type(like)(values.cpu(), requires_grad=False, has_fp16_weights=False).to(like.device)

    def grid(self, layer: nn.Module, weight: Any) -> Grid:
        levels = torch.arange(-127.0, 128.0, device=weight.device)
        return Grid(levels, _row_scales(layer, weight) / 127, 0.0, weight.data.long().clamp_(min=-127) + 127)

    def on_grid(self, layer: nn.Module, like: Any, index: Tensor) -> Tensor:
        data = (index - 127).to(torch.int8)
        made = type(like)(data, requires_grad=False, has_fp16_weights=False)
        made.CB, made.SCB = data, _row_scales(layer, like).flatten()
        return made

    def replaced(self, layer: Any, old: Any, new: Tensor) -> None:
        """Give a weight its scales back, which its layer took from it in the first forward."""
        if getattr(old, "SCB", None) is None and layer.state.SCB is not None:
            old.CB, old.SCB = old.data, layer.state.SCB


def _row_scales(layer: Any, weight: Any) -> Tensor:
    """Return the largest absolute value of each row, (out, 1), from the weight or, after a forward, the layer."""
    found = weight.SCB if weight.SCB is not None else layer.state.SCB
    return found.to(weight.device).float().view(-1, 1)


def _empty_like(like: Any, data: Tensor) -> Any:
    """Return a weight of four bits of the same settings, around data that is not quantised yet."""
    return type(like)(
        data,
        requires_grad=False,
        blocksize=like.blocksize,
        compress_statistics=like.compress_statistics,
        quant_type=like.quant_type,
        quant_storage=like.quant_storage,
    )


def _scales(state: Any) -> Tensor:
    """Return the largest absolute value of each block, float32."""
    from bitsandbytes.functional import dequantize_blockwise

    if not state.nested:
        return state.absmax.float()
    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()


def _standard(weight: Any) -> tuple[Tensor, Any]:
    """Return the data and the state of a weight as every device reads them.

    A forward on a CPU with bfloat16 instructions packs both in another way, in place.
    """
    state = weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return weight.data, state
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    state = copy.copy(state)
    state.original_nested, scales = False, state.absmax.T.reshape(-1).float()
    data, state = _convert_weight_packed_for_cpu_inverse(weight.data, state)
    state.absmax = scales
    return data, state
