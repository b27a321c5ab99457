"""LoRALayer: a base layer whose class is specialised, so that it carries named adapters and stays what it was.

A layer keeps its place, name, parameters and hooks; only its class becomes `LoRA<Base>(LoRALayer, <Base>)`. There
are two ways in for an adapter. Behind the forward: y' = y + update(x, y), nothing of the weight's size is made.
In the read: the class gets a property for the parameter, so that whoever reads `layer.weight` (the layer's own
forward, or other code that never calls it, such as `nn.MultiheadAttention`) gets the adapted one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import MergeError
from ..maths import low_rank
from ..variants.adapter import Adapter
from ..variants.lora import LoRA
from .offload import is_elsewhere, rebind_forward
from .state import AdapterState
from .tying import is_alone, is_plain

__all__ = ["LoRALayer", "attach", "base_class", "base_modules", "detach", "own_tensor"]


class LoRALayer(nn.Module):
    """A specialised layer. `adapters` holds name -> key -> Adapter; the base's parameters keep their keys."""

    adapters: nn.ModuleDict
    _lora_base: type[nn.Module]
    _lora_reads: frozenset[str]
    _lora: AdapterState
    _behind: dict[str, LoRA]  # adapter name -> the one that adds to the forward's output
    _reads: dict[str, dict[str, list[Adapter]]]  # parameter -> adapter name -> the ones its reader gets
    _originals: dict[str, Tensor]  # parameter -> the base's own tensor, while merged

    def carried(self, name: str) -> dict[str, Adapter]:
        """Return the adapters of one name by key, in the order in which they apply; empty where there are none."""
        group = self.adapters._modules.get(name)
        return {} if group is None else dict(group._modules)

    def effective(self, parameter: str) -> Tensor | None:
        """Return a parameter or buffer as its reader gets it: with the active adapters that live in the read."""
        value = own_tensor(self, parameter)
        if value is None or is_elsewhere(self, value):
            return value
        adapters = self._reads.get(parameter, {})
        for name in self._lora.active:
            for adapter in adapters.get(name, ()):
                value = adapter.effective(value)
        return value

    def merged_values(self, names: tuple[str, ...], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return every adapted parameter with the named adapters inside, new tensors of the base's dtype.

        dtype: widen the base's floating-point tensors to this first.
        Raises MergeError where the values cannot be had or are not finite; the layer is left unchanged.
        """
        values: dict[str, Tensor] = {}
        for name in names:
            for adapter in self.carried(name).values():
                values[adapter.parameter] = self._merge_one(adapter, values, dtype)
                if isinstance(adapter, LoRA) and adapter.lora_bias is not None:
                    values["bias"] = self._merge_bias(adapter, values, dtype)
        return values

    def _merge_one(self, adapter: Adapter, values: dict[str, Tensor], dtype: torch.dtype | None) -> Tensor:
        parameter = adapter.parameter
        value = values.get(parameter, own_tensor(self, parameter))
        if value is None or value.is_meta:
            raise MergeError(f"{parameter} of {type(self).__name__} is offloaded; load the model whole to merge it.")
        value = _widened(value, dtype)
        with torch.no_grad():
            merged = adapter.effective(value)
        self._check_finite(parameter, merged)
        return merged.contiguous() if merged is not getattr(adapter, "value", None) else merged.detach().clone()

    def _merge_bias(self, adapter: LoRA, values: dict[str, Tensor], dtype: torch.dtype | None) -> Tensor:
        bias = values.get("bias", own_tensor(self, "bias"))
        if bias is None:
            raise MergeError("lora_bias=True on a layer without a bias: there is no place in the base to merge it.")
        with torch.no_grad():
            merged = adapter.effective_bias(_widened(bias, dtype))
        self._check_finite("bias", merged)
        return merged

    def _check_finite(self, parameter: str, merged: Tensor) -> None:
        if merged.is_floating_point() and not low_rank.is_finite(merged):
            raise MergeError(f"merging into {parameter} of a {type(self).__name__} gives values that are not finite.")

    def merge_losses(
        self, names: tuple[str, ...], half_only: bool, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, float, float]]:
        """Yield (parameter, sum of squares of what rounding to its dtype loses, that of what the adapters change).

        dtype: what the parameters are widened to first. Three tensors of a parameter's size are made, not more.
        """
        chains: dict[str, list[Adapter]] = {}
        for adapter in self._named(names):
            chains.setdefault(adapter.parameter, []).append(adapter)
        for parameter, chain in chains.items():
            own = own_tensor(self, parameter)
            if own is None or own.is_meta or not own.is_floating_point() or not is_plain(own):
                continue
            own = _widened(own, dtype)
            if half_only and own.itemsize > 2:
                continue
            with torch.no_grad():
                base = own.to(torch.float64 if own.itemsize > 2 else torch.float32)
                exact, merged = base, own
                for adapter in chain:
                    exact, merged = adapter.effective(exact), adapter.effective(merged)
                yield parameter, low_rank.squared_distance(merged, exact), low_rank.squared_distance(exact, base)

    def check_merge(self, names: tuple[str, ...], dtype: torch.dtype | None = None) -> None:
        """Raise MergeError where `merged_values` would; it is tried only where the factors do not tell."""
        for adapter in self._named(names):
            own = own_tensor(self, adapter.parameter)
            change = adapter.largest_change() if isinstance(adapter, LoRA) else math.inf
            told = own is not None and not own.is_meta and own.is_floating_point()
            if not told or not low_rank.stays_finite(_widened(own, dtype), change):
                self.merged_values(names, dtype)
                return

    def merge_for_good(self, names: tuple[str, ...], shared: Collection[int]) -> None:
        """Put the named adapters into the parameters and forget the base's own values.

        shared: the memory that other parameters lie in (`tying.shared_memory`). What is a parameter's alone is written
        in place, where it is of the factors' dtype; anything else is replaced by a new one.
        """
        adapters = [(adapter, own_tensor(self, adapter.parameter)) for adapter in self._named(names)]
        if all(_adds_in_place(adapter, own, shared) for adapter, own in adapters):
            for adapter, own in adapters:
                adapter.add_to(own)
        else:
            self.swap_in(self.merged_values(names))
            self.forget_originals()

    def _named(self, names: tuple[str, ...]) -> list[Adapter]:
        return [adapter for name in names for adapter in self.carried(name).values()]

    def swap_in(self, values: dict[str, Tensor]) -> None:
        """Put merged values in the place of the base's own tensors, which are kept untouched for `swap_back`."""
        for parameter, value in values.items():
            own = own_tensor(self, parameter)
            assert own is not None
            self._originals[parameter] = own
            _put(self, parameter, nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value)

    def swap_back(self) -> None:
        """Put the base's own tensors back: the same objects, hence the same bits, and tied again where they were."""
        for parameter, own in self._originals.items():
            _put(self, parameter, own)
        self._originals.clear()

    def forget_originals(self) -> None:
        """Let go of the base's own tensors, so that what is merged stays."""
        self._originals.clear()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        rest = super().__reduce_ex__(protocol)[2:]
        return _rebuild, (self._lora_base, isinstance(self, _Behind), self._lora_reads), *rest


class _Behind(LoRALayer):
    """A layer with an adapter behind its forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(*args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        for adapter in self._in_use():
            y = adapter.add(self, x, y)
        return y

    def _in_use(self) -> list[LoRA]:
        return [self._behind[name] for name in self._lora.active if name in self._behind]


class _Linear(_Behind):
    """A layer whose own forward is the plain linear one: it and its first adapter compute as one."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *rest = self._in_use() or (None,)
        if first is None or not first.fuses or not is_plain(self._parameters.get("weight")):
            return super().forward(*args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        y = first.linear(self, x)
        for adapter in rest:
            y = adapter.add(self, x, y)
        return y


def attach(
    layer: nn.Module, state: AdapterState, name: str, adapters: dict[str, Adapter], behind: set[str]
) -> LoRALayer:
    """Give a layer the adapters of one name, specialising its class, and return it.

    adapters: key -> Adapter, in the order in which they apply. behind: the keys that add to the forward's output;
    the others live in the read. The layer's training flag and its own tensors are left as they are.
    """
    if not isinstance(layer, LoRALayer):
        layer.__dict__.update(_lora=state, _behind={}, _reads={}, _originals={})
        layer.add_module("adapters", nn.ModuleDict().train(layer.training))
        layer.__class__ = _specialised(type(layer), False, frozenset())
    assert isinstance(layer, LoRALayer)
    layer.adapters[name] = nn.ModuleDict(adapters).train(layer.training)
    for key, adapter in adapters.items():
        if key in behind:
            assert isinstance(adapter, LoRA)
            layer._behind[name] = adapter
        else:
            layer._reads.setdefault(adapter.parameter, {}).setdefault(name, []).append(adapter)
    _specialise(layer)
    return layer


def detach(layer: LoRALayer, name: str) -> None:
    """Take the adapters of one name away; with the last one the layer gets its own class back."""
    if name in layer.adapters:
        del layer.adapters[name]
    layer._behind.pop(name, None)
    for readers in layer._reads.values():
        readers.pop(name, None)
    layer._reads = {parameter: readers for parameter, readers in layer._reads.items() if readers}
    if layer.adapters:
        _specialise(layer)
        return
    base = layer._lora_base
    del layer.adapters
    for attribute in ("_lora", "_behind", "_reads", "_originals"):
        del layer.__dict__[attribute]
    layer.__class__ = base
    rebind_forward(layer, adapted=False)


def base_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a layer has without adapters."""
    return module._lora_base if isinstance(module, LoRALayer) else type(module)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (full name, module) as `named_modules` does, leaving out what adapters added."""
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module
        for child_name, child in module._modules.items():
            if child is not None and not (child_name == "adapters" and isinstance(module, LoRALayer)):
                yield from walk(child, f"{name}.{child_name}" if name else child_name)

    return walk(model, "")


def _specialise(layer: LoRALayer) -> None:
    layer.__class__ = _specialised(layer._lora_base, bool(layer._behind), frozenset(layer._reads))
    rebind_forward(layer)


_LINEAR_FORWARDS = (nn.Linear.forward, Conv1D.forward)


@cache
def _specialised(base: type[nn.Module], behind: bool, reads: frozenset[str]) -> type[nn.Module]:
    content: dict[str, Any] = {"_lora_base": base, "_lora_reads": reads, "__module__": base.__module__}
    content |= {parameter: property(_reader(parameter)) for parameter in reads}
    added = LoRALayer if not behind else _Linear if base.forward in _LINEAR_FORWARDS else _Behind
    return type(f"LoRA{base.__name__}", (added, base), content)


def _reader(parameter: str) -> Any:
    def read(self: LoRALayer) -> Tensor | None:
        return self.effective(parameter)

    return read


def _rebuild(base: type[nn.Module], behind: bool, reads: frozenset[str]) -> nn.Module:
    cls = _specialised(base, behind, reads)
    return cls.__new__(cls)


def _adds_in_place(adapter: Adapter, own: Tensor | None, shared: Collection[int]) -> bool:
    fits = isinstance(adapter, LoRA) and adapter.adds and own is not None and own.dtype == adapter.lora_A.dtype
    return fits and is_alone(own, shared)


def own_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """Return a module's own parameter or buffer, without adapters."""
    found = layer._parameters.get(name)
    return found if found is not None else layer._buffers.get(name)


def _widened(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() and is_plain(tensor) else tensor


def _put(layer: nn.Module, name: str, value: Tensor) -> None:
    if name in layer._parameters:
        layer._parameters[name] = value
    else:
        layer._buffers[name] = value
