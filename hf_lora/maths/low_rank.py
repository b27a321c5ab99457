"""The maths of low-rank matrices: tensors and numbers in, tensors out.

    W' = W + scaling * B A          A is (..., r, in), B is (..., out, r), W is (..., out, in)

Hu et al. 2021, arXiv:2106.09685. Leading dimensions of A and B (fused experts) are batched. What they do to a layer's
output is in `linear.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import AdapterStateError


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return B A, the low-rank matrix of shape (..., out, in), in float32 or wider.

    a: (..., r, in); b: (..., out, r). Half-precision factors are widened first: their product is added to a
    weight, where the rounding of a half-precision product would cost a good part of a small adapter's effect.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return torch.matmul(b.to(dtype), a.to(dtype))


def add_product(weight: Tensor, left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """Return weight + scaling * left right as a new tensor of the weight's dtype, in one pass over it.

    weight: (..., n, m), left unchanged; left: (..., n, r); right: (..., r, m). Computed in float32 or wider.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, left.dtype), torch.float32)
    left, right = left.to(dtype), right.to(dtype)
    if weight.dtype != dtype:  # the widened copy is nobody else's
        wide = weight.to(dtype)
        add_ = wide.addmm_ if weight.ndim == 2 else wide.baddbmm_
        return add_(left, right, alpha=scaling).to(weight.dtype)
    add = torch.addmm if weight.ndim == 2 else torch.baddbmm
    return add(weight, left, right, alpha=scaling)


def is_finite(values: Tensor) -> bool:
    """Tell whether every value is finite, in one pass that makes nothing of their size.

    A sum is finite only if every term is; where finite terms overflow in it, each of them is looked at.
    """
    total = values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return bool(total.isfinite()) or bool(values.isfinite().all())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not finite, in float32 as well. tensors: all on one device."""
    floats = {n: t if t.dtype.itemsize in (2, 4) else t.float() for n, t in tensors.items() if t.is_floating_point()}
    sums = [values.sum(dtype=torch.float32) for values in floats.values()]
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return []
    return sorted(name for name, values in floats.items() if not is_finite(values))


def stays_finite(values: Tensor, change: float) -> bool:
    """Tell whether values are finite and surely stay so when none changes by more than `change`.

    A change by less than half of the last bit of the dtype's largest number cannot take that number past its end.
    """
    info = torch.finfo(values.dtype)
    return change < info.max * info.eps / 8 and is_finite(values)


def row_norm(matrix: Tensor) -> Tensor:
    """Return the Euclidean length of every output row of a (..., out, in) matrix, shape (..., out)."""
    return torch.linalg.vector_norm(matrix, dim=-1)


def top_singular_factors(matrix: Tensor, r: int, n_iter: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (A, B) with B A the best rank-r approximation of a matrix, the singular values split evenly.

    matrix: (..., out, in), float32 or wider. n_iter: None takes the full SVD; a number takes that many subspace
    iterations of the randomised one (Halko et al. 2011, arXiv:0909.4061), which is faster and not exact.
    seed: of the numbers that the randomised one draws; torch's own random state is neither read nor moved.
    """
    u, s, vh = top_singular(matrix, r, n_iter, seed)
    root = s.sqrt()
    return (root.unsqueeze(-1) * vh).contiguous(), (u * root.unsqueeze(-2)).contiguous()


