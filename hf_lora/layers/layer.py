"""LoRALayer: a base layer whose class is specialised, so that it carries named adapters and stays what it was.

A layer keeps its place, name, parameters and hooks; only its class becomes `LoRA<Base>(LoRALayer, <Base>)`. There
are two ways in for an adapter. Behind the forward: y' = y + update(x, y), nothing of the weight's size is made.
In the read: the class gets a property for the parameter, so that whoever reads `layer.weight` (the layer's own
forward, or other code that never calls it, such as `nn.MultiheadAttention`) gets the adapted one. A layer that is
called here and read there has both: its own forward reads what is its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterStateError, full_name
from ..kinds.probe import forward_factor
from ..kinds.table import KINDS
from ..variants.adapter import Adapter, base_tensor, own_tensor
from ..variants.initial import taken_anew
from . import rows
from .offload import is_elsewhere, keep_flags
from .specialising import Specialised, base_of, refine, restore
from .state import AdapterState
from .steps import Steps, StepsOfReplica
from .tying import is_plain

__all__ = ["TAKEN", "LoRALayer", "attach", "base_modules", "detach", "effective", "own_tensor", "put_in_read", "watch"]

TAKEN = ("adapters", "_lora", "_originals", "_steps", "_watch")  # what a layer with adapters has besides its own
_MERGED = "hf_lora_merged"  # of a layer's entry in a state dict's metadata: parameters with adapters inside
_LINEAR_FORWARDS = (nn.Linear.forward, Conv1D.forward)


class LoRALayer(Specialised, nn.Module):
    """A specialised layer. `adapters` holds name -> key -> Adapter; the base's parameters keep their keys."""

    _lora_prefix = "LoRA"
    adapters: nn.ModuleDict
    _lora: AdapterState
    _steps: Steps
    _originals: dict[str, Tensor]  # parameter -> the base's own tensor, while merged
    _watch: Watch | None  # where somebody gave the layer itself a forward

    @classmethod
    def _lora_content(cls, base: type, *key: Any) -> dict[str, Any]:
        """Return the class's own forward, where adapters sit behind one, and a property for each parameter read.

        key: whether adapters sit behind the forward, the names of the parameters that are adapted in the read, and
        whether others read what sits behind the forward.
        """
        behind, reads, shown = key
        content: dict[str, Any] = {parameter: _property(parameter) for parameter in reads}
        if not behind:
            return {**content, "forward": _followed(base)}
        forward = _adapted(base)
        return {**content, "forward": _reading_its_own(forward) if shown else forward}

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica = super()._replicate_for_data_parallel()
        replica.__dict__["_steps"] = StepsOfReplica(self, replica)
        return replica

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move or cast the layer, and with it the tensors that merging set aside.

        What its forward multiplies by (a scaled embedding's) is rounded anew by a cast.
        """
        super()._apply(fn, recurse)
        for adapter in (a for group in self.adapters.values() for a in group._modules.values()):
            if getattr(adapter, "factor", 1.0) != 1.0:
                adapter.factor = forward_factor(KINDS[adapter.kind], self, base_of(type(self))) or adapter.factor
        for name, own in self._originals.items():
            with torch.no_grad():
                moved = fn(own.data)
            if torch._has_compatible_shallow_copy_type(own.data, moved):
                own.data = moved  # the same object, so that ties come back
            else:
                self._originals[name] = nn.Parameter(moved, False) if isinstance(own, nn.Parameter) else moved
        return self

    def __delattr__(self, name: str) -> None:
        if name in self._parameters:
            self._refuse_to_compute(name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter as torch does; what another will be computed from must not have adapters inside."""
        self._refuse_to_compute(name.rpartition("_")[0])
        super().register_parameter(name, param)

    def _refuse_to_compute(self, parameter: str) -> None:
        if parameter in self._steps.reads and parameter not in self.__dict__:
            raise AdapterStateError(
                f"{parameter} of {type(self).__name__} is read with its adapters inside, so it cannot be pruned, "
                "normalised or parametrised now: unload() the adapters, do it, and add or load them again."
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._originals and hasattr(destination, "_metadata"):
            destination._metadata.setdefault(prefix[:-1], {})[_MERGED] = sorted(self._originals)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        inside = local_metadata.get(_MERGED, ())
        for name in {*self._originals, *inside}:
            if f"{prefix}{name}" in state_dict and (name in inside) != (name in self._originals):
                what = "were merged into it when it was taken" if inside else "are merged into the model, not into it"
                raise AdapterStateError(
                    f"{prefix}{name} of a state dict: adapters {what}, so they would act twice or not at all. Call "
                    "unmerge_adapter() before either."
                )
        loaded = [a for n, a in self.adapters.named_modules() if f"{prefix}adapters.{n}.lora_A" in state_dict]
        with taken_anew(self, loaded):  # their factors are loaded after this
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def train(self, mode: bool = True) -> Any:
        """Set the training flag, and put the adapters behind a forward that the layer was given since."""
        watch(self)
        return super().train(mode)

    def behind(self, name: str) -> set[str]:
        """Return the keys of the adapters of one name that add to the output; the others live in the read."""
        return {key for key, adapter in self.carried(name).items() if self._steps.is_behind(name, adapter)}

    def carried(self, name: str) -> dict[str, Adapter]:
        """Return the adapters of one name by key, in the order in which they apply; empty where there are none."""
        group = self.adapters._modules.get(name)
        return {} if group is None else dict(group._modules)


def attach(
    layer: nn.Module,
    state: AdapterState,
    name: str,
    adapters: dict[str, Adapter],
    behind: set[str],
    shown: bool = False,
) -> LoRALayer:
    """Give a layer the adapters of one name, specialising its class, and return it.

    adapters: key -> Adapter, in the order in which they apply. behind: the keys that add to the forward's output;
    the others live in the read. shown: whether others read the layer too, which then get those behind it as well. The
    layer's training flag and its own tensors are left as they are.
    """
    if not isinstance(layer, LoRALayer):
        # Whether it computes x W^T + bias with a weight of torch's own, which one product can do together.
        fuses = base_of(type(layer)).forward in _LINEAR_FORWARDS and is_plain(layer._parameters.get("weight"))
        layer.add_module("adapters", nn.ModuleDict().train(layer.training))
        layer.__dict__.update(_lora=state, _originals={}, _steps=Steps(state, fuses, {}, {}), _watch=None)
        watch(layer)
    group = layer.adapters._modules.setdefault(name, nn.ModuleDict())
    group._modules.update(adapters)  # a parameter may be called what a method of ModuleDict is
    group.train(layer.training)
    layer._steps = layer._steps.having(name, adapters, behind, shown or layer._steps.shown)
    try:
        _specialise(layer)
    except BaseException:
        detach(layer, name)
        raise
    assert isinstance(layer, LoRALayer)
    return layer


def put_in_read(layer: LoRALayer) -> None:
    """Have every adapter of a layer live in the read of its parameter, for code that never calls the layer.

    What each computes stays the same up to rounding; a weight of the layer's size is made at every read.
    """
    layer._steps = layer._steps.all_read()
    _specialise(layer)


def detach(layer: LoRALayer, name: str) -> None:
    """Take the adapters of one name away; with the last one the layer gets its own class back."""
    layer._steps = layer._steps.without(name)
    if name in layer.adapters:
        del layer.adapters[name]
    if layer.adapters:
        _specialise(layer)
        return
    if isinstance(layer, LoRALayer):  # and not one whose class could not be made
        restore(layer)
        keep_flags(layer, False)
    for slot in ("forward", "_old_forward"):
        given = layer.__dict__.get(slot)
        if isinstance(given, partial) and given.func is _around:
            layer.__dict__[slot] = given.args[1]
    del layer.adapters
    kept = {"_lora"} if "_hf_peft_config_loaded" in layer.__dict__ else set()  # a model that is a layer itself goes on
    for attribute in {*TAKEN[1:]} - kept:
        del layer.__dict__[attribute]


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
                yield from walk(child, full_name(name, child_name))

    return walk(model, "")


def effective(layer: nn.Module, parameter: str) -> Tensor | None:
    """Return a parameter or buffer as its reader gets it: with the adapters of the route that live in the read."""
    value, steps = base_tensor(layer, parameter), getattr(layer, "_steps", None)
    if steps is None or (value is not None and is_elsewhere(layer, value)):
        return value
    for adapter in steps.in_read(layer, parameter, _READING.layer is layer):
        if parameter == adapter.parameter:
            value = None if value is None else adapter.run(adapter.effective, value)
        else:
            value = adapter.run(adapter.effective_bias, value)
    return value


def _specialise(layer: nn.Module) -> None:
    steps: Steps = layer._steps
    refine(layer, LoRALayer, steps.has_behind, steps.reads, steps.shown)
    keep_flags(layer, True)


class Watch(threading.local):
    """Whether the forward of a layer's class ran in this thread since it was last asked for."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()


def watch(layer: nn.Module) -> None:
    """Put the adapters of a layer behind a forward that somebody gave the layer itself, if that leaves them out.

    It may wrap the forward of the layer's class, which has them, or compute on its own. accelerate's hook keeps the one
    that it wraps as `_old_forward`.
    """
    slot = "_old_forward" if "_old_forward" in layer.__dict__ else "forward"
    given = layer.__dict__.get(slot)
    is_known = getattr(given, "__func__", None) is type(layer).forward or getattr(given, "func", None) is _around
    if given is not None and not is_known:
        layer.__dict__[slot], layer.__dict__["_watch"] = partial(_around, layer, given), Watch()


def _around(self: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if self._steps.rows() is not None:
        return rows.compute(self, lambda layer, *a, **k: _around(layer, forward, *a, **k), None, args, kwargs)
    self._watch.ran = False
    y = _reading_its_own(lambda _, *a, **k: forward(*a, **k))(self, *args, **kwargs)
    if self._watch.ran:
        return y
    fused, behind = self._steps.behind()
    return _added(self, behind if fused is None else (fused, *behind), _input(args, kwargs), y)


def _added(layer: Any, behind: Iterable[Adapter], x: Any, y: Any) -> Any:
    """Return a layer's output y for its input x with what adapters add to it."""
    for adapter in behind:
        y = adapter.run(adapter.add, layer, x, y)
    return y


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _adapted(base: Any) -> Callable[..., Any]:
    """Return the forward of a layer with adapters behind it, also behind what its base's class is patched with."""
    known = base.forward

    def lora_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if (watch := self.__dict__.get("_watch")) is not None:
            watch.ran = True
        forward, steps = base.forward, getattr(self, "_steps", None)
        if steps is None:  # another thread took the last adapter away in between
            return forward(self, *args, **kwargs)
        chosen = steps.behind()
        if chosen is None:
            return rows.compute(self, lora_forward, forward, args, kwargs)
        fused, behind = chosen
        if fused is None and not behind:
            return forward(self, *args, **kwargs)
        if fused is not None and forward is not known:
            fused, behind = None, (fused, *behind)
        x = _input(args, kwargs)
        y = forward(self, *args, **kwargs) if fused is None else fused.run(fused.linear, self, x)
        return _added(self, behind, x, y)

    return lora_forward


class Reading(threading.local):
    """The layer whose own forward runs in this thread, where others read that layer as well."""

    layer: nn.Module | None = None


_READING = Reading()


def _reading_its_own(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's forward that reads its parameters without what it adds to its output."""

    def own_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        outer, _READING.layer = _READING.layer, self
        try:
            return forward(self, *args, **kwargs)
        finally:
            _READING.layer = outer

    return own_forward


def _followed(base: Any) -> Callable[..., Any]:
    """Return the forward of a layer whose adapters live in reads, which takes rows of different adapters apart."""

    @wraps(base.forward)
    def followed_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward, steps = base.forward, getattr(self, "_steps", None)
        if steps is None or steps.rows() is None:
            return forward(self, *args, **kwargs)
        return rows.compute(self, followed_forward, forward, args, kwargs)

    return followed_forward


def _property(parameter: str) -> property:
    """Return what stands in a class for a parameter that is adapted where it is read."""

    def read(self: nn.Module) -> Tensor | None:
        value = effective(self, parameter)
        if value is None and parameter not in {**self._parameters, **self._buffers}:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {parameter!r}")
        return value

    def write(self: nn.Module, value: Tensor) -> None:
        """Take what is computed in a parameter's place: by pruning, or on a replica of nn.DataParallel."""
        if parameter in self.__dict__:
            self.__dict__[parameter] = value
        elif not getattr(self, "_is_replica", False):  # it is among a replica's former parameters as well
            raise AttributeError("an adapted parameter is set as a Parameter, or as a tensor where it is a buffer.")

    def delete(self: nn.Module) -> None:
        del self.__dict__[parameter]

    return property(read, write, delete)
