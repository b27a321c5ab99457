"""What the adapters of one layer do in a forward, chosen when they are attached and looked up by the route.

An adapter either computes as one with the layer's own product, or is added behind it, or lives in the read of a
parameter. A layer's Steps never change: attaching and detaching give the layer new ones, so that a forward in another
thread goes on with those it began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from ..variants.adapter import Adapter
from .state import AdapterState

__all__ = ["Steps"]

Behind = tuple[Adapter | None, tuple[Adapter, ...]]  # the one that computes with the base's product; those added to it
Reads = Mapping[str, tuple[Adapter, ...]]  # parameter -> those that its reader gets, in order
NOTHING: Behind = (None, ())
_T = TypeVar("_T")


class Steps:
    """The steps of one layer's adapters.

    fuses: whether the layer's own forward is the plain product that an adapter can compute together with its own.
    """

    def __init__(
        self,
        state: AdapterState,
        fuses: bool,
        behind: Mapping[str, Behind] | None = None,
        in_read: Mapping[str, Reads] | None = None,
    ) -> None:
        self._state, self._fuses = state, fuses
        self._behind, self._in_read = behind or {}, in_read or {}
        self.has_behind = bool(self._behind)
        self.reads = tuple(sorted(set().union(*self._in_read.values())))

    def behind(self) -> Behind:
        """Return what the route of this forward does besides the base's own forward."""
        route = self._state.route
        if len(route) == 1:
            return self._behind.get(route[0], NOTHING)
        return self._chosen(adapter for name in route for adapter in _adapters(self._behind.get(name, NOTHING)))

    def in_read(self, parameter: str) -> Iterator[Adapter]:
        """Yield the adapters of the route that live in the read of a parameter."""
        for name in self._state.route:
            yield from self._in_read.get(name, {}).get(parameter, ())

    def having(self, name: str, adapters: Mapping[str, Adapter], behind: set[str]) -> Steps:
        """Return these steps with further adapters of a name; behind: the keys of those that add to the output."""
        added = (adapter for key, adapter in adapters.items() if key in behind)
        step = self._chosen((*_adapters(self._behind.get(name, NOTHING)), *added))
        reads = dict(self._in_read.get(name, {}))
        for key, adapter in adapters.items():
            if key not in behind:
                reads[adapter.parameter] = (*reads.get(adapter.parameter, ()), adapter)
        return Steps(
            self._state,
            self._fuses,
            _set(self._behind, name, step if step != NOTHING else None),
            _set(self._in_read, name, reads),
        )

    def without(self, name: str) -> Steps:
        """Return these steps without the adapters of a name."""
        return Steps(self._state, self._fuses, _set(self._behind, name, None), _set(self._in_read, name, None))

    def _chosen(self, adapters: Iterable[Adapter]) -> Behind:
        """Return what these adapters do together: the first computes with the base's product where both can."""
        every = tuple(adapters)
        return (every[0], every[1:]) if self._fuses and every and every[0].fuses else (None, every)


def _adapters(step: Behind) -> tuple[Adapter, ...]:
    fused, added = step
    return added if fused is None else (fused, *added)


def _set(table: Mapping[str, _T], name: str, value: _T | None) -> Mapping[str, _T]:
    """Return a table with a name's value, or without the name where the value is empty."""
    if value:
        return {**table, name: value}
    return {key: each for key, each in table.items() if key != name} if name in table else table
