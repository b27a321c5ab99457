"""A batch of several trainings' rows: whose each is, how wide it is alone, and what its dropout draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import AdapterStateError
from ..layers.routes import Rows
from .calls import Call

_attention: Any = F.scaled_dot_product_attention
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class Shares(Rows):
    """The rows of several trainings, side by side: for layers, whose each is, how wide it is and what it draws from."""

    calls: Sequence[Call]
    starts: list[int]
    widths: dict[int, list[int]]  # of what is padded: its width in the batch -> the width of each training's
    is_drawn: bool

    @classmethod
    def of(cls, calls: Sequence[Call], widths: dict[int, list[int]], is_drawn: bool) -> Shares:
        """Make the route of several calls. is_drawn: whether each draws from its own random numbers."""
        self = cls([(call.training.name,) for call in calls for _ in range(call.rows)])
        self.calls, self.widths, self.is_drawn = calls, widths, is_drawn
        self.starts = [0, *accumulate(call.rows for call in calls)]
        return self

    def part(self, x: Tensor, i: int) -> Tensor:
        """Return the view of a training's own share of a tensor of the whole batch, (rows, width, ...).

        Where a row's parts lie in the first dimension, they become the second. Raises AdapterStateError where it has no
        rows.
        """
        times, rest = divmod(len(x) if x.ndim else 0, self.starts[-1])
        if rest or not times:
            raise AdapterStateError(
                f"{self.calls[0].trunk} returns a tensor of shape {tuple(x.shape)} for a batch of {self.starts[-1]} "
                "rows: whose it is cannot be told, so its trainings cannot be computed together."
            )
        x = x if times == 1 else x.unflatten(0, (self.starts[-1], times))
        return self.narrowed(i, x[self.starts[i] : self.starts[i + 1]])

    def own(self, x: Tensor, i: int) -> Tensor:
        """Return a training's share of a tensor in the shape that it has alone."""
        return self.part(x, i) if len(x) == self.starts[-1] else self.part(x, i).flatten(0, 1)

    def _padded(self, x: Tensor) -> list[int]:
        return [d for d in range(1, x.ndim) if x.shape[d] in self.widths]

    def narrowed(self, group: int, x: Tensor) -> Tensor:
        for d in self._padded(x):
            x = x.narrow(d, 0, self.widths[x.shape[d]][group])
        return x

    def widened(self, group: int, y: Tensor, x: Tensor) -> Tensor:
        for d in self._padded(x):
            y = F.pad(y, [0, 0] * (y.ndim - 1 - d) + [0, x.shape[d] - y.shape[d]])
        return y

    def during(self, group: int) -> AbstractContextManager[None]:
        return self.calls[group].training.world.drawing() if self.is_drawn else nullcontext()


class Draws(TorchFunctionMode):
    """Has dropout draw for the rows of each training what it would draw alone, in a forward of all of them."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self.shares = shares

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        if func is _attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        shares = self.shares
        if not training or not p or len(x) % shares.starts[-1]:
            return func(x, p, training, inplace)
        # A fused dropout rounds once, where the processor's multiplies with rounded factors.
        dtype = x.dtype if x.device.type == "cpu" else torch.promote_types(x.dtype, torch.float32)
        factors = torch.zeros(x.shape, dtype=dtype, device=x.device)
        for i in range(len(shares.calls)):
            share = shares.part(factors, i)
            with shares.during(i):
                share.copy_(func(torch.ones(share.shape, dtype=dtype, device=x.device), p, True))
        return (x * factors).to(x.dtype)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *args: Any, **kwargs: Any
    ) -> Tensor:
        shares = self.shares
        if not dropout_p or not len(q) == len(k) == shares.starts[-1]:
            return _attention(q, k, v, attn_mask, dropout_p, *args, **kwargs)
        sizes = [call.rows for call in shares.calls]
        results = []
        for i, each in enumerate(zip(*(x.split(sizes) for x in (q, k, v)), strict=True)):
            own = [x.narrow(-2, 0, shares.widths.get(x.shape[-2], {i: x.shape[-2]})[i]) for x in each]
            mask = attn_mask
            if mask is not None:
                mask = shares.narrowed(i, mask.split(sizes)[i] if len(mask) == len(q) else mask)
            with shares.during(i):
                y = _attention(*own, mask, dropout_p, *args, **kwargs)
            results.append(F.pad(y, [0, 0, 0, q.shape[-2] - y.shape[-2]]))
        return torch.cat(results)