def svd(matrix: Tensor, driver: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (U, S, V') of a matrix, (..., out, k), (..., k) and (..., k, in). driver: torch.linalg.svd's, on CUDA.

    Raises AdapterStateError where its numbers are not finite.
    """
    if not matrix.isfinite().all():
        raise AdapterStateError(
            f"a weight or an adapter makes a matrix {tuple(matrix.shape)} whose numbers are not finite (NaN or "
            "infinity), which has no singular directions. [n for n, p in model.named_parameters() if not "
            "p.isfinite().all()] says whose they are."
        )
    found = torch.linalg.svd(matrix, full_matrices=False, driver=driver)
    return found[0], found[1], found[2]


def top_singular(
    matrix: Tensor, r: int, n_iter: int | None = None, seed: int = 0, width: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (U, S, V') of a matrix's r largest singular values, (..., out, r), (..., r) and (..., r, in).

    n_iter, seed: as `top_singular_factors` takes them. width: the columns that the randomised one computes with, r
    unless more are given; more make the last values more exact.
    """
    if n_iter is None:
        u, s, vh = svd(matrix)
    else:
        basis = _range_basis(matrix, min(max(r, width), *matrix.shape[-2:]), n_iter, seed)
        u, s, vh = svd(basis.mT @ matrix)
        u = basis @ u
    return u[..., :r], s[..., :r], vh[..., :r, :]


def traits(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """Return what tells singular factors from others: a (r, in) and b (out, r) times a fixed vector each, s; (3, r).

    A direction with the other sign, or turned towards another one, has other products.
    """
    ways = (torch.arange(1, size + 1, dtype=a.dtype, device=a.device) for size in (a.shape[1], b.shape[0]))
    of_a, of_b = (torch.cos(1.7 * way * way.sqrt()) for way in ways)
    return torch.stack((a @ of_a, of_b @ b, s))


def _range_basis(matrix: Tensor, r: int, n_iter: int, seed: int) -> Tensor:
    """Return (..., out, r) orthonormal columns that span nearly what a matrix's first r left singular vectors do."""
    shape = (*matrix.shape[:-2], matrix.shape[-1], r)
    drawn = torch.randn(shape, dtype=matrix.dtype, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    basis = torch.linalg.qr(matrix @ drawn.to(matrix.device)).Q
    for _ in range(n_iter):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
    return basis


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Return the singular values of B A, shape (..., r), on the CPU in float64, without making B A.

    a: (..., r, in); b: (..., out, r). With A' = Q R and B = P S, B A = P (S R') Q' has those of the small S R'. What
    is within the rounding of the factors' own dtype (float32 at least) is 0; where a factor is not finite, all are NaN.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    (_, right), (_, left) = torch.linalg.qr(a.to(dtype).mT, mode="r"), torch.linalg.qr(b.to(dtype), mode="r")
    right, left = right.to("cpu", torch.float64), left.to("cpu", torch.float64)
    core = left @ right.mT
    finite = core.isfinite().flatten(-2).all(dim=-1)[..., None]
    values = torch.linalg.svdvals(torch.where(finite[..., None], core, 0))
    noise = 8 * torch.finfo(dtype).eps * (left.norm(dim=(-2, -1)) * right.norm(dim=(-2, -1)))[..., None]
    return torch.where(finite, torch.where(values > noise, values, 0), torch.nan)


def effective_rank(values: Tensor) -> Tensor:
    """Return the effective rank of matrices with these singular values, (..., r) -> (...).

        exp(-sum p log p),   p = s / sum s       (1 for one direction, r for r equal ones, 0 for a zero matrix)

    Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality.
    """
    total = values.sum(dim=-1)
    share = values / total.clamp_min(torch.finfo(values.dtype).tiny)[..., None]
    rank = torch.special.entr(share).sum(dim=-1).exp()
    return torch.where(total == 0, 0, rank)


def within(left: Tensor, right: Tensor, moments: Tensor) -> Tensor:
    """Return the inner product of what two matrices make of the same inputs, tr(L X^T X R^T), a scalar.

    left, right: (out, in); moments: X^T X, (in, in), of inputs X (n, in).
    """
    return torch.sum((left.to(moments.dtype) @ moments) * right.to(moments.dtype))


def squared_distance(left: Tensor, right: Tensor) -> float:
    """Return the sum of the squares of left - right, in the right one's dtype, without a tensor of their size."""
    rows = max(1, (1 << 22) // max(1, left.numel() // max(1, len(left)))) if left.ndim else 1
    parts = zip(left.split(rows), right.split(rows), strict=True) if left.ndim else ((left, right),)
    return float(sum((a.to(b.dtype) - b).square_().sum() for a, b in parts))
