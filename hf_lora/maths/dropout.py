"""Dropout that keeps no copy of what is dropped: a draw of elements is an object, which takes products with them.

On the CPU a draw keeps a seed: only the positions of dropped elements are drawn, and drawn again in the backward pass.
K ~ Poisson(-n ln(1 - p)) positions, uniform over n elements with replacement, hit each element independently with
probability exactly p: a Poisson process thinned over n cells leaves a cell untouched with probability
exp(-E[K] / n) = 1 - p. Drawing p n numbers costs a fraction of drawing n, and products with a dropped matrix are
taken chunk by chunk, so that no copy of its size is made. On a GPU scattered writes cost more than they save: there a
draw keeps the mask, a byte an element. For dropout itself: Srivastava et al. 2014, JMLR 15.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 1 << 20  # elements; what stays in a processor's cache


def draw(x: Tensor, p: float) -> Drawn | None:
    """Return a draw of the elements of x (..., width) that are dropped, each with probability p; None for p = 0."""
    if not p:
        return None
    width = x.shape[-1]
    cls = Draw if x.device.type == "cpu" else MaskDraw
    return cls(x.numel() // max(1, width), width, p)


class Draw:
    """One draw of the elements to drop of a matrix x (rows, width) on the CPU.

    Both numbers it depends on come from torch's default CPU generator: `torch.manual_seed` makes a draw reproducible,
    and whoever restores that generator, as gradient checkpointing does, gets the same draw again.

    gain: what every result here still has to be multiplied by, 1 / (1 - p).
    """

    __slots__ = ("_chunk", "_counts", "_keeps", "_rows", "_seed", "_width", "gain")

    def __init__(self, rows: int, width: int, p: float) -> None:
        """Draw for a matrix of that shape, each element dropped with probability 0 < p < 1."""
        self._rows, self._width, self.gain = rows, width, 1 / (1 - p)
        self._chunk = max(1, _CHUNK // max(1, width))
        self._keeps = p > 0.5  # then the kept positions are the fewer ones, and drawn instead
        rate = -math.log(p) if self._keeps else -math.log1p(-p)
        sizes = [(part.stop - part.start) * width * rate for part in self._slices()]
        self._counts = torch.poisson(torch.tensor(sizes, dtype=torch.float64, device="cpu")).long().tolist()
        self._seed = int(torch.randint(1 << 62, (), device="cpu"))

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with its dropped elements zero, as a new contiguous tensor; differentiable.

        x: rows * width elements in any shape.
        """
        out = x.clone(memory_format=torch.contiguous_format)
        matrix = out.view(self._rows, self._width)
        for rows, positions in self._parts():
            self._drop_(matrix[rows], positions)
        return out

    def give_up_mask(self) -> None:
        """Return what autograd has to keep for `take_mask`: nothing, the seed is enough."""

    def take_mask(self, mask: None) -> None:
        """Do nothing."""

    def times(self, x: Tensor, a: Tensor) -> Tensor:
        """Return drop(x) A^T, (rows, r). x: (rows, width), left unchanged; a: (r, width), of its dtype."""
        s = x.new_empty(self._rows, a.shape[0])
        scratch = self._scratch(x)
        for rows, positions in self._parts():
            torch.mm(self._dropped(x[rows], positions, scratch), a.t(), out=s[rows])
        return s

    def backward(self, ds: Tensor, x: Tensor | None, a: Tensor, dx: Tensor | None) -> Tensor | None:
        """Return dS^T drop(x), (r, width), and add drop(dS A) to dx in place; what is None is left out.

        ds: (rows, r), the gradient of `times`; x, dx: (rows, width). Chunks are summed in float32 or wider.
        """
        da: Tensor | None = None
        scratch = self._scratch(x)
        for rows, positions in self._parts():
            if x is not None:
                part = ds[rows].t() @ self._dropped(x[rows], positions, scratch)
                da = part if da is None else da.to(torch.promote_types(part.dtype, torch.float32)).add_(part)
            if dx is not None:
                self._add_product(dx[rows], ds[rows], a, positions)
        return torch.zeros_like(a) if da is None and x is not None else da

    def _add_product(self, dx: Tensor, ds: Tensor, a: Tensor, positions: Tensor) -> None:
        """Add dS A to dx except at the dropped elements. Positions may repeat, so values are copied, never added."""
        flat = dx.view(-1)
        if self._keeps:
            flat.index_copy_(0, positions, (dx + ds @ a).view(-1).index_select(0, positions))
        else:
            spared = flat.index_select(0, positions)
            dx.addmm_(ds, a)
            flat.index_copy_(0, positions, spared)

    def _scratch(self, x: Tensor | None) -> Tensor:
        """Return memory for one chunk of x, which all of them share in turn."""
        return torch.empty(0, device="cpu") if x is None else x.new_empty(min(self._chunk, self._rows), self._width)

    def _dropped(self, part: Tensor, positions: Tensor, scratch: Tensor) -> Tensor:
        copy = scratch[: part.shape[0]].copy_(part)
        self._drop_(copy, positions)
        return copy

    def _drop_(self, part: Tensor, positions: Tensor) -> None:
        if self._keeps:
            kept = torch.zeros_like(part, memory_format=torch.contiguous_format)
            kept.view(-1).index_fill_(0, positions, 1)
            part.mul_(kept)
        else:
            part.view(-1).index_fill_(0, positions, 0)

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, the positions drawn in them, int64 and relative to the first of them), the same each time."""
        generator = torch.Generator("cpu")
        generator.manual_seed(self._seed)
        for rows, count in zip(self._slices(), self._counts, strict=True):
            n = (rows.stop - rows.start) * self._width
            # torch takes a random integer modulo its range, which for 32 random bits favours the low positions by up
            # to n / 2^32; a range above 2^32 is served from 64 bits, and the excess is shifted out.
            excess = max(0, 34 - n.bit_length())
            wide = torch.randint(n << excess, (count,), generator=generator, device="cpu")
            yield rows, wide.bitwise_right_shift_(excess)

    def _slices(self) -> list[slice]:
        if not self._width:
            return []
        return [slice(i, min(i + self._chunk, self._rows)) for i in range(0, self._rows, self._chunk)]


class MaskDraw:
    """One draw of the elements to drop of a matrix x (rows, width), kept as a mask on x's device.

    It comes from the device's default generator in the first product, as torch's own dropout does.
    gain: 1, the results here are multiplied by 1 / (1 - p).
    """

    __slots__ = ("_mask", "_p", "_shape")
    gain = 1.0

    def __init__(self, rows: int, width: int, p: float) -> None:
        """Draw for a matrix of that shape, each element dropped with probability 0 < p < 1."""
        self._shape, self._p = (rows, width), p
        self._mask: Tensor | None = None

    def give_up_mask(self) -> Tensor | None:
        """Return the mask (rows, width) and forget it, so that autograd keeps it with all it needs for backward."""
        mask, self._mask = self._mask, None
        return mask

    def take_mask(self, mask: Tensor) -> None:
        """Take back the mask that was given up."""
        self._mask = mask

    def __call__(self, x: Tensor) -> Tensor:
        """Return dropped x / (1 - p), as a new tensor of x's shape; differentiable."""
        if self._mask is not None:
            return torch.ops.aten.native_dropout_backward(x, self._mask.view(x.shape), 1 / (1 - self._p))
        out, mask = torch.native_dropout(x, self._p, True)
        self._mask = mask.view(self._shape)
        return out

    def times(self, x: Tensor, a: Tensor) -> Tensor:
        """Return drop(x) A^T, (rows, r). x: (rows, width), left unchanged; a: (r, width), of its dtype."""
        return F.linear(self(x), a)

    def backward(self, ds: Tensor, x: Tensor | None, a: Tensor, dx: Tensor | None) -> Tensor | None:
        """Return dS^T drop(x), (r, width), and add drop(dS A) to dx in place; what is None is left out.

        ds: (rows, r), the gradient of `times`; x, dx: (rows, width).
        """
        if dx is not None and self._mask is not None:
            dx.addcmul_(ds @ a, self._mask, value=1 / (1 - self._p))
        return None if x is None else ds.t() @ self(x)


Drawn: TypeAlias = Draw | MaskDraw
