"""A fingerprint of weights: a few rows of each, projected on fixed signs, from which distances can be estimated.

Of every weight ROWS rows w_k, spread over dimension 0 (flattened, at most LENGTH values spread over each), give

    p_k = sum_j s_kj w_kj,   s_kj = +-1 from a hash of (k, j)            and their size  sum_k |w_k|^2.

For two weights, (p_k - p'_k)^2 is an unbiased estimate of |w_k - w'_k|^2, whatever w and w' are (Achlioptas 2003,
doi:10.1016/S0022-0000(03)00025-4), so that

    rho^2 = sum_k (p_k - p'_k)^2 / sum_k |w_k|^2

estimates the squared relative distance. It behaves as chi-square with ROWS degrees of freedom over ROWS: over one
weight rho is between 0.35 and 1.7 times the truth 19 times of 20, over fifty weights within 10%.

What the same weights may differ by is rounding: u |w| / sqrt(3) at most (root mean square), u being 2^-8 for bfloat16
and 2^-11 for float16, and 2^-25 where float16 runs out of exponents. How far the values were rounded is seen from the
values: a bfloat16 checkpoint read as float32 is still on bfloat16's grid. Where both sides are on the same grid there
is no rounding between them, and a difference above 1e-6 is a difference.
"""

from __future__ import annotations

import base64
import math
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Difference", "Fingerprint", "compare", "decode", "encode", "fingerprint", "rearranged"]

ROWS, LENGTH = 4, 1024
ROUNDING = {"b": 2.0**-8, "h": 2.0**-11, "f": 0.0}  # by grid: bfloat16's, float16's, a finer one
UNREAD = "."
_EXACT = 1e-6  # float32's own noise, with room
_SUBNORMAL = 2.0**-25  # half the distance of float16's smallest numbers
_FEW, _LARGEST = 32, 1e38
_DEVIATIONS = 7.0  # of the normal distribution: one false alarm in 10^12


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


@dataclass(frozen=True)
class Difference:
    """How two fingerprints differ.

    changed: whether by more than rounding explains; rounded: whether by as much as rounding would, between weights
    that are on the same grid. relative: the estimated |W - W'| / |W| over all weights, and `each` of the compared
    ones by its number; outliers: the numbers of those that changed by themselves.
    """

    changed: bool
    rounded: bool
    relative: float
    each: dict[int, float]
    outliers: tuple[int, ...]


def fingerprint(weights: Sequence[Tensor | None]) -> Fingerprint:
    """Return the fingerprint of some weights of any floating dtype, shape and device; None is one that is not read.

    One transfer for all weights of a device, dtype and row length; the weights are left as they are.
    """
    projections = torch.zeros(len(weights), ROWS, dtype=torch.float64, device="cpu")
    squares, grids = torch.zeros(len(weights), dtype=torch.float64, device="cpu"), [UNREAD] * len(weights)
    groups: dict[tuple[torch.device, torch.dtype, torch.Size], dict[int, Tensor]] = defaultdict(dict)
    with torch.no_grad():
        for i, weight in enumerate(weights):
            if weight is not None and weight.ndim and weight.numel():
                rows = _rows(weight)
                groups[rows.device, rows.dtype, rows.shape][i] = rows
        for (_, _, (count, length)), members in groups.items():
            numbers = list(members)
            block = torch.stack(list(members.values())).cpu()
            values = block.double()
            projections[numbers, :count] = torch.einsum("nkl,kl->nk", values, _signs(length)[:count])
            squares[numbers] = torch.linalg.vector_norm(values, dim=(1, 2)).square()
            for i, size, grid in zip(numbers, squares[numbers].tolist(), _grids(block), strict=True):
                grids[i] = grid if size < _LARGEST else UNREAD  # neither too large for float32, nor infinite, nor NaN
    return Fingerprint(projections, squares, "".join(grids))


def compare(mine: Fingerprint, theirs: Fingerprint) -> Difference | None:
    """Return how the weights of two fingerprints differ, each with the one of its number.

    Weights that either side could not read are left out. None where nothing can be compared.
    """
    if len(mine.grids) != len(theirs.grids):
        return None
    pairs = enumerate(zip(mine.grids, theirs.grids, strict=True))
    chosen = [i for i, pair in pairs if UNREAD not in pair]
    if not chosen:
        return None
    found = (mine.projections[chosen] - theirs.projections[chosen]).square().sum(1)
    sizes = torch.maximum(mine.squares[chosen], theirs.squares[chosen])
    letters = [(mine.grids[i], theirs.grids[i]) for i in chosen]
    between = torch.tensor(
        [0.0 if a == b else max(ROUNDING[a], ROUNDING[b]) for a, b in letters], device="cpu"
    ).double()
    grid = torch.tensor([max(ROUNDING[a], ROUNDING[b]) for a, b in letters], device="cpu").double()
    exact, outliers = _beyond(found, _noise(sizes, between))
    coarse, coarse_outliers = _beyond(found, _noise(sizes, grid))
    relative = (found.clamp_min(1e-300) / sizes.clamp_min(1e-300)).sqrt()
    return Difference(
        changed=coarse,
        rounded=exact and not coarse,
        relative=math.sqrt(float(found.sum()) / max(float(sizes.sum()), 1e-300)),
        each=dict(zip(chosen, relative.tolist(), strict=True)),
        outliers=tuple(chosen[i] for i in (coarse_outliers if coarse else outliers)),
    )


