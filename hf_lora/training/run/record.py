"""The folder of a run: which files it has, and what they say.

adapter_config.json, adapter_model.safetensors, README.md, the tokenizer   what `from_pretrained` and the Hub read
run.yaml       every setting as it was decided; `hf-lora train --config run.yaml` repeats the run
task.json      how rows are prepared: task, columns, labels, lengths; `evaluate` and `predict` read it
metrics.json   what was measured, of which data, by which versions; "finished" is true once all else is written
curves.csv, curves.png   losses, metrics and learning rate by step
train.log      what was said while it ran
checkpoints/   while the run is unfinished
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..._version import __version__
from ...errors import AdapterFileError
from ...files.disk import write_whole
from ...files.names import TASK_NAME
from ...files.strict_json import read_json
from ..tasks.preparation import Preparation
from ..tasks.table import TASKS
from .settings import RunSettings

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "CHECKPOINTS",
    "CURVES",
    "LOG",
    "METRICS",
    "SETTINGS",
    "TASK",
    "changed_data",
    "data_facts",
    "load_preparation",
    "save_preparation",
    "versions",
    "write_json",
]

SETTINGS, TASK, METRICS, CHECKPOINTS = "run.yaml", TASK_NAME, "metrics.json", "checkpoints"
CURVES, LOG = "curves", "train.log"


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


def data_facts(settings: RunSettings, rows: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Return for each split how many rows it has, and the file that it came from with its SHA-256.

    A folder's is that of its files' names and contents; a data set of the Hub has none.
    """
    facts: dict[str, dict[str, Any]] = {}
    for split, found in rows.items():
        source = getattr(settings, split)
        facts[split] = {"rows": len(found)} | ({"source": source, "sha256": _sha256(source)} if source else {})
    return facts


def changed_data(folder: Path, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the files of rows that are other than when a run in a folder read them."""
    path = folder / METRICS
    before = read_json(path).get("data", {}) if path.is_file() else {}
    return [
        str(fact["source"])
        for split, fact in facts.items()
        if (was := before.get(split, {})).get("source") == fact.get("source")
        and was.get("sha256") != fact.get("sha256")
    ]


def rows_learnt(folder: Path, source: str) -> int:
    """Return how many rows of a file a run in a folder was trained on, where it still is the file that it read."""
    path = folder / METRICS
    facts = read_json(path).get("data", {}).get("train", {}) if path.is_file() else {}
    return int(facts["rows"]) if facts.get("sha256") and facts["sha256"] == _sha256(source) else 0


def versions() -> dict[str, str]:
    """Return the versions that a run's bits depend on."""
    found = {"hf_lora": __version__, "transformers": transformers.__version__, "torch": str(torch.__version__)}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON in UTF-8, and null for numbers that are not finite; all of it or nothing."""
    write_whole(path, json.dumps(_finite(values), indent=2, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sha256(source: str) -> str | None:
    path, found = Path(source), hashlib.sha256()
    if not path.exists():
        return None
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        if file != path:
            found.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            while piece := opened.read(2**20):
                found.update(piece)
    return found.hexdigest()
