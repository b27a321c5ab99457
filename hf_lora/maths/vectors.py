"""The maths of a linear layer with frozen low-rank matrices, and trained vectors before and behind the second one.

    y = x W^T + bias + scaling * e * (B (d * (A drop(x))))

    x (..., in), W (out, in), A (r, in), d (r,), B (out, r), e (out,), y (..., out)


    S  = drop(x) A^T                 saved, and nothing else that this layer makes: neither x nor e B d
    dU = scaling dY (e B)
    dd = sum over tokens of dU * S
    de = scaling * the rows' sums of B * (dY^T (S d))
    dX = dY W + drop((dU d) A)

Kopiczko et al. 2023, arXiv:2310.11454.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear import add_product, added_gradients, fuses, lora_linear


def between_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    d: Tensor,
    b: Tensor,
    e: Tensor,
    scaling: float,
    p: float,
    transposed: bool,
) -> Tensor:
    """Return x W^T + bias + scaling * e * (B (d * (A drop(x)))), of shape (..., out); as `lora_linear` with B = e B d.

    a: (r, in) and b: (out, r), frozen; d: (r,), e: (out,). Differentiable once in the others.
    """
    if a.requires_grad or b.requires_grad or not fuses(x, weight, a):
        return lora_linear(x, weight, bias, a, e[:, None] * b * d, scaling, p, transposed)
    args = (x, weight, bias, a, d, b, e, scaling, p, transposed)
    return _Between.apply(*args)


class _Between(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, bias, a, d, b, e, scaling, p, ctx.transposed = args
        y, s, ctx.drawn = add_product(x, weight, bias, a, e[:, None] * b * d, scaling, p, ctx.transposed)
        ctx.scaling, ctx.shape = scaling if ctx.drawn is None else scaling * ctx.drawn.gain, x.shape
        mask = ctx.drawn.give_up_mask() if ctx.drawn is not None else None
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, a, d, b, e, s, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, d, b, e, s, mask = ctx.saved_tensors
        if mask is not None:
            ctx.drawn.take_mask(mask)
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        device, dtype = dy.device.type, dy.dtype
        dx = dweight = None
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            dy = dy.reshape(-1, dy.shape[-1])
            du = dy @ (ctx.scaling * e[:, None] * b).to(dtype)
            dd = (du * s).sum(0, dtype=d.dtype)
            de = ((dy.t() @ (s * d.to(dtype))) * b).sum(1, dtype=e.dtype) * ctx.scaling
            if of_weight:
                rows = x.reshape(-1, x.shape[-1]).to(dtype)
                dweight = rows.t() @ dy if ctx.transposed else dy.t() @ rows
            if of_x:
                dx = dy @ (weight.t() if ctx.transposed else weight).to(dtype)
                dx = added_gradients(du * d.to(dtype), None, a.to(dtype), dx, ctx.drawn)[0].view(ctx.shape)
        return dx, dweight, dy.sum(0) if of_bias else None, None, dd, None, de, None, None, None
