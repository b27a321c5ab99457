"""Rounding to a grid of few values: the nearest one, or column by column with the error fed into what follows.

What a layer makes of its inputs X, (n, in), is kept, not its weight: with H = X^T X and Q the rounded W,

    |(Q - W) X^T|^2 = tr (Q - W) H (Q - W)^T        is made small by      W_:,j+ -= (W_:j - Q_:j) / U_jj * U_j,j+

where H^-1 = U^T U, U upper triangular: after a column is rounded, those that are not yet take over what it lost.
Columns whose inputs are largest go first. Frantar et al. 2022, GPTQ, arXiv:2210.17323. Everything here is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 0.01  # of the mean of H's diagonal, as in the paper
_BLOCK = 128  # columns whose changes the others get at once


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the level nearest to each value. levels: (n,), ascending."""
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)


def fed_back(weight: Tensor, moments: Tensor, levels: Tensor, scale: Tensor, shift: Tensor | float) -> Tensor:
    """Return the index of a level for each value of a weight, so that its products with inputs are kept.

    weight: (out, in), left unchanged. moments: X^T X of the inputs, (in, in). The values that can be had are
    levels * scale + shift; levels: (n,), ascending; scale and shift broadcast to the weight.
    """
    order = moments.diagonal().argsort(descending=True)
    upper = _inverse_root(moments[order][:, order])
    w = weight.float()[:, order]
    scale = scale.expand_as(weight)[:, order]
    shift = shift.expand_as(weight)[:, order] if isinstance(shift, Tensor) else torch.full_like(scale, shift)
    safe = torch.where(scale == 0, 1, scale)
    index = torch.empty(w.shape, dtype=torch.int64, device=w.device)
    for start in range(0, w.shape[1], _BLOCK):
        end = min(start + _BLOCK, w.shape[1])
        errors = torch.empty_like(w[:, start:end])
        for j in range(start, end):
            index[:, j] = nearest((w[:, j] - shift[:, j]) / safe[:, j], levels)
            rounded = levels[index[:, j]] * scale[:, j] + shift[:, j]
            errors[:, j - start] = (w[:, j] - rounded) / upper[j, j]
            w[:, j + 1 : end] -= errors[:, j - start, None] * upper[j, j + 1 : end]
        w[:, end:] -= errors @ upper[start:end, end:]
    return torch.empty_like(index).scatter_(1, order.expand_as(index), index)


def _inverse_root(moments: Tensor) -> Tensor:
    """Return the upper triangular U with U^T U the inverse of moments, damped until it has one."""
    size = moments.diagonal().mean()
    damped = moments.clone() if size > 0 else torch.eye(len(moments), device=moments.device)
    damping = _DAMPING * (float(size) or 1.0)
    while True:
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        damping *= 10
