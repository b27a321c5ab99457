"""What a forward can be told besides plain names: adapters with weights, and adapters of their own for each row.

A plain route is a tuple of names. These are tuples of names too, so that whoever asks which adapters a route uses
(deleting, merging) need not know them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Route = tuple[str, ...]
OFF: Route = ()
BASE = "__base__"  # PEFT's word for a row that no adapter answers


class Mix(tuple[str, ...]):
    """A route whose adapters act with weights: the update of each is multiplied by its own."""

    weights: tuple[float, ...]

    def __new__(cls, shares: Mapping[str, float]) -> Mix:
        self = super().__new__(cls, shares)
        self.weights = tuple(shares.values())
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mix) and (*self, *self.weights) == (*other, *other.weights)

    def __hash__(self) -> int:
        return hash((*self, *self.weights))


def mix_of(shares: Mapping[str, float]) -> Route:
    """Return the route of adapters with weights; a plain one where every weight is 1. What weighs 0 is left out."""
    kept = {name: float(weight) for name, weight in shares.items() if weight}
    return tuple(kept) if all(weight == 1 for weight in kept.values()) else Mix(kept)


class Rows(tuple[str, ...]):
    """A route for each row of a batch.

    groups: the different routes. of_row: for each row the index of its route. repeats: whether a row may come several
    times, one after the other (beams, several answers), in a forward of the whole model.
    """

    groups: tuple[Route, ...]
    of_row: tuple[int, ...]
    repeats: bool
    _indices: dict[Any, Any]

    def __new__(cls, routes: Sequence[Route], repeats: bool = False) -> Rows:
        groups = tuple(dict.fromkeys(routes))
        self = super().__new__(cls, dict.fromkeys(name for group in groups for name in group))
        self.groups, self.repeats = groups, repeats
        self.of_row = tuple(map(groups.index, routes))
        self._indices = {}
        return self

    def repeated(self) -> Rows:
        """Return the same rows for forwards in which each may come several times."""
        return Rows([self.groups[i] for i in self.of_row], True)

    def place_of_each(self, device: torch.device) -> Tensor | None:
        """Return the index of each row's route, None where each route has as many rows, one after the other."""
        each, rest = divmod(len(self.of_row), len(self.groups))
        if not rest and self.of_row == tuple(i for i in range(len(self.groups)) for _ in range(each)):
            return None
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.of_row, device=device)
        found: Tensor = self._indices[device]
        return found

    def during(self, group: int) -> AbstractContextManager[None]:
        """Return the block in which a layer computes the rows of one group by themselves."""
        return nullcontext()

    def narrowed(self, group: int, x: Tensor) -> Tensor:
        """Return what a layer is given for the rows of one group as it is outside of this batch."""
        return x

    def widened(self, group: int, y: Tensor, x: Tensor) -> Tensor:
        """Return what a layer gives for the rows of one group as wide as x, its input before it was narrowed."""
        return y

    def place_of_parts(self, times: int, device: torch.device) -> Tensor:
        """Return the index of the route of each part of each row, (rows * times,); a row's parts lie side by side."""
        if ("parts", times, device) not in self._indices:
            self._indices["parts", times, device] = torch.tensor(self.of_row, device=device).repeat_interleave(times)
        found: Tensor = self._indices["parts", times, device]
        return found

    def split(self, times: int, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return where the rows of each group lie, and where each row lies when the groups are put side by side.

        times: how often a row comes, one after the other. Made once a forward, shared by all layers.
        """
        if (times, device) not in self._indices:
            rows = torch.tensor(self.of_row).repeat_interleave(times)
            members = [(rows == group).nonzero()[:, 0] for group in range(len(self.groups))]
            back = torch.cat(members).argsort()
            self._indices[times, device] = tuple(m.to(device) for m in members), back.to(device)
        found: tuple[tuple[Tensor, ...], Tensor] = self._indices[times, device]
        return found


class Told(threading.local):
    """What the caller of compiled code tells it, in its own thread: a compiler cannot trace a ContextVar.

    route: None where nothing is told. of_row: (rows,) integers, with the route OFF: each row's place in the factors of
    its layers.
    """

    def __init__(self) -> None:  # in every thread, because compiled code looks for them in the object itself
        self.route: Route | None = None
        self.of_row: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Told, ()  # nobody calls a copy
