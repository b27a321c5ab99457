"""Spec: one adapter before it is built: its row, its parameter, its rank and its other numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ..kinds.kind import Shape
from .initial import InitName
from .row import Row
from .table import ADAPTERS

__all__ = ["Spec"]


@dataclass(frozen=True)
class Spec:
    """An adapter before it is built.

    parameter: the name of what it adapts in its layer. role: its row in `ADAPTERS`. kind: a key of `KINDS`.
    shape: the weight's. dropout: the probability with which each input feature is dropped in training. factor: what
    the layer's own forward multiplies its result by. rows: of a table, those that train.
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
    rows: tuple[int, ...] = ()

    @property
    def row(self) -> Row:
        """What is known of such an adapter."""
        return ADAPTERS[self.role]

    @property
    def key(self) -> str:
        """The adapter's key in its layer."""
        key: str = self.row.adapter.key_for(self.parameter)
        return key
