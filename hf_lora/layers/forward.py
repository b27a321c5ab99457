"""What a layer with adapters computes: its forward, and what the readers of its parameters get.

Behind the forward: what the base's gives, and what adapters add. In the read: a property of the class.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Any

from torch import Tensor, nn

from ..variants.adapter import Adapter, base_tensor
from . import experts, rows
from .offload import is_elsewhere


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


def unwatch(layer: nn.Module) -> None:
    """Give a layer back the forward that it was given, as it was."""
    for slot in ("forward", "_old_forward"):
        given = layer.__dict__.get(slot)
        if isinstance(given, partial) and given.func is _around:
            layer.__dict__[slot] = given.args[1]


def _around(self: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if self._steps.rows() is not None:
        if experts.has_stack(self):
            experts.experts_of(self, args, kwargs)
        return rows.compute(self, lambda layer, *a, **k: _around(layer, forward, *a, **k), None, args, kwargs)
    self._watch.ran = False
    y = reading_its_own(lambda _, *a, **k: forward(*a, **k))(self, *args, **kwargs)
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


def adapted(base: Any) -> Callable[..., Any]:
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
    """The layer whose own forward runs in this thread, where others read that layer as well.

    stacks: the one whose class's forward runs, and what it has read, by parameter, where that is of several matrices.
    """

    layer: nn.Module | None = None
    stacks: tuple[nn.Module | None, dict[str, Any]] = None, {}


_READING = Reading()


def reading_its_own(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's forward that reads its parameters without what it adds to its output."""

    def own_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        outer, _READING.layer = _READING.layer, self
        try:
            return forward(self, *args, **kwargs)
        finally:
            _READING.layer = outer

    return own_forward


def followed(base: Any) -> Callable[..., Any]:
    """Return the forward of a layer whose adapters live in reads, which takes rows of different adapters apart."""

    @wraps(base.forward)
    def followed_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward, steps = base.forward, getattr(self, "_steps", None)
        if steps is None:
            return forward(self, *args, **kwargs)
        if steps.rows() is not None:
            if experts.has_stack(self):
                return experts.by_row(self, followed_forward, base, args, kwargs)
            return rows.compute(self, followed_forward, None, args, kwargs)
        if not experts.is_understood(self):
            return forward(self, *args, **kwargs)
        outer, _READING.stacks = _READING.stacks, (self, {})
        try:
            return forward(self, *args, **kwargs)
        finally:
            _READING.stacks = outer

    return followed_forward


def read_property(parameter: str) -> property:
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


def effective(layer: nn.Module, parameter: str) -> Tensor | None:
    """Return a parameter or buffer as its reader gets it: with the adapters of the route that live in the read."""
    value, steps = base_tensor(layer, parameter), getattr(layer, "_steps", None)
    if steps is None or (value is not None and is_elsewhere(layer, value)):
        return value
    adapters = steps.in_read(layer, parameter, _READING.layer is layer)
    reader, found = _READING.stacks
    if reader is layer and value is not None and value.ndim == 3:
        if parameter not in found:
            found[parameter] = experts.with_products(value, adapters)
        return found[parameter]
    for adapter in adapters:
        if parameter == adapter.parameter:
            value = None if value is None else adapter.run(adapter.effective, value)
        else:
            value = adapter.run(adapter.effective_bias, value)
    return value
