"""The commands on a finished run: what they measure, predict, merge, compare and show."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .peek import cli
from .runs import write_base, write_rows

Capture = pytest.CaptureFixture[str]


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `rows.csv` and the finished `run`, which learnt something."""
    folder = tmp_path_factory.mktemp("commands")
    write_base(folder / "base")
    write_rows(folder / "rows.csv")
    with inside(folder):
        flags = "--epochs 4 --learning-rate 0.01 --test-share 0.25 --threads 1 --batch-size 8"
        assert cli.main(f"train --model base --train rows.csv --output run {flags}".split()) == 0
    return folder


@pytest.fixture(autouse=True)
def _standing_there(place: Path, capsys: Capture) -> Iterator[None]:
    with inside(place):
        capsys.readouterr()
        yield


def run(command: str, capsys: Capture) -> str:
    """Run a command that has to succeed and return what it prints."""
    assert cli.main(command.split()) == 0
    return capsys.readouterr().out


def recorded(part: str) -> dict[str, Any]:
    found = json.loads(Path("run", "metrics.json").read_text(encoding="utf-8"))[part]
    return {key.removeprefix("eval_"): value for key, value in found.items()}


def test_evaluate_gives_the_digits_of_the_run_s_own_record(capsys: Capture) -> None:
    found = json.loads(run("evaluate run --json", capsys))
    record = recorded("test")
    assert found["count"] == 20
    assert set(found["adapter"]) == {"loss", "accuracy", "f1"}
    assert found["adapter"] == {name: record[name] for name in found["adapter"]}
    assert found["adapter"]["accuracy"] > 0.7


def test_evaluate_says_where_the_record_differs(capsys: Capture) -> None:
    path = Path("run", "metrics.json")
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept.replace('"loss": ', '"loss": 9'), encoding="utf-8")
    try:
        assert cli.main(["evaluate", "run"]) == 0
    finally:
        path.write_text(kept, encoding="utf-8")
    told = capsys.readouterr()
    assert "loss is" in told.err
    assert "metrics.json says 9" in told.err


def test_evaluate_measures_other_rows_other_metrics_and_the_base(capsys: Capture) -> None:
    write_rows(Path("new.csv"), 30)
    found = json.loads(run("evaluate run new.csv --metric matthews_correlation --base --json", capsys))
    assert found["count"] == 30
    assert set(found["adapter"]) == set(found["base"]) == {"loss", "matthews_correlation"}
    assert found["adapter"]["matthews_correlation"] > found["base"]["matthews_correlation"]
    assert "classifier" in found["untrained"]
    table = run("evaluate run new.csv --base", capsys)
    assert [line.split()[0] for line in table.splitlines()[-4:-1]] == ["loss", "accuracy", "f1"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate nowhere", "nowhere"),
        ("evaluate run nowhere.csv", "nowhere.csv"),
        ("evaluate run unlabelled.csv", "line 2"),
        ("evaluate run --metric acuracy", "accuracy"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(command: str, message: str, capsys: Capture) -> None:
    Path("unlabelled.csv").write_text("review,stars\ngood w1,\n", encoding="utf-8")
    assert cli.main(command.split()) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("hf-lora: ")
    assert message in told.err
