"""What a forward keeps for its backward: bytes of activations, beside parameters and inputs.

6 layers of BERT-base, 8x128 tokens, r=16 on all linears, float32 and bfloat16, with the adapter's dropout and without;
the base with its own dropout, as BERT trains, and once without. Saved bytes and live bytes are two counts of the same
(saved.py); where they differ much, something is held behind autograd's back. On a CUDA device the peak of a whole step
is measured as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from .arms import FROZEN, Settings, contestants, references
from .gradients import backward
from .matrix import ALL_LINEAR, Cell
from .measure import Findings, Options, Row
from .saved import live_bytes, own_tensors, peak_bytes, saved_bytes

DROPOUT = 0.1
PLAIN = Settings(16, ALL_LINEAR, 0.0)
CELLS = [
    Cell(6, 768, 8, 128, PLAIN, torch.float32, base_dropout=0.1),
    Cell(6, 768, 8, 128, PLAIN, torch.bfloat16, base_dropout=0.1),
    Cell(6, 768, 8, 128, PLAIN, torch.float32),
]
MIB = 2**20
SMOKE = [Cell(1, 16, 2, 4, Settings(2, ALL_LINEAR, 0.0), torch.float32)]


def run(options: Options) -> Findings:
    """Count every cell, print its table and return a row an arm. There is no chance in it, so no rounds."""
    rows: list[Row] = []
    for cell in SMOKE if options.scale == "smoke" else CELLS:
        found = _with_ratios([{"cell": cell.place, **row} for row in measure(cell, options.device)])
        _print(cell.place, found)
        rows += found
    return Findings(rows, _summary(rows))


def measure(cell: Cell, device: torch.device) -> Iterator[Row]:
    """Yield one row an arm: the references, then every library without and with dropout."""
    base, x, cotangent, factors = cell.build(device)
    with_dropout = Settings(cell.settings.r, cell.settings.targets, DROPOUT)
    for name, model in references(base).items():
        yield {"arm": name, **_count(model, x, cotangent)}
    for settings in (cell.settings, with_dropout):
        for name, model in contestants(base, settings, factors).items():
            yield {"arm": name, "dropout": settings.dropout, **_count(model, x, cotangent)}


def _count(model: nn.Module, x: Tensor, cotangent: Tensor) -> Row:
    leaf = x.detach().requires_grad_()

    def forward() -> Tensor:
        return model(inputs_embeds=leaf).last_hidden_state

    def known() -> Iterator[Tensor]:
        return chain([leaf], own_tensors(model))

    row: Row = {"saved_bytes": saved_bytes(forward, known()), "live_bytes": live_bytes(forward, known())}
    if x.is_cuda:
        row["peak_bytes"] = peak_bytes(partial(backward, model, x, cotangent), x.device)
        model.zero_grad(set_to_none=True)
    return row


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Return the rows with the saved bytes over the frozen model's, and over the same arm's without dropout."""
    plain = {row["arm"]: row["saved_bytes"] for row in rows if not row.get("dropout")}
    for row in rows:
        row["ratio"] = round(row["saved_bytes"] / plain[FROZEN], 4)
        if row.get("dropout"):
            row["ratio_to_no_dropout"] = round(row["saved_bytes"] / plain[row["arm"]], 4)
    return rows


def _print(title: str, rows: list[Row]) -> None:
    print(f"\nKept for the backward: {title} (MiB saved, MiB live, saved over frozen and over no dropout)")
    for row in rows:
        name = row["arm"] + (f", dropout {row['dropout']:g}" if row.get("dropout") else "")
        dropped = f"{row['ratio_to_no_dropout']:>9.3f}" if "ratio_to_no_dropout" in row else " " * 9
        peak = f"   peak of a step {row['peak_bytes'] / MIB:.0f} MiB" if "peak_bytes" in row else ""
        saved, live = row["saved_bytes"] / MIB, row["live_bytes"] / MIB
        print(f"  {name:<36}{saved:>9.1f}{live:>9.1f}{row['ratio']:>9.3f}{dropped}{peak}", flush=True)


def _summary(rows: list[Row]) -> list[str]:
    """Return where the two counts differ by more than a hundredth."""
    apart = [row for row in rows if abs(row["live_bytes"] - row["saved_bytes"]) > 0.01 * row["saved_bytes"]]
    lines = [f"  {r['cell']}, {r['arm']}: saved {r['saved_bytes']:,}, live {r['live_bytes']:,}" for r in apart]
    return [f"Saved and live bytes differ by more than 1% in {len(apart)} of {len(rows)} rows.", *lines]
