"""The folder of a run: which files it has, and what they say.

adapter_config.json, adapter_model.safetensors, README.md, the tokenizer   what `from_pretrained` and the Hub read
run.yaml       every setting as it was decided; `hf-lora train --config run.yaml` repeats the run
task.json      how rows are prepared: task, columns, labels, lengths; `evaluate` and `predict` read it
metrics.json   what was measured, and of which data
curves.csv, curves.png   losses and metrics by step
checkpoints/   while the run is unfinished
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import AdapterFileError
from ...files.strict_json import read_json
from ..tasks.preparation import Preparation
from ..tasks.table import TASKS

__all__ = ["CHECKPOINTS", "METRICS", "SETTINGS", "TASK", "load_preparation", "save_preparation", "write_json"]

SETTINGS, TASK, METRICS, CHECKPOINTS = "run.yaml", "task.json", "metrics.json", "checkpoints"


def save_preparation(preparation: Preparation, folder: Path) -> None:
    """Write how rows are prepared."""
    write_json(folder / TASK, preparation.record())


def load_preparation(folder: Path) -> Preparation:
    """Return how rows of a run are prepared. Raises AdapterFileError where the folder does not say it."""
    path = folder / TASK
    found = read_json(path)
    task = TASKS.get(found.pop("task", None))
    if task is None or not isinstance(found.get("columns"), dict):
        raise AdapterFileError(f"{path}: it names no task and columns of this version; train again.")
    return task.preparation(task, **found)


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON in UTF-8."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
