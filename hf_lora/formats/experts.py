"""Low-rank pairs of single weights as the one pair of the weight that they were put together into. Tensors only.

Weights below one another, [W1; W2]: each pair keeps columns of B of its own,

    [W1; W2] + s [B1 A1; B2 A2] = [W1; W2] + s [B1 0; 0 B2] [A1; A2]

so the rank is the sum of the ranks. Weights in a stack (fused experts) have a pair each, filled up with zeros to the
largest rank. A weight without a pair gets zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Return the pair of weights below one another; rows: how many each of them has. At least one has a pair.

    Exact where their scalings are equal; otherwise each B is rounded once.
    """
    first = next(pair for pair in pairs if pair is not None)
    held = [None if pair is None else pair.scaled(first.scaling) for pair in pairs]
    b = first.b.new_zeros(sum(rows), sum(pair.b.shape[1] for pair in held if pair is not None))
    top = left = 0
    for pair, count in zip(held, rows, strict=True):
        if pair is not None:
            b[top : top + count, left : left + pair.b.shape[1]] = pair.b
            left += pair.b.shape[1]
        top += count
    return Pair(torch.cat([pair.a for pair in held if pair is not None]), b, first.scaling)


def stacked(pairs: Sequence[Pair | None]) -> tuple[Tensor, Tensor, float]:
    """Return A (experts, r, in), B (experts, out, r) and the scaling of a stack of weights.

    At least one has a pair. Exact where their scalings are equal; otherwise each B is rounded once.
    """
    first = next(pair for pair in pairs if pair is not None)
    rank = max(pair.a.shape[0] for pair in pairs if pair is not None)
    a = first.a.new_zeros(len(pairs), rank, first.a.shape[1])
    b = first.b.new_zeros(len(pairs), first.b.shape[0], rank)
    for i, pair in enumerate(pairs):
        if pair is not None:
            same = pair.scaled(first.scaling)
            a[i, : pair.a.shape[0]] = same.a
            b[i, :, : pair.a.shape[0]] = same.b
    return a, b, first.scaling
