"""Layers of quantising libraries for the tests: how each packs a linear layer, and what it reads of it, by itself.

A library that is not installed has no case.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def _bnb_4bit(**settings: Any) -> Callable[[nn.Linear], nn.Linear]:
    def packed(layer: nn.Linear) -> nn.Linear:
        from bitsandbytes.nn import Linear4bit

        made = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, **settings)
        made.load_state_dict(layer.state_dict())
        made.support_avx512bf16_for_cpu = False  # else a forward would round the scales in place, on some machines
        return made.to("cpu")  # type: ignore[no-any-return]

    return packed


def _bnb_8bit(layer: nn.Linear) -> nn.Linear:
    from bitsandbytes.nn import Linear8bitLt

    made = Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    made.load_state_dict(layer.state_dict())
    return made.to("cpu")  # type: ignore[no-any-return]


def _torchao(config: str, **settings: Any) -> Callable[[nn.Linear], nn.Linear]:
    def packed(layer: nn.Linear) -> nn.Linear:
        from torchao import quantization

        given = {k: value() if callable(value) else value for k, value in settings.items()}
        quantization.quantize_(layer, getattr(quantization, config)(**given))
        return layer

    return packed


def _groups_of(size: int) -> Callable[[], Any]:
    def made() -> Any:
        from torchao.quantization.granularity import PerGroup

        return PerGroup(size)

    return made


def _quanto(weights: str) -> Callable[[nn.Linear], nn.Linear]:
    def packed(layer: nn.Linear) -> nn.Linear:
        from optimum.quanto import QLinear, qtypes

        made = QLinear.from_module(layer, weights=qtypes[weights])
        made.freeze()
        return made  # type: ignore[no-any-return]

    return packed


# By name: the package, how a linear layer is packed in place or anew.
_EVERY: dict[str, tuple[str, Callable[[nn.Linear], nn.Linear]]] = {
    "nf4": ("bitsandbytes", _bnb_4bit(quant_type="nf4", compress_statistics=False)),
    "nf4-double": ("bitsandbytes", _bnb_4bit(quant_type="nf4", quant_storage=torch.bfloat16)),
    "fp4": ("bitsandbytes", _bnb_4bit(quant_type="fp4", compress_statistics=False)),
    "bnb-int8": ("bitsandbytes", _bnb_8bit),
    "torchao-int8": ("torchao", _torchao("Int8WeightOnlyConfig")),
    "torchao-int8-groups": ("torchao", _torchao("Int8WeightOnlyConfig", granularity=_groups_of(32))),
    "torchao-float8": ("torchao", _torchao("Float8WeightOnlyConfig")),
    "torchao-int4": (
        "torchao", _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=_groups_of(32)),
    ),
    "quanto-int8": ("optimum.quanto", _quanto("qint8")),
    "quanto-int4": ("optimum.quanto", _quanto("qint4")),
    "quanto-int2": ("optimum.quanto", _quanto("qint2")),
    "quanto-float8": ("optimum.quanto", _quanto("qfloat8")),
}  # fmt: skip
FIRST = ("nf4", "bnb-int8", "torchao-int8", "quanto-int4")  # of each kind, the one that meets every variant
# By row of the table of kinds, the package.
LIBRARIES = {
    "bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes", "torchao": "torchao",
    "quanto": "optimum.quanto",
}  # fmt: skip


def is_here(package: str) -> bool:
    """Return whether a package is installed."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


PACKED = {name: pack for name, (package, pack) in _EVERY.items() if is_here(package)}


def read(layer: Any) -> Tensor:
    """Return what a layer's weight stands for, as its library says; (out, in)."""
    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if type(weight).__name__ == "Int8Params":
        from bitsandbytes.functional import int8_vectorwise_dequant

        scales = layer.state.SCB if weight.SCB is None else weight.SCB
        return int8_vectorwise_dequant(weight.data, scales)
    return weight.detach().dequantize()  # type: ignore[no-any-return]


def bits_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the bytes of the plain tensors that a state dict is made of, those inside a library's own classes too."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if is_traceable_wrapper_subclass(value):
            found |= bits_of({f"{key}.{name}": getattr(value, name) for name in value.__tensor_flatten__()[0]})
        elif isinstance(value, Tensor):
            found[key] = value.detach().as_subclass(Tensor).reshape(-1).view(torch.uint8).clone()
    return found


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two such dictionaries are the same."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
