"""Batches whose rows have adapters of their own: of one call, of `generate`, and in a block."""

import inspect
import re
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError, ArgumentError
from ..layers.routes import BASE, OFF, Route, Rows, mix_of
from ..layers.state import BLOCKS, AdapterState
from .hooks import around
from .row_inputs import below_turning, check_inputs, check_uncrossed
from .selecting import check_known, check_together

Given = Sequence[str | Sequence[str] | Mapping[str, float]]
_BY_NAMES = "adapter_names=[...] names one for each row of the batch; model.set_adapter(name) one for all"
# Arguments of a call that others have, or that are nearly ours -> what to write here.
NOT_TAKEN = {
    "alora_offsets": "hf_lora has no adapters that begin at a token",
    **dict.fromkeys(("adapter_name", "lora_request"), _BY_NAMES),
}
WORDS = ("adapter_names", *NOT_TAKEN)  # of a call
_SINGLE = re.compile(r"(?:^|\.)experts?[._]?\d+(?:\.|$)")  # experts that are layers of their own: experts.3.w1


def block(model: Any, names: object, rows: Given, whole: bool = False) -> AbstractContextManager[None]:
    """Return the block in which each row of a batch takes a route of its own; whole: one route is for all there is."""
    if names is not None:
        raise ArgumentError("adapters_active: give adapter_names, or rows, and not both.")
    return _taking(model, rows, "adapters_active", kwargs={} if whole else None)


def check(model: Any, rows: Given, what: str) -> None:
    """Raise AdapterNameError or ArgumentError where routes of rows cannot be what is asked for; what: who asks."""
    with BLOCKS:
        _rows_of(model, rows, what)


@torch.compiler.disable(recursive=False)  # the forward may be compiled; whose the rows are is no code
def called(model: Any, args: Sequence[Any], kwargs: dict[str, Any], compiled: bool = False) -> Any:
    """Return what one call of a model gives, with `adapter_names`, which is taken out of its arguments, or in a block.

    compiled: whether compiled code calls.
    Raises AdapterStateError where a batch has other rows than its block, and for arguments of `NOT_TAKEN`.
    """
    blocks = _entered(model, args, kwargs, compiled)
    try:
        output = nn.Module.__call__(model, *args, **kwargs)
        check_uncrossed(model, output)
        return output
    finally:
        _left(blocks)


@torch.compiler.disable
def _entered(model: Any, args: Sequence[Any], kwargs: dict[str, Any], compiled: bool) -> ExitStack:
    """Return the blocks of one call, which it is in now."""
    state: AdapterState = model._lora
    own = inspect.signature(model.forward).parameters
    _refuse_words(kwargs, own)
    names = None if "adapter_names" in own else kwargs.pop("adapter_names", None)
    compiled = compiled or model._compiled_call_impl is not None
    with ExitStack() as blocks:
        if names is not None:
            blocks.enter_context(_taking(model, names, "adapter_names=", args, kwargs, stays=compiled))
        if isinstance(route := state.route, Rows):
            count = check_inputs(model, route, args, kwargs)
            if compiled:
                blocks.enter_context(_in_places(model, route, count))
        elif compiled and type(route) is tuple:
            blocks.enter_context(_telling(state, route, None))
        return blocks.pop_all()


def _refuse_words(kwargs: Mapping[str, Any], own: Container[str]) -> None:
    """Raise AdapterStateError for arguments that name adapters elsewhere, which a model's **kwargs would swallow."""
    for word in NOT_TAKEN:
        if word in kwargs and word not in own:
            raise AdapterStateError(f"{word}=: {NOT_TAKEN[word]}.")


_left = torch.compiler.disable(ExitStack.close)


