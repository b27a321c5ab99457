"""docs/train.md says what the table of tasks and the settings say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from .peek import TRAINING_TASKS, RunSettings

PAGE = (Path(__file__).parents[1] / "docs" / "train.md").read_text("utf-8")


def row(task: str) -> str:
    """Return a task's line in the table of defaults."""
    found = TRAINING_TASKS[task]
    numbers = f"{found.learning_rate:g} | {found.epochs:g} | {found.batch_size}"
    return f"| `{task}` | {numbers} | {', '.join(name.lstrip('-') for name in found.metrics)} |"


def test_the_table_of_defaults_is_the_table_of_tasks() -> None:
    table = PAGE.partition("| task | learning rate |")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == [row(task) for task in TRAINING_TASKS]


def test_every_flag_of_the_page_is_a_setting() -> None:
    own = {"config", "dry-run", "resume", "overwrite", "json", "help"}
    known = {field.name.replace("_", "-") for field in fields(RunSettings)} | own
    assert set(re.findall(r"(?<!-)--([a-z][a-z-]*)", PAGE)) <= known
