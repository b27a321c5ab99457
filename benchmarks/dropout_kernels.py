"""A candidate for dropout on an NVIDIA GPU: a kernel draws a bit an element, and the products read the bits.

    keep = Philox4x32-7 (Salmon et al. 2011, doi:10.1145/2063384.2063405), 16 bits an element, so that the probability
           is met to 2^-17; kept for the backward pass, 1/16 of a bfloat16 matrix
    S    = (keep * x) A^T
    dA   = dS^T (keep * x)
    dX  += keep * (dS A)        in one kernel with dA

No copy of x's size is written. The kernels are Triton's, which comes with torch for CUDA on Linux. They are right in
Triton's interpreter; whether they beat `hf_lora.maths.dropout.MaskDraw`, `make gpu` has to tell (`dropout.py` here).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BitDraw"]

_WIDEST = 128  # ranks up to which a block of A fits in registers; above, the dropped matrix is written once
_PROGRAMS = 512  # at least so many blocks of work where the shape allows it: a few for each multiprocessor


class BitDraw:
    """One draw of the elements to drop of a matrix x (rows, width), kept as bits on the device.

    The seed comes from torch's default CPU generator, as `Draw`'s does. gain: as `Draw`'s.
    """

    __slots__ = ("_bits", "_rows", "_width", "gain")

    def __init__(self, rows: int, width: int, p: float, device: torch.device) -> None:
        """Draw for a matrix of that shape, each element dropped with probability 2^-10 <= p < 1."""
        self._rows, self._width, self.gain = rows, width, 1 / (1 - p)
        bits = torch.empty(rows, triton.cdiv(width, 32), dtype=torch.int32, device=device)
        seed = int(torch.randint(1 << 62, (), device="cpu"))
        count, block = bits.numel(), 256
        if count:
            with torch.cuda.device_of(bits):
                _draw[(triton.cdiv(count, block),)](bits, count, seed, round(p * 65536), BLOCK=block)
        self._bits = bits

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with its dropped elements zero, as a new contiguous tensor; differentiable.

        x: rows * width elements in any shape.
        """
        shifts = torch.arange(32, dtype=torch.int32, device=self._bits.device)
        bits = (self._bits.unsqueeze(-1) >> shifts).bitwise_and_(1).flatten(1)[:, : self._width]
        return torch.where(bits.bool().reshape(x.shape), x, x.new_zeros(())).contiguous()

    def times(self, x: Tensor, a: Tensor) -> Tensor:
        """Return drop(x) A^T, (rows, r). x: (rows, width), left unchanged; a: (r, width), of its dtype."""
        r = a.shape[0]
        if r > _WIDEST or not x.numel():
            return F.linear(self(x), a)
        x, s = _with_rows(x), x.new_empty(self._rows, r)
        block = 16 if self._rows <= 2048 else 32 if self._rows <= 8192 else 64
        with torch.cuda.device_of(x):
            _times[(triton.cdiv(self._rows, block),)](
                x, self._bits, a.contiguous(), s, self._rows, self._width, self._bits.shape[1], r, x.stride(0),
                ROWS=block, COLUMNS=128, RANK=_padded(r),
            )  # fmt: skip
        return s

    def backward(self, ds: Tensor, x: Tensor | None, a: Tensor, dx: Tensor | None) -> Tensor | None:
        """Return dS^T drop(x), (r, width) in float32, and add drop(dS A) to dx in place; what is None is left out.

        ds: (rows, r), the gradient of `times`; x, dx: (rows, width), dx contiguous.
        """
        r = a.shape[0]
        if r > _WIDEST or not self._bits.numel():
            if dx is not None:
                dx.add_(self(ds @ a))
            return None if x is None else ds.t() @ self(x)
        if x is None and dx is None:
            return None
        rows, columns = (64, 64) if ds.element_size() == 2 else (32, 64)
        blocks, slabs = triton.cdiv(self._rows, rows), triton.cdiv(self._width, columns)
        parts = min(triton.cdiv(blocks, 4), triton.cdiv(_PROGRAMS, slabs))
        share = triton.cdiv(blocks, parts) * rows
        parts = triton.cdiv(self._rows, share)
        x = None if x is None else _with_rows(x)
        da = ds.new_empty(parts if x is not None else 0, r, self._width, dtype=torch.float32)
        with torch.cuda.device_of(ds):
            _backward[(slabs, parts)](
                ds.contiguous(), ds if x is None else x, self._bits, a.contiguous(), ds if dx is None else dx, da,
                self._rows, self._width, self._bits.shape[1], r, 0 if x is None else x.stride(0), share,
                ROWS=rows, COLUMNS=columns, RANK=_padded(r), OF_X=dx is not None, OF_A=x is not None,
                num_warps=4 if r <= 64 else 8,
            )  # fmt: skip
        return None if x is None else da[0] if parts == 1 else da.sum(0)


