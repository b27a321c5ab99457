"""`make gpu` runs here as well, tiny and on the CPU: every part, its checks, its file, and what it does with trouble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.measure import Options, Row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*_checkpointing.*:FutureWarning"),  # Transformers' new names for it, PEFT's use
]
SMALL = ["--device", "cpu", "--small"]


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = gpu.main([*SMALL, "--output", str(folder), *arguments])
    (file,) = folder.glob("gpu-cpu-small*.json")
    return status, json.loads(file.read_text())


@pytest.mark.parametrize("lacking", [(), ("peft", "evaluate", "loralib")])
def test_every_part_runs_and_finds_the_device_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...]
) -> None:
    for package in lacking:
        monkeypatch.setitem(sys.modules, package, None)
    status, record = run(tmp_path)
    assert {"date", "device", "versions", "memory"} < record.keys()
    assert {"torch", "transformers", "peft", "python"} < record["versions"].keys()
    parts = record["parts"]
    assert list(parts) == ["correct", "dropout", "step", "tokens", "operations", "kernels"]
    assert [part["error"] for part in parts.values()] == [None] * 6
    wrong = [row for name in ("correct", "dropout") for row in parts[name]["rows"] if not row["ok"]]
    assert wrong == []
    assert len(parts["correct"]["rows"]) > 90
    arms = {name: {row["arm"] for row in parts[name]["rows"]} for name in ("step", "tokens", "operations")}
    theirs = set() if lacking else {"PEFT"}
    assert all({"hf_lora"} <= found and {"PEFT"} & found == theirs for found in arms.values())
    assert {"frozen", "full fine-tuning"} < arms["step"]
    assert all({"seconds", "ratio", "saved_bytes", "peak_bytes"} < row.keys() for row in parts["step"]["rows"])
    assert {row["arm"] for row in parts["kernels"]["rows"]} == {"frozen", "hf_lora"}
    assert status == 0


def test_only_what_is_asked_for_runs(tmp_path: Path) -> None:
    _, record = run(tmp_path, "--only", "kernels")
    assert list(record["parts"]) == ["kernels"]
    assert [*tmp_path.iterdir()] == [tmp_path / "gpu-cpu-small-kernels.json"]  # a whole run's file stays


@pytest.mark.parametrize("wrong", [["--device", "foo"], ["--device", "xpu"], ["--output", __file__]])
def test_what_is_not_there_is_told_in_one_line(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as told:
        gpu.main([*SMALL, *wrong])
    assert told.value.code == 2
    assert f"error: {wrong[0]} {wrong[1]}" in capsys.readouterr().err


def _stops(options: Options) -> Iterator[Row]:
    yield {"arm": "first"}
    raise RuntimeError("CUDA out of memory")


def test_what_a_part_found_before_it_failed_is_kept_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[list[str]] = []

    def looks(options: Options) -> Iterator[Row]:
        files.append(list(json.loads((tmp_path / "gpu-cpu-small.json").read_text())["parts"]))
        yield {"check": "x", "ok": False}

    monkeypatch.setattr(gpu, "PARTS", {"a": _stops, "b": looks, "c": lambda options: iter([{"arm": "last"}])})
    status, record = run(tmp_path)
    assert files == [["a"]]  # on the disk before the next part began
    assert record["parts"]["a"]["rows"] == [{"arm": "first"}]
    assert record["parts"]["a"]["error"] == "RuntimeError: CUDA out of memory"
    assert [part["ok"] for part in record["parts"].values()] == [False, False, True]
    assert status == 1


def test_without_time_everything_is_recorded_as_skipped(tmp_path: Path) -> None:
    status, record = run(tmp_path, "--minutes", "0")
    assert [(part["skipped"], part["rows"]) for part in record["parts"].values()] == [(True, [])] * 6
    assert status == 0


INTERPRETED = """
import torch
from benchmarks.dropout_kernels import BitDraw

for rows, width, r in ((5, 33, 3), (130, 96, 16), (9, 40, 130), (0, 7, 2)):
    x, a, ds, dx = (torch.randn(shape) for shape in ((rows, width), (r, width), (rows, r), (rows, width)))
    draw = BitDraw(rows, width, 0.3, torch.device("cpu"))
    kept = draw(torch.ones(rows, width))
    assert not rows or 0.5 < float(kept.mean()) < 0.9
    want = dx + kept * (ds @ a)
    torch.testing.assert_close(draw.times(x, a), (x * kept) @ a.t(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(draw.backward(ds, x, a, dx), ds.t() @ (x * kept), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dx, want, atol=1e-4, rtol=1e-4)
"""


def test_the_candidate_kernels_are_right_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")  # comes with torch for CUDA
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", INTERPRETED], check=True, cwd=root, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
