"""The maths of a LoRA linear layer, forward and backward: tensors and numbers only.

    y = x W^T + bias + scaling * drop(x) A^T B^T      x (..., in), W (out, in), A (r, in), B (out, r), y (..., out)

    S  = drop(x) A^T                 saved, with x itself where A trains: layers that read one x share it, and no cast
    dS = scaling dY B                or dropped copy of it is kept
    dB = scaling dY^T S
    dX = dY W + drop(dS A)
    dA = dS^T drop(x)

Everything of y's or x's size is computed once and added to in place; only the small factors are cast. Hu et al. 2021,
arXiv:2106.09685. torch's own tracers (compile, export, functorch, jit.trace) get the same formula in plain operations,
which they differentiate and fuse by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AdapterStateError
from .autocast import ambient
from .dropout import Drawn, draw
from .tracing import is_traced

Down = Callable[[Tensor, Tensor], Tensor]
_PLAIN = (Tensor, nn.Parameter)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, p: float, transposed: bool
) -> Tensor:
    """Return x W^T + bias + scaling * drop(x) A^T B^T, of shape (..., out).

    x: (..., in), any strides, empty batches too; weight: (out, in), or (in, out) where `transposed`; a: (r, in) and
    b: (out, r) of any float dtype, cast to x's; p: the probability with which an element of x is dropped, 0 for none.
    A weight of a tensor class of its own (quantised or sharded after the adapter came) is left to F.linear.
    Computed in x's dtype, under autocast in autocast's. Differentiable in every tensor, twice as well where A or the
    weight trains: x is not kept for B alone.
    """
    if not fuses(x, weight, a):
        s = F.linear(F.dropout(x, p), a.to(x.dtype)) * scaling
        return _base(x, weight, bias, transposed) + F.linear(s, b.to(s.dtype))
    args = (x, weight, bias, a, b, scaling, p, transposed)
    return _LoRALinear.apply(*args) if torch.is_grad_enabled() else add_product(*args)[0]


def fuses(x: Tensor, weight: Tensor, a: Tensor) -> bool:
    """Return whether a layer and its adapter compute as one, and are not left to plain operations.

    Raises AdapterStateError where the adapter's tensors have no values.
    """
    if _is_traced(x) or type(weight) not in _PLAIN:
        return False
    if a.is_meta and not x.is_meta:  # what would be added has no values, and torch adds whatever lies in memory
        raise AdapterStateError("an adapter's tensors are on the meta device: they are offloaded or were never loaded.")
    return True


def down(x: Tensor, a: Tensor, p: float, half_step: Down) -> Tensor:
    """Return half_step(drop(x), a) without keeping the dropped x: it is made again in the backward pass.

    half_step: a layer's linear way from x to s (a matrix product, a convolution), differentiable in both.
    """
    if not p:
        return half_step(x, a)
    if _is_traced(x):
        return half_step(F.dropout(x, p), a)
    return _DroppedDown.apply(x, a, p, half_step)


def add_up(y: Tensor, s: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return y + scaling * s B^T, written into y where autograd allows it.

    y: (..., out), the output of some layer's own forward; s: (..., r); b: (out, r), both cast to y's dtype.
    """
    if not _is_writable(y) or not y.is_contiguous():
        return y + F.linear(s * scaling, b.to(s.dtype)).to(y.dtype)
    return _AddUp.apply(y, s.to(y.dtype), b, scaling)


def add(y: Tensor, update: Tensor, scaling: float) -> Tensor:
    """Return y + scaling * update, written into y where autograd allows it; both of one shape."""
    return y.add_(update, alpha=scaling) if _is_writable(y) else torch.add(y, update, alpha=scaling)


def _is_writable(y: Tensor) -> bool:
    """Return whether y may be written in place: the outputs of some functions are views that may not."""
    return not (_is_traced(y) or y._is_view())


def _is_traced(x: Tensor) -> bool:
    """Return whether plain operations are wanted: one of torch's tracers runs them, or the device is a rare one."""
    return is_traced() or x.device.type not in ("cpu", "cuda")


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, _, a, b, scaling, _, ctx.transposed = args
        y, s, ctx.drawn = add_product(*args)
        ctx.scaling = scaling * _gain(ctx.drawn)
        _, of_weight, _, of_a, of_b, *_ = ctx.needs_input_grad
        mask = ctx.drawn.give_up_mask() if ctx.drawn is not None else None
        ctx.save_for_backward(x if of_weight or of_a else None, weight, a, b, s if of_b else None, mask)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, s, mask = ctx.saved_tensors
        if mask is not None:
            ctx.drawn.take_mask(mask)
        of_x, of_weight, of_bias, of_a, of_b, *_ = ctx.needs_input_grad
        shape, dtype = (*dy.shape[:-1], a.shape[1]), dy.dtype
        dx: Any = None
        dweight: Any = None
        device = dy.device.type  # a backward pass under autocast keeps the dtypes of its forward pass
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            dy, a, b = dy.reshape(-1, dy.shape[-1]), a.to(dtype), b.to(dtype)
            if x is not None:
                x = x.to(dtype).reshape(-1, shape[-1])
            if of_x:
                dx = dy @ (weight.t() if ctx.transposed else weight).to(dtype)
            if of_weight:
                dweight = x.t() @ dy if ctx.transposed else dy.t() @ x
            if torch.is_grad_enabled():
                dx, da, db = _grads_to_differentiate(ctx, dy, x, a, b, dx)
            else:  # the small factor first is faster in bfloat16
                db = _scaled_product(ctx.scaling, s.t(), dy).t() if of_b else None
                dx, da = added_gradients(_scaled_product(ctx.scaling, dy, b), x if of_a else None, a, dx, ctx.drawn)
        dx = None if dx is None else dx.view(shape)
        return dx, dweight, dy.sum(0) if of_bias else None, da, db, None, None, None


