"""The low-rank products of a batch whose rows have factors of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def add_by_row(y: Tensor, x: Tensor, a: Tensor, b: Tensor, index: Tensor | None) -> Tensor:
    """Return y with x_i A_k^T B_k^T added to row i, k = index[i].

    y: (times * rows, ..., out), may be written where no gradient is wanted; x: (times * rows, ..., in), a row's parts
    one after the other; a: (routes, r, in), b: (routes, out, r); index: (rows,), None where row i has route i. Computed
    in y's dtype; differentiable in all but the index.
    """
    a, b = a.to(y.dtype), b.to(y.dtype)
    if index is not None:
        a, b = a.index_select(0, index), b.index_select(0, index)
    s = torch.bmm(x.to(y.dtype).reshape(len(a), -1, x.shape[-1]), a.mT)
    rows = y.reshape(len(a), -1, y.shape[-1])
    if torch.is_grad_enabled() or not y.is_contiguous():
        return torch.baddbmm(rows, s, b.mT).reshape(y.shape)
    rows.baddbmm_(s, b.mT)
    return y
