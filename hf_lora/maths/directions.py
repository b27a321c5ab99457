"""The leading directions of rows that come in batches, about their mean: incremental principal components.

    [s V'; X - mean(X); sqrt(n m / (n + m)) (mean - mean(X))] = U S V'      the first k rows of S V' are kept

Ross et al. 2008, Incremental Learning for Robust Visual Tracking. n rows were seen before, m are new.
"""

import math

import torch
from torch import Tensor

from . import low_rank

_EXACT = 512  # rows or columns up to which a decomposition is exact
_ITERATIONS = 4  # of the randomised one above it


class Directions:
    """At most k directions, of the rows seen so far.

    components: (k, in), orthonormal; empty before the first batch. values: (k,), their singular values. total: the sum
    of the squares of all rows about their mean. alike: (k,), |cosine| between each direction and what it was a batch
    before.
    """

    def __init__(self, k: int) -> None:
        self.k, self.rows, self.total = k, 0, 0.0
        self.components = self.values = self.alike = self.mean = torch.empty(0, device="cpu")

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take further rows in. rows: (m, in), float32 or wider; nothing happens where m is 0."""
        if not len(rows):
            return
        mean, before = rows.mean(0), self.components
        stack = rows - mean
        self.total += float(stack.square().sum())
        if not self.rows:
            self.mean = mean
        else:
            shift, weight = self.mean - mean, self.rows * len(rows) / (self.rows + len(rows))
            self.total += weight * float(shift.square().sum())
            stack = torch.cat((self.values[:, None] * before, stack, math.sqrt(weight) * shift[None]))
            self.mean = mean + shift * (self.rows / (self.rows + len(rows)))
        old, self.rows = min(len(before), self.k), self.rows + len(rows)
        k = min(self.k, *stack.shape)
        n_iter = None if min(stack.shape) <= _EXACT else _ITERATIONS
        _, values, components = low_rank.top_singular(stack, k, n_iter, width=2 * k)
        self.alike = torch.zeros(k, device="cpu")
        if old:
            self.alike[:old] = (before[:old] * components[:old]).sum(1).abs().cpu()
        self.values, self.components = values, components

    def shares(self) -> Tensor:
        """Return which share of the rows' variance each direction explains, on the CPU."""
        return self.values.square().cpu() / max(self.total, 1e-30)


def spread(shares: dict[str, Tensor], budget: int) -> dict[str, int]:
    """Return how many directions of each layer are among the `budget` that explain most; of equal ones the first.

    >>> spread({"a": torch.tensor([0.5, 0.1]), "b": torch.tensor([0.9, 0.6])}, 3)
    {'a': 1, 'b': 2}
    """
    every = [(-share, place, name) for place, (name, each) in enumerate(shares.items()) for share in each.tolist()]
    chosen = [name for _, _, name in sorted(every)[:budget]]
    return {name: chosen.count(name) for name in shares}
