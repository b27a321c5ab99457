"""The charts of docs/benchmarks.md, drawn from benchmarks/results when the site is built: bars, one row a table."""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

COLOURS = {"hf_lora": "#00796b", "PEFT": "#ef6c00", "loralib": "#8d6e63", "full fine-tuning": "#78909c"}
OTHERS = ("#5c6bc0", "#26a69a", "#ab47bc", "#bdbdbd", "#d4ac0d", "#ec407a")
MIB = 2**20


@dataclass(frozen=True)
class Chart:
    """Bars of some arms in each cell of a file of results.

    heading: of the section in docs/benchmarks.md. file: without "-cpu.json". value, unit: a row's number, and what it
    is divided by. arms: a row's arm -> how the chart calls it. cells: a regular expression that a cell has to match.
    short: what is taken out of the cells' names.
    log: whether each step of the axis is ten times the one before.
    """

    heading: str
    file: str
    value: str
    label: str
    arms: Mapping[str, str]
    unit: float = 1
    cells: str = ""
    short: str = ""
    log: bool = False


_OURS = {"PEFT": "PEFT", "PEFT, base dtype": "PEFT", "PEFT, low_cpu_mem_usage": "PEFT", "hf_lora": "hf_lora"}
_ALL = {"full fine-tuning": "full fine-tuning", **_OURS}
_FORMULAS = ("LoRA, r=16", "ShareLoRA, r=16", "LoRA-FA, r=16", "LoRA-XS, r=16", "VeRA, r=256", "VeRA of PEFT, r=256")
_DORA = ("LoRA", "DoRA, norm each time", "DoRA, norm known", "PEFT DoRA", "PEFT DoRA, DoraCaching")
_SWITCHES = {
    "plain": "without", "enable_mlp_recompute": "with the switch", "enable_linear_cross_entropy": "with the switch",
}  # fmt: skip
_CURVE = ("LoRA, r/2", "LoRA, truncated to r/2", "LoRA", "LoRA, 2r, truncated to r", "LoRA, 2r")
_RUNS = {"one after another": "one after another", "together": "together"}
CHARTS = (
    Chart("Operations", "operations", "seconds", "milliseconds", _OURS, 1e-3, "load|set|merge", log=True),
    Chart(
        "Memory", "memory", "saved_bytes", "MiB kept for the backward pass", _ALL, MIB,
        short=r"6 x 768|, 8x128 tokens, r=16, all linear",
    ),
    Chart(
        "Formulas", "formulas", "peak_bytes", "MiB at the peak of a step", {arm: arm for arm in _FORMULAS}, MIB,
        short="6 x 768, 8x128 tokens, all linear, ",
    ),
    Chart("DoRA", "dora", "ratio", "times the base's forward", {arm: arm for arm in _DORA}, log=True),
    Chart("Training step", "step", "ratio", "times the frozen layers' step", {**_OURS, "loralib": "loralib"}),
    Chart("Experts", "experts", "ratio", "times the frozen layers' step", _ALL, short=", 512 tokens"),
    Chart("Memory switches", "switches", "peak_bytes", "MiB at the peak of a step", _SWITCHES, MIB),
    Chart("The family", "family", "accuracy", "% told rightly", {arm: arm for arm in _CURVE}, 0.01),
    Chart("Runs together", "together", "peak_bytes", "MiB at the peak of the process", _RUNS, MIB),
)  # fmt: skip


def drawn(results: Path) -> dict[str, str]:
    """Return the charts as SVG, by name."""
    return {chart.file: _svg(chart, _values(chart, results)) for chart in CHARTS}


def placed(page: str) -> str:
    """Return a page with each chart at the end of its section. Raises ValueError for a section that is not there."""
    for chart in CHARTS:
        if not (found := re.search(rf"^## {chart.heading}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)):
            raise ValueError(f"docs/benchmarks.md has no section {chart.heading!r} for its chart")
        picture = f"\n![{chart.heading}: {chart.label}](charts/{chart.file}.svg)\n\n"
        page = page[: found.end()].rstrip("\n") + "\n" + picture + page[found.end() :]
    return page


def _values(chart: Chart, results: Path) -> dict[str, dict[str, float]]:
    """Return arm -> cell -> number: of several arms of one name the best. An arm's second time is with dropout."""
    answers = json.loads((results / f"{chart.file}-cpu.json").read_text("utf-8"))["answers"]
    rows: list[dict[str, Any]] = [row for answer in answers for row in answer["rows"]]
    found: dict[str, dict[str, float]] = {name: {} for name in chart.arms.values()}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row["arm"] in chart.arms and re.search(chart.cells, row["cell"]):
            cell = re.sub(chart.short, "", row["cell"]).strip(", ") if chart.short else row["cell"]
            again = (row["arm"], cell) in seen
            seen.add((row["arm"], cell))
            cell += ", adapter dropout" if again else ""
            of_arm, number = found[chart.arms[row["arm"]]], row[chart.value] / chart.unit
            of_arm[cell] = min(number, of_arm.get(cell, number))
    return found


def _svg(chart: Chart, values: Mapping[str, Mapping[str, float]]) -> str:
    cells = list(dict.fromkeys(cell for of_cells in values.values() for cell in of_cells))
    high = 0.8 / len(values)
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + len(cells) * (0.16 * len(values) + 0.14)), layout="constrained")
    for number, (arm, of_cells) in enumerate(values.items()):
        places = [place + (number - (len(values) - 1) / 2) * high for place in range(len(cells))]
        shown = [of_cells.get(cell, 0) for cell in cells]
        bars = axes.barh(places, shown, high, label=arm, color=COLOURS.get(arm, OTHERS[number % len(OTHERS)]))
        axes.bar_label(bars, [f"{value:.3g}" if value else "" for value in shown], fontsize=7, padding=2)
    axes.set(yticks=range(len(cells)), yticklabels=cells, xlabel=chart.label, xscale="log" if chart.log else "linear")
    axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=6, fontsize=8, frameon=False)
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return written.getvalue()
