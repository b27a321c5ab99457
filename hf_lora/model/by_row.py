"""Batches whose rows have adapters of their own: of one call, of `generate`, and in a block."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterStateError, ArgumentError
from ..layers.routes import BASE, OFF, Route, Rows, mix_of
from ..layers.state import BLOCKS, AdapterState
from .selecting import check_known, check_together

__all__ = ["block", "of_call", "taking_names"]

Given = Sequence[str | Sequence[str] | Mapping[str, float]]
_INPUTS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids")


def block(model: Any, names: object, rows: Given) -> AbstractContextManager[None]:
    """Return the block in which each row of a batch takes a route of its own."""
    if names is not None:
        raise ArgumentError("adapters_active: give adapter_names, or rows, and not both.")
    return _taking(model, rows, "adapters_active")


def of_call(model: Any, args: Sequence[Any], kwargs: MutableMapping[str, Any]) -> AbstractContextManager[None]:
    """Return the block of one call of a model: with `adapter_names`, which is taken out of the arguments, or none.

    Raises AdapterStateError where a batch has other rows than its block, and for `alora_offsets`.
    """
    state: AdapterState = model._lora
    if kwargs.keys().isdisjoint(("adapter_names", "alora_offsets")):
        if state.is_routed and isinstance(route := state.route, Rows):
            _check_count(model, route, args, kwargs)
        return nullcontext()
    own = inspect.signature(model.forward).parameters
    if "alora_offsets" in kwargs and "alora_offsets" not in own:
        raise AdapterStateError("alora_offsets=: hf_lora has no adapters that begin at a token.")
    if "adapter_names" not in kwargs or "adapter_names" in own:
        return nullcontext()
    names = kwargs.pop("adapter_names")
    if names is not None and getattr(model, "_compiled_call_impl", None) is not None:
        raise AdapterStateError(
            "adapter_names=: a compiled model cannot tell rows apart. Group the rows by adapter and call "
            "set_adapter(name) for each group, or answer them with the model that is not compiled."
        )
    return nullcontext() if names is None else _taking(model, names, "adapter_names=", args, kwargs)


def taking_names(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model's `generate` that takes `adapter_names`, one a row; what it repeats rows for stays with them."""

    @wraps(generate)
    def generate_by_row(self: Any, *args: Any, adapter_names: Given | None = None, **kwargs: Any) -> Any:
        state: AdapterState = self._lora
        with state.gate:  # one answer, one adapter: nothing is swapped in between
            route = state.route if state.is_routed else OFF
            if adapter_names is not None:
                with _taking(self, adapter_names, "generate(adapter_names=)", args, kwargs, repeats=True):
                    return generate(self, *args, **kwargs)
            if isinstance(route, Rows) and not route.repeats:
                _check_count(self, route, args, kwargs)
                with state.routed(route.repeated()):
                    return generate(self, *args, **kwargs)
            return generate(self, *args, **kwargs)

    return generate_by_row


@contextmanager
def _taking(
    model: Any,
    given: Given,
    what: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    repeats: bool = False,
) -> Iterator[None]:
    """Take routes by row inside a `with` block; args, kwargs: of the one call that it is for."""
    state: AdapterState = model._lora
    with BLOCKS:
        rows = _rows_of(state, given, what)
    if model.training and torch.is_grad_enabled():
        _check_trains(state, rows, what)
    if kwargs is not None:
        _check_count(model, rows, args or (), kwargs)
    route = rows.groups[0] if kwargs is not None and len(rows.groups) == 1 else rows.repeated() if repeats else rows
    with state.routed(route, what, trains=model.training):
        yield


def _rows_of(state: AdapterState, given: Given, what: str) -> Rows:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence) or not given:
        raise ArgumentError(
            f"{what}: {given!r:.200} is given; what is wanted is a list with an entry a row: a name, {BASE!r}, a "
            "list of names or a mapping of names to weights."
        )
    rows = Rows([_route_of(state, each, what) for each in given])
    for route in rows.groups:
        check_together(state, route)
    return rows


def _route_of(state: AdapterState, entry: Any, what: str) -> Route:
    if entry == BASE:
        return OFF
    if isinstance(entry, Mapping):
        shares = dict(entry)
        if any(
            isinstance(w, bool) or not isinstance(w, int | float) or w != w or abs(w) == float("inf")
            for w in shares.values()
        ):
            raise ArgumentError(f"{what}: {entry!r}: a weight is a finite number.")
    elif isinstance(entry, str):
        shares = {entry: 1.0}
    elif isinstance(entry, Sequence) and not isinstance(entry, bytes):
        shares = dict.fromkeys(entry, 1.0)
    else:
        raise ArgumentError(f"{what}: {entry!r} for a row; a name, {BASE!r}, a list of names or a mapping is wanted.")
    check_known(state, tuple(shares))
    return mix_of(shares)


def _check_trains(state: AdapterState, rows: Rows, what: str) -> None:
    """Raise AdapterStateError where an adapter of a training batch would get no gradient."""
    for name in rows:
        held = (adapter for layer in state.layers.values() for adapter in layer.carried(name).values())
        first = next((p for adapter in held for p in adapter.parameters() if p.is_floating_point()), None)
        if name in state.trainable and first is not None and not first.requires_grad:
            raise AdapterStateError(
                f"{what}: {name!r} would get no gradient, because only selected adapters train: call "
                f"set_requires_grad({list(rows)}) before, or compute under torch.no_grad()."
            )


def _check_count(model: Any, rows: Rows, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise AdapterStateError where a call's batch has not as many rows as there are routes."""
    names = (*_INPUTS, getattr(model, "main_input_name", "input_ids"))
    found = next(
        (each for each in (*args[:1], *map(kwargs.get, names)) if isinstance(each, Tensor) and each.ndim), None
    )
    count, wanted = None if found is None else len(found), len(rows.of_row)
    if count is not None and (count % wanted if rows.repeats else count != wanted):
        raise AdapterStateError(f"a batch of {count} rows, with adapters named for {wanted}; name one for each row.")
