"""Dropout in a layer's way in: what its three products cost, forward and backward, and whether they are right.

    S = drop(x) A^T,  dA = dS^T drop(x),  dX += drop(dS A)        x (rows, width), A (r, width), in bfloat16

Arms: no dropout; what PEFT does, which keeps the dropped x and its mask; a GPU's draw as the library has it; the
candidate of `dropout_kernels.py`, where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_lora.maths.dropout import MaskDraw

from .measure import Arm, Options, Row, compare

P = 0.05
SHAPES = [(8192, 4096, 16), (8192, 14336, 16), (2048, 4096, 16), (8192, 4096, 64)]  # rows, width, r
SMALL = [(40, 70, 5)]


def run(options: Options) -> Iterator[Row]:
    """Time the products of each shape and yield a row an arm, with its error where it has a draw of its own."""
    is_small = options.scale == "smoke"
    for rows, width, r in SMALL if is_small else SHAPES:
        if options.budget.over():
            return
        shapes = ((rows, width), (r, width), (rows, r), (rows, width))
        x, a, ds, dx = (torch.randn(shape, device=options.device).bfloat16() for shape in shapes)
        draws = _draws(rows, width, options.device)
        print(f"\n{rows} x {width}, r={r}, dropout {P:g}", flush=True)
        given = (x, a, ds, dx)
        arms: dict[str, Arm] = {
            "no dropout": Arm(partial(tuple, given), _plain),
            "PEFT's way": Arm(partial(tuple, given), _as_peft),
            **{name: Arm(partial(tuple, (new, *given)), _drawn) for name, new in draws.items()},
        }
        for row in compare(arms, options.device, options.rounds, options.budget):
            name = row["arm"]
            error = _error(draws[name](), x, a, ds) if name in draws else None
            found = {"cell": f"{rows} x {width}, r={r}", **row, "error": error, "ok": error is None or error < 2.0**-6}
            told = "" if error is None else f"   error {error:.1e}{'' if found['ok'] else '  FAIL'}"
            print(f"  {name:<20}{1e6 * row['seconds']:>10.1f} us{row['ratio']:>8.3f}{told}", flush=True)
            yield found


def _draws(rows: int, width: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    draws: dict[str, Callable[[], Any]] = {"hf_lora": lambda: MaskDraw(rows, width, P)}
    if device.type == "cuda":
        try:
            from .dropout_kernels import BitDraw
        except ImportError:
            return draws
        draws["Triton kernels"] = lambda: BitDraw(rows, width, P, device)
    return draws


def _plain(given: tuple[Tensor, ...]) -> Any:
    x, a, ds, dx = given
    return F.linear(x, a), ds.t() @ x, dx.addmm_(ds, a)


def _as_peft(given: tuple[Tensor, ...]) -> Any:
    x, a, ds, dx = given
    dropped, mask = torch.native_dropout(x, P, True)
    s, da = F.linear(dropped, a), ds.t() @ dropped
    return s, da, dx + torch.ops.aten.native_dropout_backward(ds @ a, mask, 1 / (1 - P))


def _drawn(given: tuple[Any, ...]) -> Any:
    new, x, a, ds, dx = given
    draw = new()
    return draw.times(x, a), draw.backward(ds, x, a, dx)


def _error(draw: Any, x: Tensor, a: Tensor, ds: Tensor) -> float:
    """Return the largest error of a draw's products, as a part of each one's largest value, against float64."""
    dx = torch.zeros_like(x)
    s = draw.times(x, a)
    da = draw.backward(ds, x, a, dx)
    kept = (draw(torch.ones_like(x)) != 0).double() / (1 - P) / draw.gain
    wide = x.double() * kept
    pairs = ((s, wide @ a.double().t()), (da, ds.double().t() @ wide), (dx, kept * (ds.double() @ a.double())))
    return max(float((got.double() - want).abs().max() / want.abs().max()) for got, want in pairs)
