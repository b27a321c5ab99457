"""What an adapter is before it is built, and the product that one adds to a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..kinds.kind import Shape
from .initial import InitName
from .row import Row
from .table import ADAPTERS


@dataclass(frozen=True)
class Spec:
    """An adapter before it is built.

    parameter: the name of what it adapts in its layer. role: its row in `ADAPTERS`. kind: a key of `KINDS`.
    shape: the weight's. dropout: the probability with which each input feature is dropped in training. factor: what
    the layer's own forward multiplies its result by. seed: of the numbers that its start draws. rows: of a table, those
    that train. settings: the formula's own. group: the name of those that it shares tensors with; leads: whether it is
    the first of them; widest: the most outputs and the most inputs in the group.
    """

    parameter: str
    role: str
    kind: str = ""
    shape: Shape = ()
    r: int = 0
    scaling: float = 1.0
    dropout: float = 0.0
    factor: float = 1.0
    bias: bool = False
    init: InitName = True
    seed: int = 0
    rows: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    group: str = ""
    leads: bool = True
    widest: Shape = ()

    @property
    def row(self) -> Row:
        """What is known of such an adapter."""
        return ADAPTERS[self.role]

    @property
    def key(self) -> str:
        """The adapter's key in its layer."""
        return str(self.row.adapter.key_for(self.parameter))


class Product(NamedTuple):
    """What is added to a (..., out, in) matrix: scaling * b @ a, a (..., r, in) and b (..., out, r)."""

    a: Tensor
    b: Tensor
    scaling: float