def _scaled_product(scaling: float, first: Tensor, second: Tensor) -> Tensor:
    """Return scaling * first second, matrices, in one operation."""
    return torch.addmm(first.new_empty(()), first, second, beta=0, alpha=scaling)


def added_gradients(ds: Tensor, x: Tensor | None, a: Tensor, dx: Tensor | None, drawn: Drawn | None) -> tuple[Any, Any]:
    """Return dx + drop(dS A), added in place, and dS^T drop(x); None for what is None."""
    if drawn is not None:
        return dx, drawn.backward(ds, x, a, dx)
    return None if dx is None else dx.addmm_(ds, a), None if x is None else ds.t() @ x


def _grads_to_differentiate(ctx: Any, dy: Tensor, x: Any, a: Tensor, b: Tensor, dx: Any) -> tuple[Any, Any, Any]:
    """Return (dx, dA, dB) as a graph of their own, for second derivatives: S is part of it, nothing is in place."""
    of_x, _, _, of_a, of_b, *_ = ctx.needs_input_grad
    if of_b and x is None:
        raise AdapterStateError(
            "a second derivative (create_graph=True) through a layer whose A is frozen needs the layer's input, which "
            "is not kept there: take it of an adapter whose A trains."
        )
    drop = ctx.drawn or (lambda t: t)
    ds = dy @ b * ctx.scaling
    dx = dx + drop(ds @ a) if of_x else None
    da = ds.t() @ drop(x) if of_a else None
    db = dy.t() @ (drop(x) @ a.t()) * ctx.scaling if of_b else None
    return dx, da, db


def add_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, p: float, transposed: bool
) -> tuple[Tensor, Tensor, Drawn | None]:
    """Return what `lora_linear` does, S of shape (tokens, r), and what was dropped."""
    dtype = _compute_dtype(x)
    if dtype is not x.dtype:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    # What a function of autograd returns must be no view, or nobody could write into it later, as DeBERTa does.
    y = _base(x, weight, bias, transposed).contiguous().data
    x, a, drawn = x.reshape(-1, x.shape[-1]), a.to(dtype), draw(x, p)
    s = F.linear(x, a) if drawn is None else drawn.times(x, a)
    y.view(-1, y.shape[-1]).addmm_(s, b.to(dtype).t(), alpha=scaling * _gain(drawn))
    return y, s, drawn


def _gain(drawn: Drawn | None) -> float:
    return 1.0 if drawn is None else drawn.gain


def _base(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """Compute what `nn.Linear` or Transformers' Conv1D does, to the bit."""
    if not transposed:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
    return y.view(*x.shape[:-1], weight.shape[1])


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which torch's own linear would compute: autocast's, where it applies to x."""
    device = x.device.type
    if x.dtype is torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


class _DroppedDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, p: float, half_step: Down) -> Tensor:
        ctx.drawn, ctx.half_step, ctx.ambient = draw(x, p), half_step, ambient(x.device)
        s = half_step(ctx.drawn(x), a) * ctx.drawn.gain
        ctx.save_for_backward(x, a, ctx.drawn.give_up_mask())
        return s

    @staticmethod
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor | None, ...]:
        (*inputs, mask), twice = ctx.saved_tensors, torch.is_grad_enabled()
        if mask is not None:
            ctx.drawn.take_mask(mask)
        with torch.enable_grad(), ctx.ambient():
            x, a = (t if twice else t.detach().requires_grad_(t.requires_grad) for t in inputs)
            s = ctx.half_step(ctx.drawn(x), a) * ctx.drawn.gain
            wanted = [t for t, needed in zip((x, a), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(s, wanted, ds, create_graph=twice))
        return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, s: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.mark_dirty(y)
        ctx.scaling = scaling
        ctx.save_for_backward(s, b)
        y.view(-1, y.shape[-1]).addmm_(s.reshape(-1, s.shape[-1]), b.to(y.dtype).t(), alpha=scaling)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        s, b = ctx.saved_tensors
        _, of_s, of_b, _ = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        ds = (rows @ (b * ctx.scaling).to(dy.dtype)).view(s.shape) if of_s else None
        db = (rows.t() @ s.reshape(-1, s.shape[-1])).mul_(ctx.scaling) if of_b else None
        return dy, ds, db, None
