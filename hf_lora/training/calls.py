"""What trainings wait for: their batch's trunk, with those of others where they fit, and the gradients behind it.

A batch of several trainings' rows says whose each is, how wide it is alone, and what its dropout draws (`Shares`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import AdapterStateError
from ..layers.routes import Rows
from ..layers.rows import mapped
from .turns import Training, World

# What is as wide as a mask, which tells what of it is padding.
MASKS = {
    **dict.fromkeys(("input_ids", "inputs_embeds", "token_type_ids", "attention_mask"), "attention_mask"),
    **dict.fromkeys(("decoder_input_ids", "decoder_inputs_embeds"), "decoder_attention_mask"),
    "decoder_attention_mask": "decoder_attention_mask",
    **dict.fromkeys(("encoder_hidden_states", "encoder_attention_mask"), "encoder_attention_mask"),
}
IDS = ("input_ids", "decoder_input_ids")
ALONE = object()  # the answer that a training computes a call itself


class Backward:
    """The request to bring gradients through what was computed together."""

    order = 2


def _autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return tuple((each, torch.is_autocast_enabled(each), torch.get_autocast_dtype(each)) for each in devices)


@dataclass
class Call:
    """The request to compute a trunk. module: the twin's; compute: its own forward; takes: what that has arguments for.

    Made in the training's thread: grad, autocast: whether it wants gradients there, and lower precision.
    """

    training: Training
    trunk: str
    module: nn.Module
    compute: Callable[..., Any]
    arguments: dict[str, Any]
    takes: frozenset[str]
    grad: bool = field(default_factory=torch.is_grad_enabled)
    autocast: tuple[Any, ...] = field(default_factory=_autocast)

    @contextmanager
    def in_precision(self) -> Iterator[None]:
        """Compute in the training's precision inside a `with` block."""
        with ExitStack() as stack:
            for device, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype, enabled))
            yield

    @property
    def order(self) -> int:
        """Evaluations come first: who has none waits before its next step."""
        return 1 if self.grad else 0

    @property
    def rows(self) -> int:
        """The number of rows of the batch."""
        tensors = [*map(self.arguments.get, MASKS), *self.arguments.values()]
        return next((len(t) for t in tensors if isinstance(t, Tensor) and t.ndim), 0)

    def widths(self) -> dict[str, int]:
        """Return how wide this batch is, by the mask that goes with it."""
        named = [(name, self.arguments.get(name)) for name in MASKS]
        return {MASKS[name]: t.shape[1] for name, t in named if isinstance(t, Tensor) and t.ndim > 1}

    def kind(self) -> Hashable:
        """Return what is the same for batches that are computed together; what no other has for one that is not."""
        found: list[Hashable] = [self.trunk, self.module.training, self.grad, self.autocast]
        for name, value in sorted(self.arguments.items()):
            mask = MASKS.get(name)
            if name == mask and (value is None or (isinstance(value, Tensor) and value.ndim == 2)):
                continue  # one is made where others have one
            if isinstance(value, Tensor):
                if not value.ndim or len(value) != self.rows:
                    return id(self)
                is_wide = name != mask and mask in self.takes and value.ndim > 1
                found.append((name, value.dtype, value.device, value.shape[2 if is_wide else 1 :]))
            elif value is None or isinstance(value, bool | int | float | str):
                found.append((name, type(value), value))
            else:
                return id(self)
        return tuple(found)


def differing(calls: Sequence[Call], answers: Sequence[Any], before: Sequence[World]) -> list[str]:
    """Return the names of the trainings that compute another result alone; what their masks leave out is not asked."""
    found = []
    for call, answer, world in zip(calls, answers, before, strict=True):
        with ExitStack() as stack:
            stack.enter_context(call.in_precision())
            stack.enter_context(torch.no_grad())
            stack.enter_context(copy.copy(world).drawing())
            alone = call.compute(**call.arguments)
        mask = call.arguments.get("attention_mask")
        pairs = zip(_tensors(answer), _tensors(alone), strict=True)
        if not all(_is_close(one, other, mask) for one, other in pairs):
            found.append(call.training.name)
    return found


def _tensors(given: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(given, found.append)
    return found


def _is_close(one: Tensor, other: Tensor, mask: Any) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return True
    if isinstance(mask, Tensor) and mask.shape == one.shape[:2]:
        one, other = one[mask.bool()], other[mask.bool()]
    most = min(0.2, 30 * torch.finfo(other.dtype).eps ** 0.5)
    one, other = one.detach(), other.detach()
    return float((one - other).double().norm()) <= most * float(other.double().norm()) + 1e-30


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
