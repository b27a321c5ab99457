"""Low-rank matrices by their singular vectors, from their factors: nothing of the size of B A is made.

    A' = Q R,  B = P S,  S R' = U s V'      ->      B A = (P U) s (Q V)'

On the CPU in float64, whatever the factors are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .low_rank import svd


class Decomposed(NamedTuple):
    """A (..., out, in) matrix of low rank: left (..., out, k) and right (..., in, k) orthonormal, values (..., k).

    rank: (...), how many of the values, which fall, are more than rounding.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    rank: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scaling: float = 1.0) -> Decomposed:
        """Return the singular vectors and values of scaling * B A; a: (..., r, in), b: (..., out, r)."""
        eps = torch.finfo(torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)).eps
        q, right = torch.linalg.qr(a.detach().to("cpu", torch.float64).mT)
        p, left = torch.linalg.qr(b.detach().to("cpu", torch.float64) * scaling)
        u, values, vh = svd(left @ right.mT)
        noise = 8 * eps * left.norm(dim=(-2, -1)) * right.norm(dim=(-2, -1))
        return cls(p @ u, values, q @ vh.mT, (values > noise[..., None]).sum(-1))

    def norm(self) -> float:
        """Return the Frobenius norm, of a stack that of all of it."""
        return float(torch.linalg.vector_norm(self.values))


def inner(one: Decomposed, other: Decomposed) -> float:
    """Return the sum of the products of two matrices' entries: of k x k matrices, sum s_i t_j (u_i.p_j) (v_i.q_j)."""
    angles = (one.left.mT @ other.left) * (one.right.mT @ other.right)
    return float((one.values[..., None] * angles * other.values[..., None, :]).sum())


def overlap(one: Decomposed, other: Decomposed, side: str) -> float:
    """Return how much of the smaller one of two spaces lies in the other, 0 (orthogonal) to 1; side: left or right.

        |U' P|^2 / min(k, l),      U (n, k) and P (n, l) orthonormal

    Hu et al. 2021, arXiv:2106.09685, section 7.2. Random spaces of n dimensions have max(k, l) / n. NaN where one of
    them is empty; of a stack it is the mean over directions.
    """
    cosines = (_kept(one, side).mT @ _kept(other, side)).square().sum()
    shared = int(torch.minimum(one.rank, other.rank).sum())
    return float(cosines) / shared if shared else float("nan")


def _kept(matrix: Decomposed, side: str) -> Tensor:
    """Return one side's singular vectors (..., n, k), zero where their values are rounding."""
    is_kept = torch.arange(matrix.values.shape[-1]) < matrix.rank[..., None]
    vectors: Tensor = getattr(matrix, side)
    return vectors * is_kept[..., None, :]
