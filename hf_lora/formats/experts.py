"""Low-rank pairs of single weights as the one pair of the weight that they were put together into. Tensors only.

Weights below one another, [W1; W2]: each pair keeps columns of B of its own,

    [W1; W2] + s [B1 A1; B2 A2] = [W1; W2] + s [B1 0; 0 B2] [A1; A2]

so the rank is the sum of the ranks. Weights in a stack (fused experts) have a pair each, filled up with zeros to the
largest rank. A weight without a pair gets zeros. Exact where the scalings of the pairs are equal; otherwise each B is
rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Pair", "beside", "stacked"]


@dataclass(frozen=True)
class Pair:
    """A low-rank update scaling * b @ a; a: (r, in), b: (out, r)."""

    a: Tensor
    b: Tensor
    scaling: float

    def scaled(self, scaling: float) -> Pair:
        """Return the same update with another factor in front; the same tensors where it is the same factor."""
        return self if scaling == self.scaling else Pair(self.a, self.b * (self.scaling / scaling), scaling)


def beside(pairs: Sequence[Pair | None], rows: Sequence[int]) -> Pair:
    """Return the pair of weights below one another; rows: how many each of them has. At least one has a pair."""
    held = _whole(pairs, rows)
    return Pair(torch.cat([p.a for p in held]), torch.block_diag(*[p.b for p in held]), held[0].scaling)


def stacked(pairs: Sequence[Pair | None]) -> tuple[Tensor, Tensor, float]:
    """Return A (experts, r, in), B (experts, out, r) and the scaling of a stack of weights. At least one has a pair."""
    held = _whole(pairs, [next(len(pair.b) for pair in pairs if pair is not None)] * len(pairs))
    rank = max(len(pair.a) for pair in held)
    a = torch.stack([pad(pair.a, (0, 0, 0, rank - len(pair.a))) for pair in held])
    b = torch.stack([pad(pair.b, (0, rank - len(pair.a))) for pair in held])
    return a, b, held[0].scaling


def _whole(pairs: Sequence[Pair | None], rows: Sequence[int]) -> list[Pair]:
    """Return pairs of one scaling, of rank 0 where a weight has none; rows: of each weight."""
    first = next(pair for pair in pairs if pair is not None)
    none = [Pair(first.a[:0], first.b.new_zeros(count, 0), first.scaling) for count in rows]
    return [none[i] if pair is None else pair.scaled(first.scaling) for i, pair in enumerate(pairs)]