@around
def telling_compiled(method: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Wrap a model's `get_compiled_call`, with which `generate` compiles its steps, that tells them their routes."""
    compiled = method(self, *args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        with _entered(self, args, kwargs, compiled=True):
            return compiled(*args, **kwargs)

    return call


@around
def taking_names(
    generate: Callable[..., Any], self: Any, *args: Any, adapter_names: Given | None = None, **kwargs: Any
) -> Any:
    """Wrap a model's `generate`, to take `adapter_names`, one a row; what it repeats rows for stays with them."""
    state: AdapterState = self._lora
    _refuse_words(kwargs, ())
    with state.gate:  # one answer, one adapter: nothing is swapped in between
        route = state.route if state.is_routed else OFF
        if adapter_names is not None:
            with _taking(self, adapter_names, "generate(adapter_names=)", args, kwargs, repeats=True):
                return generate(self, *args, **kwargs)
        if isinstance(route, Rows) and not route.repeats:
            check_inputs(self, route, args, kwargs)
            with state.routed(route.repeated()):
                return generate(self, *args, **kwargs)
        return generate(self, *args, **kwargs)


_COMPILED = threading.RLock()  # held while a compiled call by row runs: its layers have factors for one at a time


@contextmanager
def _in_places(model: Any, rows: Rows, count: int | None) -> Iterator[None]:
    """Tell compiled code each row's route by its place in stacks of all adapters: other names are no new code."""
    state: AdapterState = model._lora
    names = tuple(state.records)
    places: dict[Route, int] = {OFF: 0, **{(name,): i for i, name in enumerate(names, 1)}}
    if strange := [route for route in rows.groups if route not in places]:
        raise AdapterStateError(
            f"{strange[0]}: in a compiled model a row names one adapter, without a "
            "weight. add_weighted_adapter(..., combination_type='cat') makes exactly one of several."
        )
    of_row = torch.tensor([places[rows.groups[i]] for i in rows.of_row], device=next(model.parameters()).device)
    with _COMPILED:
        for path, layer in state.layers.items():
            if path in state.turned or not layer._steps.have_factors(names, rows):
                raise AdapterStateError(f"{path}: a compiled model answers rows by plain LoRA on linear layers only.")
        with _telling(state, OFF, of_row.repeat_interleave((count or len(of_row)) // len(of_row))):
            yield


@contextmanager
def _telling(state: AdapterState, route: Route, of_row: Tensor | None) -> Iterator[None]:
    told = state.told
    before, told.route, told.of_row = (told.route, told.of_row), route, of_row
    try:
        yield
    finally:
        told.route, told.of_row = before


@contextmanager
def _taking(
    model: Any,
    given: Given,
    what: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    repeats: bool = False,
    stays: bool = False,
) -> Iterator[None]:
    """Take routes by row inside a `with` block; args, kwargs: of the one call that it is for."""
    state: AdapterState = model._lora
    with BLOCKS:
        rows = _rows_of(model, given, what)
    if model.training and torch.is_grad_enabled():
        _check_trains(state, rows, what)
    if kwargs is not None:
        check_inputs(model, rows, args or (), kwargs)
    is_one = kwargs is not None and len(rows.groups) == 1 and not stays
    route = rows.groups[0] if is_one else rows.repeated() if repeats else rows
    with state.routed(route, what, trains=model.training):
        yield


def _rows_of(model: Any, given: Given, what: str) -> Rows:
    state: AdapterState = model._lora
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence) or not given:
        raise ArgumentError(
            f"{what}: {given!r:.200} is given; what is wanted is a list with an entry a row: a name, {BASE!r}, a "
            "list of names or a mapping of names to weights."
        )
    rows = Rows([_route_of(state, each, what) for each in given])
    for route in rows.groups:
        check_together(state, route)
    if len(rows.groups) > 1 and state.looked_at is not state.layers:
        state.turned, state.singles = below_turning(model, state.layers), tuple(filter(_SINGLE.search, state.layers))
        state.looked_at = state.layers
    singles = state.singles if len(rows.groups) > 1 else ()
    if found := next((name for name in singles if any(map(state.layers[name].carried, rows))), None):
        raise AdapterStateError(
            f"{what}: {found} belongs to one expert, which gets tokens of any row: whose they are cannot be told. "
            "Compute each adapter's rows on their own, in `with model.adapters_active(name):`."
        )
    return rows


def _route_of(state: AdapterState, entry: Any, what: str) -> Route:
    if isinstance(entry, str) and entry == BASE:
        return OFF
    if isinstance(entry, Mapping):
        shares = dict(entry)
        if any(
            isinstance(w, bool) or not isinstance(w, Real) or w != w or abs(w) == float("inf") for w in shares.values()
        ):
            raise ArgumentError(f"{what}: {entry!r}: a weight is a finite number.")
    elif isinstance(entry, str):
        shares = {entry: 1.0}
    elif isinstance(entry, Sequence) and not isinstance(entry, bytes):
        check_known(state, entry)
        shares = dict.fromkeys(entry, 1.0)
    else:
        shares = {}
    if not shares:
        raise ArgumentError(f"{what}: {entry!r} for a row; a name, {BASE!r}, a list of names or a mapping is wanted.")
    check_known(state, tuple(shares), BASE)
    return mix_of(shares)


def _check_trains(state: AdapterState, rows: Rows, what: str) -> None:
    """Raise AdapterStateError where an adapter of a training batch would get no gradient."""
    for name in rows:
        first = next((p for each in state.carried(name) for p in each.adapter.trained()), None)
        if name in state.trainable and first is not None and not first.requires_grad:
            raise AdapterStateError(
                f"{what}: {name!r} would get no gradient, because only selected adapters train: call "
                f"set_requires_grad({list(rows)}) before. To train none, call eval(), or use torch.no_grad()."
            )
