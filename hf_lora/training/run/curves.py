"""What a Trainer logged, as a table by step and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .record import CURVES

__all__ = ["by_step", "write_curves"]

_FIRST = "step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"
_NOT_CURVES = ("runtime", "per_second", "total_flos", "train_loss", "preparation_time")


def by_step(history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return one row a step of what was logged while training: its numbers by name, "step" and "epoch" first."""
    rows: dict[int, dict[str, float]] = {}
    for log in history:
        if "train_runtime" in log:
            break  # what comes after is of the best weights, which are another step's
        found = {k: v for k, v in log.items() if isinstance(v, int | float) and not k.endswith(_NOT_CURVES)}
        rows.setdefault(log["step"], {"step": log["step"], "epoch": 0.0}).update(found)
    return [rows[step] for step in sorted(rows)]


def write_curves(history: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write curves.csv, and curves.png where matplotlib is installed: losses, metrics, learning rate by step."""
    rows = by_step(history)
    there = {name for row in rows for name in row}
    names = [name for name in _FIRST if name in there] + sorted(there - set(_FIRST))
    with (folder / f"{CURVES}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    losses = [name for name in ("loss", "eval_loss") if name in names]
    metrics = [n for n in names if n.startswith("eval_") and n != "eval_loss"]
    panels = [panel for panel in (losses, metrics, ["learning_rate"]) if panel]
    figure = Figure(figsize=(7, 2.5 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name in panel:
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=name)
        axes.grid(alpha=0.3)
        axes.legend()
    axes.set_xlabel("optimizer steps")
    figure.savefig(folder / f"{CURVES}.png", dpi=100)
