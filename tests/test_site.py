"""The site's charts: each has its section in docs/benchmarks.md, and shows what the results and the page say."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from .pages import DOCS, ROOT

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def charts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("charts", ROOT / "website" / "charts.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["charts"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_chart_has_its_section(charts: ModuleType) -> None:
    page = charts.placed((DOCS / "benchmarks.md").read_text("utf-8"))
    assert page.count("](charts/") == len(charts.CHARTS)
    assert page.index("charts/memory.svg") < page.index("\n## Formulas")
    with pytest.raises(ValueError, match="no section"):
        charts.placed("# Benchmarks\n")


def test_a_chart_shows_the_numbers_of_the_page(charts: ModuleType) -> None:
    shown = {chart.file: charts._values(chart, ROOT / "benchmarks" / "results") for chart in charts.CHARTS}
    assert all(len(cells) > 0 for arms in shown.values() for cells in arms.values())
    memory = {arm: [round(n) for n in cells.values()] for arm, cells in shown["memory"].items()}
    section = (DOCS / "benchmarks.md").read_text("utf-8").partition("\n## Memory\n")[2].partition("\n## ")[0]
    table = [line.split("|") for line in section.splitlines() if re.match(r"\| (?:float32|bfloat16),", line)]
    assert sorted(memory["hf_lora"]) == sorted(int(row[6]) for row in table)
    assert sorted(memory["PEFT"]) == sorted(int(row[4]) for row in table)


def test_the_charts_are_drawn(charts: ModuleType) -> None:
    chart = next(chart for chart in charts.CHARTS if chart.file == "together")
    drawn = charts._svg(chart, charts._values(chart, ROOT / "benchmarks" / "results"))
    assert drawn.lstrip().startswith("<?xml")
    assert drawn.count('id="patch_') >= 6
    assert not re.search(r"(?:href|src)=.https?:", drawn)