def _with_rows(x: Tensor) -> Tensor:
    """Return x with each row's elements side by side."""
    return x if x.stride(1) == 1 else x.contiguous()


def _padded(r: int) -> int:
    """Return the smallest power of two from r up that a matrix unit takes."""
    return max(16, triton.next_power_of_2(r))


@triton.jit(do_not_specialize=["seed", "dropped"])
def _draw(bits, count, seed, dropped, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.zeros((BLOCK,), tl.uint32)
    for quarter in tl.static_range(4):
        drawn = tl.randint4x(seed, word * 4 + quarter, 7)
        for i in tl.static_range(4):
            number = drawn[i].to(tl.uint32, bitcast=True)
            low, high = (number & 0xFFFF).to(tl.int32), (number >> 16).to(tl.int32)
            kept |= (low >= dropped).to(tl.uint32) << (8 * quarter + 2 * i)
            kept |= (high >= dropped).to(tl.uint32) << (8 * quarter + 2 * i + 1)
    tl.store(bits + word, kept.to(tl.int32, bitcast=True), mask=word < count)


@triton.jit
def _kept(bits, row, column, words, here):  # type: ignore[no-untyped-def]
    word = tl.load(bits + row[:, None] * words + column[None, :] // 32, mask=here, other=0)
    return ((word >> (column % 32)[None, :]) & 1) != 0


@triton.jit
def _times(x, bits, a, s, rows, width, words, r, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rank = tl.arange(0, RANK)
    total = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = (row < rows)[:, None] & (column < width)[None, :]
        part = tl.load(x + row[:, None] * stride + column[None, :], mask=here, other=0.0)
        part = tl.where(_kept(bits, row, column, words, here), part, 0.0)
        of_a = (rank < r)[:, None] & (column < width)[None, :]
        factor = tl.load(a + rank[:, None] * width + column[None, :], mask=of_a, other=0.0)
        total = tl.dot(part, tl.trans(factor), total, input_precision="ieee")
    to = (row < rows)[:, None] & (rank < r)[None, :]
    tl.store(s + row[:, None] * r + rank[None, :], total.to(s.dtype.element_ty), mask=to)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    ds, x, bits, a, dx, da, rows, width, words, r, stride, share,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, OF_X: tl.constexpr, OF_A: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    of_a = (rank < r)[:, None] & (column < width)[None, :]
    factor = tl.load(a + rank[:, None] * width + column[None, :], mask=of_a, other=0.0)
    total = tl.zeros((RANK, COLUMNS), tl.float32)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, rows), ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        here = (row < rows)[:, None] & (column < width)[None, :]
        kept = _kept(bits, row, column, words, here)
        of_s = (row < rows)[:, None] & (rank < r)[None, :]
        grad = tl.load(ds + row[:, None] * r + rank[None, :], mask=of_s, other=0.0)
        if OF_A:
            part = tl.load(x + row[:, None] * stride + column[None, :], mask=here, other=0.0)
            total = tl.dot(tl.trans(grad), tl.where(kept, part, 0.0), total, input_precision="ieee")
        if OF_X:
            place = dx + row[:, None] * width + column[None, :]
            update = tl.where(kept, tl.dot(grad, factor, input_precision="ieee"), 0.0)
            old = tl.load(place, mask=here, other=0.0)
            tl.store(place, (old + update).to(dx.dtype.element_ty), mask=here)
    if OF_A:
        to = da + (tl.program_id(1) * r + rank[:, None]).to(tl.int64) * width + column[None, :]
        tl.store(to, total, mask=of_a)
