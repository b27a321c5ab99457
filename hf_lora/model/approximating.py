"""What a matrix loses when it is held by fewer singular directions: how many are kept, and a table of the errors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..config.rules import is_int, is_number
from ..errors import ArgumentError, some
from ..maths.low_rank import svd
from .report import aligned, alike


class Approximated(NamedTuple):
    """One layer. before, after: its numbers of parameters; rank: how many directions are kept, of how many.

    error: |W - W_r| / |W|, of Frobenius norms: the square root of the share of the energy that is lost.
    norm: |W|.
    """

    layer: str
    of: int
    rank: int
    error: float
    norm: float
    before: int
    after: int


@dataclass(frozen=True)
class Approximation:
    """What was approximated, layer by layer. model: the result.

    left: layers that were left as they are. whole: modules that an adapter holds in full -> how many parameters.
    """

    model: Any
    layers: tuple[Approximated, ...]
    left: tuple[str, ...] = ()
    whole: Mapping[str, int] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The error of all layers as one vector."""
        return _pooled(self.layers)

    def __str__(self) -> str:
        head = ("layer", "layers", "rank", "of", "error", "before", "after")
        lines = [_line(name, rows) for name, rows in alike(self.layers).items()]
        told = [aligned([head, *lines, _line("all", self.layers)])]
        told += [f"left as they are: {some(self.left)}"] if self.left else []
        told += [f"in full: {some(self.whole)} ({sum(self.whole.values()):,d} parameters)"] if self.whole else []
        return "\n".join(told)


@dataclass(frozen=True)
class Kept:
    """What is asked for: a rank, or a share of the energy (the sum of the squared singular values) of each matrix.

    Raises ArgumentError where it is neither or both.
    """

    rank: int | None
    energy: float | None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ArgumentError(f"rank={self.rank!r}, energy={self.energy!r}: give one of them, and not both.")
        if self.rank is not None and not is_int(self.rank):
            raise ArgumentError(f"rank={self.rank!r}: a rank is a positive integer.")
        if self.energy is not None and not (is_number(self.energy) and 0 < self.energy <= 1):
            raise ArgumentError(f"energy={self.energy!r}: it is a share of what there is, above 0 and up to 1.")

    def of(self, values: Tensor) -> int:
        """Return how many singular values are kept, one at least; values: (..., k), falling; of a stack the most."""
        if self.energy is None:
            return min(self.rank or 1, values.shape[-1])
        squares = values.double().square()
        reached = squares.cumsum(-1) / squares.sum(-1, keepdim=True).clamp_min(1e-300)
        needed = (reached < self.energy - 1e-12).sum(-1) + 1
        return int(needed.where(squares.sum(-1) > 0, 1).max().clamp_max(values.shape[-1]))

    def split(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (A, B, all singular values) of the best approximation of (..., out, in) matrices; B has the values."""
        u, s, vh = svd(matrix)
        k = self.of(s)
        return vh[..., :k, :].clone(), u[..., :k] * s[..., None, :k], s  # a view would keep all of it


def lost(values: Tensor, rank: int) -> tuple[float, float]:
    """Return (error, norm) where a matrix with these singular values, or a stack, is held by `rank` directions."""
    squares = values.double().square()
    whole, rest = float(squares.sum()), float(squares[..., rank:].sum())
    return math.sqrt(rest / whole) if whole else 0.0, math.sqrt(whole)


def _pooled(rows: Iterable[Approximated]) -> float:
    rows = [*rows]
    whole = math.hypot(*(row.norm for row in rows))
    return math.hypot(*(row.error * row.norm for row in rows)) / whole if whole else 0.0


def _line(name: str, rows: Sequence[Approximated]) -> tuple[str, ...]:
    def span(numbers: list[int]) -> str:
        return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"

    ranks, most = span([row.rank for row in rows]), span([row.of for row in rows])
    sizes = [f"{sum(getattr(row, which) for row in rows):,d}" for which in ("before", "after")]
    return name, str(len(rows)), ranks, most, f"{_pooled(rows):.4f}", *sizes
