"""The largest eigenvalues of the sum of x x' over many rows x, from one pass and a sketch of it.

    S = sum of x (x' O)       O (in, m) orthonormal, drawn from a seed; nothing of in x in numbers is kept
    sum of x x' ~ S (O' S)^-1 S'

Tropp et al. 2017, Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming Data, arXiv:1706.05736,
with its shift. Exact where in is at most m, or where the rows have no more than m directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WIDER = 4  # how many directions are looked at for each that is asked for: what is asked for is then nearly exact


class Sketch:
    """What rows leave of themselves. k: how many eigenvalues are asked for. rows: how many came so far."""

    def __init__(self, k: int, seed: int = 0) -> None:
        self.k, self.seed, self.rows, self.total = k, seed, 0, 0.0
        self.test = self.sums = torch.empty(0, device="cpu")

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take further rows in. x: (n, in), float32 or wider."""
        if not self.rows:
            self.test = self._drawn(x.shape[1]).to(x)
            self.sums = torch.zeros_like(self.test)
        self.rows += len(x)
        self.total += float(x.square().sum(1).cpu().double().sum())
        self.sums.addmm_(x.mT, x @ self.test)

    def _drawn(self, inputs: int) -> Tensor:
        wide = min(_WIDER * self.k, inputs)
        if wide == inputs:
            return torch.eye(inputs, device="cpu")
        generator = torch.Generator("cpu").manual_seed(self.seed)
        return torch.linalg.qr(torch.randn(inputs, wide, generator=generator, device="cpu")).Q

    @torch.no_grad()
    def shares(self) -> Tensor:
        """Return the share of the rows' squares along each of the k leading directions, falling, on the CPU.

        Fewer where the rows have fewer entries.
        """
        test, sums = self.test.cpu().double(), self.sums.cpu().double()
        if not self.rows or not self.total:
            return torch.zeros(min(self.k, len(sums)), dtype=torch.float64, device="cpu")
        shift = 1e-7 * float(torch.linalg.matrix_norm(sums))  # float32's rounding of the sums, above which the core is
        shifted = sums + shift * test
        core = test.mT @ shifted
        values, vectors = torch.linalg.eigh((core + core.mT) / 2)
        kept = values > shift / 2
        half = (shifted @ vectors[:, kept]) / values[kept].sqrt()
        found = (torch.linalg.svdvals(half).square() - shift).clamp_min(0)[: self.k] / self.total
        return torch.cat((found, found.new_zeros(min(self.k, len(sums)) - len(found))))
