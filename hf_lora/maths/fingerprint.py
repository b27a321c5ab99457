"""A fingerprint of weights: a few rows of each on fixed signs, which shows where they differ by more than rounding.

Of every weight ROWS rows w_k, spread over dimension 0 (flattened, at most LENGTH values spread over each), give

    p_k = sum_j s_kj w_kj,   s_kj = +-1 from a hash of (k, j)            and their size  sum_k |w_k|^2.

For two weights, (p_k - p'_k)^2 is an unbiased estimate of |w_k - w'_k|^2, whatever w and w' are (Achlioptas 2003,
doi:10.1016/S0022-0000(03)00025-4).

What the same weights may differ by is rounding: u |w| / sqrt(3) at most (root mean square), u being 2^-8 for bfloat16
and 2^-11 for float16, and 2^-25 where float16 runs out of exponents. How far the values were rounded is seen from the
values: a bfloat16 checkpoint read as float32 is still on bfloat16's grid.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

ROWS, LENGTH = 4, 1024
ROUNDING = {"b": 2.0**-8, "h": 2.0**-11, "f": 0.0}  # by grid: bfloat16's, float16's, a finer one
UNREAD = "."
_EXACT = 1e-6  # float32's own noise, with room
_SUBNORMAL = 2.0**-25  # half the distance of float16's smallest numbers
_LARGEST = 1e38
_MOST = 17.4  # a chi-square of ROWS degrees of freedom is that many times its mean once in 10^12


@dataclass(frozen=True)
class Fingerprint:
    """Projections and sizes of n weights. grids: a letter each, of ROUNDING, or UNREAD where nothing could be read.

    projections: (n, ROWS), squares: (n,), float64 on the CPU.
    """

    projections: Tensor
    squares: Tensor
    grids: str

    @property
    def read(self) -> int:
        """How many of the weights could be read."""
        return len(self.grids) - self.grids.count(UNREAD)


def fingerprint(weights: Sequence[Tensor | None]) -> Fingerprint:
    """Return the fingerprint of some weights of any floating dtype, shape and device; None is one that is not read.

    The weights are left as they are.
    """
    block = torch.zeros(len(weights), ROWS, LENGTH, device="cpu")
    for sample, weight in zip(block, weights, strict=True):
        if weight is not None and weight.ndim:
            rows = _rows(weight.detach())
            sample[: rows.shape[0], : rows.shape[1]] = rows
    projections = (block * _signs()).sum(2, dtype=torch.float64)
    squares = torch.linalg.vector_norm(block, dim=(1, 2), dtype=torch.float64).square()
    rounded = {letter: block.to(dtype).float() for letter, dtype in (("b", torch.bfloat16), ("h", torch.float16))}
    on = {letter: ((values - block).abs().amax((1, 2)) == 0).tolist() for letter, values in rounded.items()}
    grids = ["b" if b else "h" if h else "f" for b, h in zip(on["b"], on["h"], strict=True)]
    for i, (weight, square) in enumerate(zip(weights, squares.tolist(), strict=True)):
        if weight is None or not weight.ndim or not weight.numel() or not square < _LARGEST:  # too large, or NaN
            grids[i] = UNREAD
            projections[i], squares[i] = 0, 0
    return Fingerprint(projections, squares, "".join(grids))


def differ(mine: Fingerprint, theirs: Fingerprint, in_order: bool = True) -> bool | None:
    """Tell whether any weight differs from the one of its number by more than rounding; None if none can be compared.

    Weights that either side could not read are left out. in_order: False compares each of theirs with the nearest.
    """
    if len(mine.grids) != len(theirs.grids):
        return None
    order = torch.arange(len(mine.grids), device="cpu")
    if not in_order:
        order = torch.cdist(theirs.projections, mine.projections).argmin(1)
    pairs = [(i, j) for i, j in enumerate(order.tolist()) if UNREAD not in (theirs.grids[i], mine.grids[j])]
    if not pairs:
        return None
    i, j = (list(side) for side in zip(*pairs, strict=True))
    found = (theirs.projections[i] - mine.projections[j]).square().sum(1)
    sizes = torch.maximum(theirs.squares[i], mine.squares[j])
    grids = [max(ROUNDING[theirs.grids[a]], ROUNDING[mine.grids[b]]) for a, b in pairs]
    rounding = torch.tensor(grids, dtype=torch.float64, device="cpu")
    noise = sizes * (rounding.square() / 3 + _EXACT**2) + ROWS * LENGTH * _SUBNORMAL**2 / 3
    return bool((found > noise * _MOST).any())


def encode(found: Fingerprint) -> dict[str, str]:
    """Return a fingerprint as JSON: the grids, and ROWS projections and the size of each weight, float32 in base64."""
    numbers = torch.cat([found.projections, found.squares[:, None]], dim=1).flatten().tolist()
    return {"data": base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode(), "grids": found.grids}


def decode(value: object) -> Fingerprint:
    """Return the fingerprint that `encode` wrote. Raises ValueError where it is not one."""
    try:
        data, grids = value["data"], value["grids"]  # type: ignore[index]
        raw = struct.unpack(f"<{(ROWS + 1) * len(grids)}f", base64.b64decode(data, validate=True))
        numbers = torch.tensor(raw, dtype=torch.float64, device="cpu").view(-1, ROWS + 1)
        if set(grids) - {*ROUNDING, UNREAD} or not numbers.isfinite().all() or (numbers[:, ROWS] < 0).any():
            raise ValueError("numbers or grids that no weights have")
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"it is no fingerprint: {error}") from None
    return Fingerprint(numbers[:, :ROWS].contiguous(), numbers[:, ROWS].contiguous(), grids)


def _rows(weight: Tensor) -> Tensor:
    """Return the rows that are looked at, ROWS of them where there are as many, at most LENGTH values spread over each.

    A view, where the weight's rows lie in one piece.
    """
    count = len(weight)
    rows = weight[count // (2 * ROWS) :: max(count // ROWS, 1)][:ROWS].flatten(1) if weight.ndim > 1 else weight[None]
    return rows[:, :: max(-(-rows.shape[1] // LENGTH), 1)]


@cache
def _signs() -> Tensor:
    """Return (ROWS, LENGTH) signs, float32: a hash of the place, so the same on every machine and in every version."""
    h = torch.arange(ROWS * LENGTH, device="cpu").view(ROWS, LENGTH)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF  # the product wraps beyond 64 bits, its low half is right
    return (1 - 2 * ((h ^ (h >> 16)) & 1)).float()
