"""Rows that are odd, and not wrong: they are parted and understood as they are meant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM

from hf_lora.errors import AdapterFileError, ConfigError, DataError

from .jobs import write_jsonl
from .peek import RunSettings, cli, plan_run, rows_of_lines
from .trainings import tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a base without weights."""
    folder = tmp_path_factory.mktemp("base")
    words = tokenizer("a", "film", "story")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 100,
    }
    BertForMaskedLM(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("second", [["a", "b"], [], None], ids=str)
def test_rows_with_lists_of_labels_are_parted(second: list[str] | None, base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"a film {'story ' * n}", "labels": second if n % 2 else ["a"]} for n in range(20)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    settings = RunSettings(model=str(base), train=str(file), task="multi-label", output=str(tmp_path / "out"))
    plan = plan_run(settings, tmp_path)
    assert {name: len(part) for name, part in plan.rows.items()} == {"train": 16, "eval": 2, "test": 2}


@pytest.mark.parametrize("shares", [(0.4, 0.5), (0.01, 0.98)], ids=str)
def test_shares_of_few_rows_leave_one_to_train_on(shares: tuple[float, float], base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"a film {'story ' * n}", "label": "xyx"[n]} for n in range(3)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    flags = ["--test-share", str(shares[0]), "--eval-share", str(shares[1]), "--task", "text-classification"]
    assert cli.main(["train", "--model", str(base), "--train", str(file), "--dry-run", "--json", *flags]) == 0


def test_rows_to_measure_on_that_are_trained_on_are_told(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = str(write_jsonl(tmp_path / "a.jsonl", [{"text": f"a film {n}", "label": "xy"[n % 2]} for n in range(8)]))
    plan_run(RunSettings(model=str(base), train=file, test=file, output=str(tmp_path / "out")), tmp_path)
    assert "7 different rows stand in the test rows and in those to train on." in caplog.text


def test_rows_that_come_again_are_told_where_a_share_of_them_is_held_back(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": f"a film {n}", "label": "xy"[n % 2]} for n in range(20)]
    for times, told in ((1, False), (3, True)):
        file = str(write_jsonl(tmp_path / "a.jsonl", rows * times))
        (tmp_path / str(times)).mkdir()
        plan_run(RunSettings(model=str(base), train=file, output=str(tmp_path / "out")), tmp_path / str(times))
        assert ("stand in the test rows and in those to train on." in caplog.text) == told


def test_rows_are_cut_to_the_positions_that_a_base_has(base: Path, tmp_path: Path) -> None:
    rows = [{"text": "a film " * 400, "label": "xy"[n % 2]} for n in range(8)]
    file = str(write_jsonl(tmp_path / "a.jsonl", rows))
    known = {"model": str(base), "train": file, "output": str(tmp_path / "out"), "task": "text-classification"}
    plan = plan_run(RunSettings(**known), tmp_path)
    assert plan.settings.max_length == plan.preparation.options["max_length"] == 100
    with pytest.raises(ConfigError, match="has learnt positions for 100 tokens; take --max-length 100"):
        plan_run(RunSettings(**known, max_length=101), tmp_path)


@pytest.mark.parametrize("text", ["1e3", "-1E5", "12e03", "no", "0x10", "1:30"])
def test_a_text_that_looks_like_a_number_stays_one_in_run_yaml(text: str, tmp_path: Path) -> None:
    settings = RunSettings(model=text, column={"text": text}, metric=[text])
    settings.save(tmp_path / "run.yaml")
    assert RunSettings.load(tmp_path / "run.yaml", {}) == settings


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    RunSettings(seed=1).save(path)
    monkeypatch.setattr(os, "replace", lambda *paths: exec("raise OSError(28, 'No space left on device')"))
    with pytest.raises(OSError, match="No space"):
        RunSettings(seed=2).save(path)
    assert RunSettings.load(path, {}).seed == 1
    assert [each.name for each in tmp_path.iterdir()] == ["run.yaml"]


def test_half_a_letter_on_stdin_is_told_with_its_line() -> None:
    with pytest.raises(DataError, match="stdin, line 1: it has half a letter"):
        list(rows_of_lines(['{"text": "\\ud83d"}'], "stdin"))


def test_a_label_called_nan_has_its_place_among_the_others_in_every_process() -> None:
    say = "from hf_lora.training.tasks.texts import in_order; print(in_order({'nan', '2', '1', 'b', 'NaN', '10', 'a'}))"
    for seed in range(3):
        done = subprocess.run(
            [sys.executable, "-c", say], env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "['1', '2', '10', 'NaN', 'a', 'b', 'nan']"


@pytest.mark.parametrize("reads", ["train", "eval", "model"])
def test_a_run_takes_no_place_of_what_it_reads(reads: str, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    RunSettings().save(tmp_path / "run.yaml")
    shutil.copytree(base, out / "base")
    shutil.copy(tmp_path / "run.yaml", out)
    rows = [{"text": f"a film {n}", "label": "xy"[n % 2]} for n in range(8)]
    places = {name: str((out if name == reads else tmp_path) / f"{name}.jsonl") for name in ("train", "eval")}
    for place in places.values():
        write_jsonl(Path(place), rows)
    places["model"] = str(out / "base" if reads == "model" else base)
    with pytest.raises(AdapterFileError, match=f"{reads}|base, which the run reads, lies there"):
        plan_run(RunSettings(**places, output=str(out)), tmp_path, overwrite=True)
    assert (out / "base").is_dir()
