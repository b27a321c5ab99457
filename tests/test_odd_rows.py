"""Rows that are odd, and not wrong: they are parted and understood as they are meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig

from .jobs import write_jsonl
from .peek import RunSettings, cli, plan_run
from .trainings import tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a base without weights."""
    folder = tmp_path_factory.mktemp("base")
    words = tokenizer("a", "film", "story")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    from transformers import BertForMaskedLM

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


def test_a_label_called_nan_has_its_place_among_the_others_in_every_process() -> None:
    say = "from hf_lora.training.tasks.texts import in_order; print(in_order({'nan', '2', '1', 'b', 'NaN', '10', 'a'}))"
    for seed in range(3):
        done = subprocess.run(
            [sys.executable, "-c", say], env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "['1', '2', '10', 'NaN', 'a', 'b', 'nan']"
