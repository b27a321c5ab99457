"""The maths of a product of frozen matrices with trained vectors before and behind the second one.

    y' = y + scaling * e * (B (d * (A drop(x))))      x (..., in), A (r, in), d (r,), B (out, r), e (out,), y (..., out)

    S  = drop(x) A^T                 saved alone: neither x nor anything of y's size is kept
    U  = S * d
    dU = scaling (dY * e) B
    dd = sum over tokens of dU * S
    de = scaling * rowsum(B * (dY^T U))
    dX = drop((dU * d) A)

Kopiczko et al. 2023, arXiv:2310.11454.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..errors import AdapterStateError
from .dropout import draw
from .linear import is_writable


def add_between(y: Tensor, x: Tensor, a: Tensor, d: Tensor, b: Tensor, e: Tensor, scaling: float, p: float) -> Tensor:
    """Return y + scaling * e * (B (d * (A drop(x)))), written into y where autograd allows it.

    a: (r, in), b: (out, r), which get no gradient; d: (r,), e: (out,); all cast to y's dtype. p: the probability with
    which an element of x is dropped, 0 for none. Differentiable once in y, x, d and e.
    """
    if a.is_meta and not x.is_meta:
        raise AdapterStateError("an adapter's tensors are on the meta device: they are offloaded or were never loaded.")
    if is_writable(y) and y.is_contiguous():
        return _AddBetween.apply(y, x, a, d, b, e, scaling, p)
    u = F.linear(F.dropout(x, p), a.to(x.dtype)) * (scaling * d).to(x.dtype)
    return y + (F.linear(u, b.to(u.dtype)) * e.to(u.dtype)).to(y.dtype)


class _AddBetween(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, d: Tensor, b: Tensor, e: Tensor, scaling: float, p: float
    ) -> Tensor:
        ctx.mark_dirty(y)
        rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
        ctx.drawn = draw(rows, p)
        s = F.linear(rows, a.to(y.dtype)) if ctx.drawn is None else ctx.drawn.times(rows, a.to(y.dtype))
        ctx.scaling = scaling if ctx.drawn is None else scaling * ctx.drawn.gain
        ctx.of_x = x.shape, x.dtype
        mask = ctx.drawn.give_up_mask() if ctx.drawn is not None else None
        ctx.save_for_backward(s, a, d, b, e, mask)
        y.view(-1, y.shape[-1]).addmm_(s * d.to(s.dtype), (e[:, None] * b).to(y.dtype).t(), alpha=ctx.scaling)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        s, a, d, b, e, mask = ctx.saved_tensors
        if mask is not None:
            ctx.drawn.take_mask(mask)
        _, of_x, _, of_d, _, of_e, *_ = ctx.needs_input_grad
        (shape, dtype), rows = ctx.of_x, dy.reshape(-1, dy.shape[-1])
        dx = dd = de = None
        with torch.autocast(dy.device.type, enabled=False):  # a backward pass keeps the dtypes of its forward pass
            du = rows @ (ctx.scaling * e[:, None] * b).to(rows.dtype)
            if of_d:
                dd = (du * s).sum(0, dtype=d.dtype)
            if of_e:
                de = ((rows.t() @ (s * d.to(s.dtype))) * b).sum(1, dtype=e.dtype) * ctx.scaling
            if of_x:
                ds, a = du * d.to(du.dtype), a.to(du.dtype)
                if ctx.drawn is None:
                    dx = ds @ a
                else:
                    dx = ds.new_zeros(len(ds), a.shape[1])
                    ctx.drawn.backward(ds, None, a, dx)
                dx = dx.view(shape).to(dtype)
        return dy, dx, None, dd, None, de, None, None
