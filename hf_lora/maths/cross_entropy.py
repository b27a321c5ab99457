"""Cross entropy over a vocabulary, a few rows of logits at a time.

    loss = sum_i l(score(h_i), t_i) / n

The gradients of the sum are taken chunk by chunk in forward, where the chunk's logits are at hand, and scaled in
backward by the gradient of the loss. So the head is multiplied with as often as without chunks, rows without a label
cost nothing, and at most `CHUNK` logits are there at a time. Hsu et al. 2024, arXiv:2410.10989.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 2**24  # logits: 64 MiB in float32, of which a few copies live at once

Score = Callable[[Tensor], Tensor]  # rows of hidden states (n, in) to rows of logits (n, vocabulary)
Loss = Callable[..., Tensor]  # logits (n, vocabulary), labels (n,) and a reduction to their loss


def chunked_cross_entropy(
    score: Score,
    hidden: Tensor,
    target: Tensor,
    parameters: Sequence[Tensor],
    vocabulary: int,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return what `F.cross_entropy(score(hidden), target, ...)` gives, without ever holding all the logits.

    hidden: (rows, in); target: (rows,), class indices. parameters: what score trains. The gradient cannot be
    differentiated again, but for reduction "none", which makes each chunk's logits a second time in backward.
    """
    loss = partial(F.cross_entropy, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing)
    if not torch.is_grad_enabled():
        hidden, parameters = hidden.detach(), ()
    if reduction == "none":
        size = _chunk(len(target), vocabulary)
        chunks = zip(hidden.split(size), target.split(size), strict=True)
        losses = [checkpoint(_losses, score, loss, rows, labels, use_reentrant=False) for rows, labels in chunks]
        return torch.cat(losses)
    labelled = (target != ignore_index).nonzero().squeeze(1)
    if len(labelled) < len(target):
        hidden, target = hidden.index_select(0, labelled), target.index_select(0, labelled)
    divisor: Tensor | int = 1
    if reduction == "mean":
        divisor = len(target) if weight is None else weight[target].sum()
    size = _chunk(len(target), vocabulary)
    with_gradient = _with_gradient if weight is None and not label_smoothing else partial(_with_any_gradient, loss)
    return _SummedLoss.apply(score, with_gradient, size, divisor, hidden, target, *parameters)


def _chunk(rows: int, vocabulary: int) -> int:
    """Return how many rows make a chunk, so that all are about the same."""
    chunks = max(1, -(-rows * vocabulary // CHUNK))
    return max(1, -(-rows // chunks))


def _losses(score: Score, loss: Loss, rows: Tensor, labels: Tensor) -> Tensor:
    return loss(score(rows), labels, reduction="none")


def _with_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss -log softmax(z)_t and its gradient softmax(z) - onehot(t), in one tensor."""
    if logits.dtype not in (torch.float32, torch.float64):
        return _with_any_gradient(F.cross_entropy, logits, labels)  # autocast and torch choose how to compute it
    log_p, index = torch.log_softmax(logits, -1), labels.unsqueeze(1)
    loss = -log_p.gather(1, index).sum()
    return loss, log_p.exp_().scatter_add_(1, index, log_p.new_full((), -1.0).expand(index.shape))


def _with_any_gradient(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return any summed loss and its gradient by the logits."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        value = loss(logits, labels, reduction="sum")
        return value.detach(), torch.autograd.grad(value, logits)[0]


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        score: Score,
        with_gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        size: int,
        divisor: Tensor | int,
        hidden: Tensor,
        target: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        needs_rows, ctx.needs = ctx.needs_input_grad[4], ctx.needs_input_grad[4:]
        trained = [p for p, needed in zip(parameters, ctx.needs[2:], strict=True) if needed]
        rows_sum = [torch.zeros_like(hidden)] if needs_rows else []
        sums = [torch.zeros_like(p, dtype=_wide(p.dtype)) for p in trained]
        losses = []
        for start in range(0, max(1, len(target)), size):
            chunk = slice(start, start + size)
            rows = hidden[chunk].detach().requires_grad_(needs_rows)
            # Hooks around the model (checkpointing, offloading) have no part in a graph that ends here.
            with torch.set_grad_enabled(needs_rows or bool(trained)), saved_tensors_hooks(_same, _same):
                logits = score(rows)
            loss, grad = with_gradient(logits.detach(), target[chunk])
            losses.append(loss)
            if logits.requires_grad:
                parts = torch.autograd.grad(logits, [rows] * needs_rows + trained, grad, allow_unused=True)
                for total, part in zip([t[chunk] for t in rows_sum] + sums, parts, strict=True):
                    total += 0 if part is None else part
        ctx.save_for_backward(*rows_sum, *sums)
        ctx.divisor, ctx.rows = divisor, len(target)
        ctx.dtypes = [t.dtype for t in [hidden] * needs_rows + trained]
        return (torch.stack(losses).sum(dtype=_wide(loss.dtype)) / divisor).to(loss.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # One dimension, not none, so that it widens half-precision sums and is not itself rounded to theirs.
        scale = (grad.to(_wide(grad.dtype)) / (ctx.divisor if ctx.rows else 1)).reshape(1)
        scaled = iter([(g * scale).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)])
        return None, None, None, None, *(next(scaled) if needed else None for needed in ctx.needs)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
