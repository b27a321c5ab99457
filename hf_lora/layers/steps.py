"""What the adapters of one layer do in a forward, chosen when they are attached and looked up by the route.

An adapter either computes as one with the layer's own product, or is added behind it, or lives in the read of a
parameter. Where others read a layer that is called as well (shown), what is behind it lives in their reads, too. A
layer's Steps never change: attaching and detaching give the layer new ones, so that a forward in another thread goes on
with those it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import AdapterStateError
from ..variants.adapter import Adapter
from .routes import OFF, Mix, Route, Rows
from .rows import Stack, name_in, stack_of
from .state import AdapterState

Adapters = tuple[Adapter, ...]
Behind = tuple[Adapter | None, Adapters]  # the one that computes with the base's product; those added to it
NOTHING: Behind = (None, ())
_NO_NAMES: Mapping[str, Behind] = {}


def in_order(adapters: Iterable[Adapter]) -> list[Adapter]:
    """Return adapters of a layer as they act: copies (rows, biases) first, then what is added to them.

    So the names' order has no say where one adapter trains rows of a table to which another adds a product.
    """
    return sorted(adapters, key=lambda adapter: adapter.low_rank)


def _changed(adapter: Adapter) -> tuple[str, ...]:
    return (adapter.parameter, "bias") if adapter.changes_bias else (adapter.parameter,)


class Steps:
    """The steps of one layer's adapters.

    fuses: whether the layer's own forward is the plain product that an adapter can compute together with its own.
    added: by name, the adapters that add to the output, in the order in which they apply. read: by name, the others.
    shown: whether those that add to the output are also in what others read. known: what the adapters of some names are
    known to do together, so that a hundredth one costs what the first does.
    """

    def __init__(
        self,
        state: AdapterState,
        fuses: bool,
        added: Mapping[str, Adapters],
        read: Mapping[str, Adapters],
        shown: bool = False,
        known: Mapping[str, Behind] = _NO_NAMES,
    ) -> None:
        self._state, self._fuses, self._added, self._read, self.shown = state, fuses, added, read, shown
        new = {name: self._chosen(added[name]) for name in added.keys() - known.keys()}
        self._behind = {**known, **new}
        self.has_behind = any(added.values())
        seen = (*read.values(), *(added.values() if shown else ()))
        self.reads = tuple(sorted({name for adapters in seen for a in adapters for name in _changed(a)}))
        self._stacks: dict[str, tuple[Any, Stack]] = {}  # of the routes that computed here last
        self.factors: tuple[Tensor, Tensor] | None = None  # of every place, for a compiled call that runs

    def behind(self) -> Behind | None:
        """Return what the route of this forward does besides the base's own forward.

        None where the rows of the batch have routes of their own, and some of them lead through here.
        """
        route = self._state.route
        if not route and self._state.told.of_row is not None:
            return NOTHING if self.factors is None else None
        if type(route) is not tuple:
            if isinstance(route, Rows):
                return None if self._has_any(route) else NOTHING
            return self._chosen(self._of(route, self._added))
        if len(route) == 1:
            return self._behind.get(route[0], NOTHING)
        return self._chosen(self._of(route, self._added))

    def rows(self) -> Rows | None:
        """Return the route where each row of the batch has one of its own, and some of them lead through here."""
        route = self._state.route
        return route if isinstance(route, Rows) and self._has_any(route) else None

    def stacked(self, routes: tuple[Route, ...], parameter: str = "") -> Stack | None:
        """Return the factors of routes in one stack, None where some of them do more than a product.

        parameter: that of a stack of matrices, whose adapters live in its read.
        """
        if (kept := self._stacks.get(parameter)) is not None and kept[0] == routes and kept[1].is_current():
            return kept[1]
        if not parameter and any(self._read.get(name) for route in routes for name in route):
            return None
        if parameter:
            made = stack_of([tuple(self._held(route, parameter, False)) for route in routes])
        else:
            made = stack_of([self._of(route, self._added) for route in routes])
        if made is not None and made.is_current():
            self._stacks[parameter] = routes, made
        return made

    def have_factors(self, names: Sequence[str], used: Collection[str]) -> bool:
        """Have the factors of names, each in its place behind that of no adapter, for a compiled call.

        Those that do more than a product have zeros there. Return whether none of these are used.
        """
        plain = {name for name in names if self._is_product(name)}
        stack = self.stacked((OFF, *((name,) if name in plain else OFF for name in names)))
        self.factors = None if stack is None else (stack.a, stack.b)
        return not any(name not in plain and self._has_any([name]) for name in used)

    def forget_stack(self) -> None:
        """Keep no factors for the next forward: some of them begin to train, which nobody sees."""
        self._stacks = {}

    def in_read(self, layer: Any, parameter: str, own: bool = False) -> Iterator[Adapter]:
        """Return the adapters of the route that live in the read of a parameter, copies before what is added to them.

        own: in that of the layer's own forward.
        """
        route = self._state.route
        if isinstance(route, Rows):
            return iter(self._alike(route, layer, parameter, own))
        return iter(self._held(route, parameter, own))

    def having(self, name: str, adapters: Mapping[str, Adapter], behind: set[str], shown: bool) -> Steps:
        """Return these steps with further adapters of a name; behind: the keys of those that add to the output."""
        added = *self._added.get(name, ()), *(adapter for key, adapter in adapters.items() if key in behind)
        read = *self._read.get(name, ()), *(adapter for key, adapter in adapters.items() if key not in behind)
        known = {**self._behind}
        known.pop(name, None)
        return Steps(self._state, self._fuses, {**self._added, name: added}, {**self._read, name: read}, shown, known)

    def all_read(self) -> Steps:
        """Return these steps with every adapter in the read of its parameter."""
        read = {name: (*self._read.get(name, ()), *self._added.get(name, ())) for name in {**self._read, **self._added}}
        return Steps(self._state, self._fuses, {}, read)

    def without(self, name: str) -> Steps:
        """Return these steps without the adapters of a name."""
        added, read = ({k: each for k, each in table.items() if k != name} for table in (self._added, self._read))
        return Steps(self._state, self._fuses, added, read, self.shown)

    def is_behind(self, name: str, adapter: Adapter) -> bool:
        """Return whether an adapter of a name adds to the output; else it lives in the read."""
        return adapter in self._added.get(name, ())

    def on(self, found: Callable[[Adapter], Adapter]) -> Steps:
        """Return these steps of other adapters; found: gives each adapter's counterpart."""
        added, read = ({k: tuple(map(found, each)) for k, each in t.items()} for t in (self._added, self._read))
        return Steps(self._state, self._fuses, added, read, self.shown)

    def _of(self, route: Route, *tables: Mapping[str, Adapters]) -> Adapters:
        if isinstance(route, Mix):
            shares = tuple(zip(route, route.weights, strict=True))
            return tuple(a.weighted(weight) for name, weight in shares for t in tables for a in t.get(name, ()))
        return tuple(a for name in route for table in tables for a in table.get(name, ()))

    def _held(self, route: Route, parameter: str, own: bool) -> list[Adapter]:
        tables = (self._read, self._added) if self.shown and not own else (self._read,)
        held = [a for a in self._of(route, *tables) if parameter in _changed(a)]
        return in_order(held) if len(held) > 1 else held

    def _is_product(self, name: str) -> bool:
        added = () if self.shown or self._read.get(name) else self._added.get(name, ())
        return bool(added) and all(adapter.plain_product() is not None for adapter in added)

    def _has_any(self, route: Sequence[str]) -> bool:
        return any(self._added.get(name) or self._read.get(name) for name in route)

    def _alike(self, rows: Rows, layer: Any, parameter: str, own: bool) -> list[Adapter]:
        """Return the adapters of a parameter where they are the same for every row of a batch."""
        found = [self._held(route, parameter, own) for route in rows.groups]
        if any(each != found[0] for each in found):
            raise AdapterStateError(
                f"{name_in(self._state, layer)}.{parameter} is read by code that does not call its layer, for a batch "
                "whose rows have adapters of their own: whose it is cannot be told there. Compute each adapter's rows "
                "on their own, in `with model.adapters_active(name):`."
            )
        return found[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stacks": {}, "factors": None}

    def _chosen(self, adapters: Adapters) -> Behind:
        """Return what these adapters do together: the first computes with the base's product where both can."""
        return (adapters[0], adapters[1:]) if self._fuses and adapters and adapters[0].fuses else (None, adapters)


class StepsOfReplica:
    """The steps of a layer's replica, whose own adapters nn.DataParallel gives it after it is made."""

    def __init__(self, layer: Any, replica: Any) -> None:
        self._layer, self._replica = layer, replica

    def behind(self) -> Behind | None:
        """Return what the route of this forward does besides the base's own forward."""
        return self._own().behind()

    def rows(self) -> Rows | None:
        """Return the route where each row of the batch has one of its own, and some of them lead through here."""
        return self._own().rows()

    def in_read(self, layer: Any, parameter: str, own: bool = False) -> Iterator[Adapter]:
        """Yield the adapters of the route that live in the read of a parameter; own: in that of the layer's forward."""
        return self._own().in_read(layer, parameter, own)

    def _own(self) -> Steps:
        groups = self._layer.adapters._modules
        replicas = {
            adapter: self._replica.adapters._modules[name]._modules[key]
            for name, group in groups.items()
            for key, adapter in group._modules.items()
        }
        steps: Steps = self._layer._steps.on(replicas.__getitem__)
        self._replica.__dict__["_steps"] = steps
        return steps