def rearranged(mine: Fingerprint, theirs: Fingerprint) -> Fingerprint | None:
    """Return mine in the order of theirs, each weight beside the nearest; None where that is not one to one."""
    if len(mine.grids) != len(theirs.grids):
        return None
    nearest = torch.cdist(theirs.projections, mine.projections).argmin(1).tolist()
    if len(set(nearest)) < len(nearest):
        return None
    return Fingerprint(mine.projections[nearest], mine.squares[nearest], "".join(mine.grids[i] for i in nearest))


def encode(found: Fingerprint) -> dict[str, str]:
    """Return a fingerprint as JSON: the grids, and ROWS projections and the size of each weight, float32 in base64."""
    numbers = torch.cat([found.projections, found.squares[:, None]], dim=1).flatten().tolist()
    return {"data": base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode(), "grids": found.grids}


def decode(value: object) -> Fingerprint:
    """Return the fingerprint that `encode` wrote. Raises ValueError where it is not one."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), str) or not isinstance(value.get("grids"), str):
        raise ValueError("it is no object with data and grids")
    grids, raw = value["grids"], base64.b64decode(value["data"], validate=True)
    if len(raw) != 4 * (ROWS + 1) * len(grids) or set(grids) - {*ROUNDING, UNREAD}:
        raise ValueError(f"it holds {len(raw)} bytes for {len(grids)} weights")
    numbers = torch.tensor(struct.unpack(f"<{len(raw) // 4}f", raw), dtype=torch.float64, device="cpu").view(
        -1, ROWS + 1
    )
    if not torch.isfinite(numbers).all() or (numbers[:, ROWS] < 0).any():
        raise ValueError("it holds numbers that no weights have")
    return Fingerprint(numbers[:, :ROWS].contiguous(), numbers[:, ROWS].contiguous(), grids)


def _rows(weight: Tensor) -> Tensor:
    """Return the rows that are looked at, ROWS of them where there are as many, at most LENGTH values spread over each.

    A view, where the weight's rows lie in one piece.
    """
    count = len(weight)
    rows = weight[count // (2 * ROWS) :: max(count // ROWS, 1)][:ROWS].flatten(1) if weight.ndim > 1 else weight[None]
    return rows[:, :: -(-rows.shape[1] // LENGTH)]


def _signs(length: int) -> Tensor:
    """Return (ROWS, length) signs, float64: a hash of the place, so the same on every machine and in every version."""
    h = torch.arange(ROWS, device="cpu").view(-1, 1) * LENGTH + torch.arange(length, device="cpu")
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF  # the product wraps beyond 64 bits, its low half is right
    return (1 - 2 * ((h ^ (h >> 16)) & 1)).double()


def _grids(block: Tensor) -> list[str]:
    """Return the coarsest grid that all values of each weight of a (weights, rows, length) block are on."""
    found = ["f"] * len(block)
    for letter, dtype in (("h", torch.float16), ("b", torch.bfloat16)):
        few = block[:, 0, :_FEW]  # most that are not on a grid show it at once
        likely = (few.to(dtype).to(few.dtype) == few).all(1).nonzero().flatten().tolist()
        part = block[likely]
        for i, fits in zip(likely, (part.to(dtype).to(part.dtype) == part).flatten(1).all(1).tolist(), strict=True):
            found[i] = letter if fits else found[i]
    return found


def _noise(sizes: Tensor, rounding: Tensor) -> Tensor:
    """Return the mean of sum_k (p_k - p'_k)^2 that rounding makes at most, for each weight."""
    return sizes * (rounding.square() / 3 + _EXACT**2) + ROWS * LENGTH * _SUBNORMAL**2 / 3


def _beyond(found: Tensor, noise: Tensor) -> tuple[bool, list[int]]:
    """Return whether all weights together differ by more than noise, or any by itself, and which do."""
    single = (found > noise * _quantile(ROWS)).nonzero().flatten().tolist()
    degrees = ROWS * float(noise.sum()) ** 2 / float(noise.square().sum())  # Satterthwaite: a large one counts alone
    together = float(found.sum()) > float(noise.sum()) * _quantile(degrees)
    return together or bool(single), single


def _quantile(degrees: float) -> float:
    """Return what a chi-square of that many degrees of freedom, over its mean, stays below (Wilson and Hilferty)."""
    return (1 - 2 / (9 * degrees) + _DEVIATIONS * math.sqrt(2 / (9 * degrees))) ** 3
