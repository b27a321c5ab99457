"""What the adapters of one layer do in a forward, chosen when they are attached and looked up by the route.

An adapter either computes as one with the layer's own product, or is added behind it, or lives in the read of a
parameter. A layer's Steps never change: attaching and detaching give the layer new ones, so that a forward in another
thread goes on with those it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..variants.adapter import Adapter
from .state import AdapterState

__all__ = ["Steps", "StepsOfReplica", "in_order"]

Adapters = tuple[Adapter, ...]
Behind = tuple[Adapter | None, Adapters]  # the one that computes with the base's product; those added to it
NOTHING: Behind = (None, ())


def in_order(adapters: Iterable[Adapter]) -> list[Adapter]:
    """Return adapters of a layer as they act: copies (rows, biases) first, then what is added to them.

    So the names' order has no say where one adapter trains rows of a table to which another adds a product.
    """
    return sorted(adapters, key=lambda adapter: adapter.low_rank)


class Steps:
    """The steps of one layer's adapters.

    fuses: whether the layer's own forward is the plain product that an adapter can compute together with its own.
    added: by name, the adapters that add to the output, in the order in which they apply. read: by name, the others.
    """

    def __init__(
        self, state: AdapterState, fuses: bool, added: Mapping[str, Adapters], read: Mapping[str, Adapters]
    ) -> None:
        self._state, self._fuses, self._added, self._read = state, fuses, added, read
        self._behind = {name: self._chosen(adapters) for name, adapters in added.items()}
        self.has_behind = any(added.values())
        self.reads = tuple(sorted({adapter.parameter for adapters in read.values() for adapter in adapters}))

    def behind(self) -> Behind:
        """Return what the route of this forward does besides the base's own forward."""
        route = self._state.route
        if len(route) == 1:
            return self._behind.get(route[0], NOTHING)
        return self._chosen(tuple(adapter for name in route for adapter in self._added.get(name, ())))

    def in_read(self, parameter: str) -> Iterator[Adapter]:
        """Return the adapters of the route that live in the read of a parameter, copies before what is added to them."""
        named = self._read
        held = [a for name in self._state.route for a in named.get(name, ()) if a.parameter == parameter]
        return iter(in_order(held) if len(held) > 1 else held)

    def having(self, name: str, adapters: Mapping[str, Adapter], behind: set[str]) -> Steps:
        """Return these steps with further adapters of a name; behind: the keys of those that add to the output."""
        added = *self._added.get(name, ()), *(adapter for key, adapter in adapters.items() if key in behind)
        read = *self._read.get(name, ()), *(adapter for key, adapter in adapters.items() if key not in behind)
        return Steps(self._state, self._fuses, {**self._added, name: added}, {**self._read, name: read})

    def all_read(self) -> Steps:
        """Return these steps with every adapter in the read of its parameter."""
        read = {name: (*self._read.get(name, ()), *self._added.get(name, ())) for name in {**self._read, **self._added}}
        return Steps(self._state, self._fuses, {}, read)

    def without(self, name: str) -> Steps:
        """Return these steps without the adapters of a name."""
        kept = ({key: each for key, each in table.items() if key != name} for table in (self._added, self._read))
        return Steps(self._state, self._fuses, *kept)

    def is_behind(self, name: str, adapter: Adapter) -> bool:
        """Return whether an adapter of a name adds to the output; else it lives in the read."""
        return adapter in self._added.get(name, ())

    def on(self, found: Callable[[Adapter], Adapter]) -> Steps:
        """Return these steps of other adapters; found: gives each adapter's counterpart."""
        tables = ({name: tuple(map(found, each)) for name, each in t.items()} for t in (self._added, self._read))
        return Steps(self._state, self._fuses, *tables)

    def _chosen(self, adapters: Adapters) -> Behind:
        """Return what these adapters do together: the first computes with the base's product where both can."""
        return (adapters[0], adapters[1:]) if self._fuses and adapters and adapters[0].fuses else (None, adapters)


class StepsOfReplica:
    """The steps of a layer's replica, whose own adapters nn.DataParallel gives it after it is made."""

    def __init__(self, layer: Any, replica: Any) -> None:
        self._layer, self._replica = layer, replica

    def behind(self) -> Behind:
        """Return what the route of this forward does besides the base's own forward."""
        return self._own().behind()

    def in_read(self, parameter: str) -> Iterator[Adapter]:
        """Return the adapters of the route that live in the read of a parameter."""
        return self._own().in_read(parameter)

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
