"""Measuring a saved adapter as its run did: the same rows, the same batches, hence the same figures."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.trainer_callback import PrinterCallback

from ...errors import DataError, some
from ...files.strict_json import read_json
from ...model.heads import left_at_random
from ..data.reading import read_rows
from .planning import Plan
from .record import METRICS, SETTINGS, rows_learnt
from .rows import part_rows, read_files
from .settings import RunSettings
from .using import LOOKED_AT, TrainedRun, load_run

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Measured", "figures", "measure", "settings_of"]

_OF_THE_CLOCK = ("epoch", "model_preparation_time", "num_tokens", "runtime", "samples_per_second", "steps_per_second")


@dataclass(frozen=True)
class Measured:
    """What was measured: `adapter`, and `base` where it was asked for, numbers by metric.

    rows: which, in words. untrained: the parts of the base that start at random, so that its numbers mean nothing.
    differs: in which number the run's own metrics.json differs; empty where it does not, or says nothing of these rows.
    learnt: how many of the rows were trained on, in words; empty where they are others than the run's.
    positive: of two labels, the one that f1, precision and recall are of; empty where none of these is measured so.
    """

    rows: str
    count: int
    adapter: dict[str, float]
    base: dict[str, float] | None
    untrained: str
    differs: str
    learnt: str
    positive: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def measure(
    name: str,
    source: str | None,
    metrics: Sequence[str],
    with_base: bool = False,
    batch_size: int | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
    encoding: str | None = None,
) -> Measured:
    """Return what an adapter is worth on rows that have labels.

    name: a run's folder, or with a source any adapter. source: a file of rows; None for the run's own test rows, or
    those it chose the best checkpoint by where it has no others. metrics: their names; the run's where none are given.
    columns: by role, those of the source. encoding: the source's. Raises DataError, ConfigError, AdapterFileError.
    """
    settings = settings_of(Path(name))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    transformers.set_seed(settings.seed)  # a head that the base lacks starts at random
    run = load_run(name)
    settings = replace(settings, metric=list(metrics) or settings.metric or list(run.preparation.metrics()))
    settings = replace(settings, batch_size=batch_size or settings.batch_size or run.preparation.task.batch_size)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as outputs:
        if source is None:
            part, rows = _own_rows(name, settings, run, Path(scratch))
        else:
            part, rows, run = "test", *_rows(source, run, Path(scratch), columns or {}, skip_bad_rows, encoding)
        trainer = _trainer(replace(settings, output=outputs), run, rows)
        found = [figures(trainer.evaluate(trainer.eval_dataset["eval"]))]
        if with_base:
            with run.model.adapters_disabled():
                found.append(figures(trainer.evaluate(trainer.eval_dataset["eval"])))
    own = {} if source or metrics else _recorded(Path(name), part)
    where = f"{source or f'{part} rows of the run'} ({len(rows):,} rows)"
    heads = some(left_at_random(run.model, ())) if with_base else ""
    seen = min(rows_learnt(Path(name), source), len(rows)) if source else 0
    learnt = f"{seen:,} of the {len(rows):,} rows were trained on" if seen else ""
    differs = _difference(found[0], own)
    positive = (run.preparation.positive() or "") if {"f1", "precision", "recall"} & found[0].keys() else ""
    return Measured(where, len(rows), found[0], found[1] if with_base else None, heads, differs, learnt, positive)


def settings_of(folder: Path) -> RunSettings:
    """Return a run's settings; those that nothing was said of where it has no run.yaml, as what came from the Hub."""
    path = folder / SETTINGS
    return RunSettings.load(path if path.is_file() else None, {})


def figures(evaluated: dict[str, Any], prefix: str = "eval_") -> dict[str, float]:
    """Return what a Trainer measured by the metric's name, without what the clock says.

    >>> figures({"eval_loss": 0.5, "eval_runtime": 1.0, "epoch": 2.0})
    {'loss': 0.5}
    """
    named = {key.removeprefix(prefix).removeprefix("eval_"): value for key, value in evaluated.items()}  # TRL's own
    return {key: value for key, value in named.items() if key not in _OF_THE_CLOCK}


def _own_rows(name: str, settings: RunSettings, run: TrainedRun, scratch: Path) -> tuple[str, Dataset]:
    """Return the rows that a run was tested on, and which part of its data they are."""
    if settings.train is None:
        raise DataError(f"{name} has no {SETTINGS} that says which rows it was tested on; name a file of rows.")
    found = read_files(settings, scratch)
    part_rows(found, settings, run.preparation, run.processor)
    part = "test" if "test" in found else "eval"
    return part, found[part]


def _rows(
    source: str, run: TrainedRun, scratch: Path, columns: Mapping[str, str], skip_bad_rows: bool, encoding: str | None
) -> tuple[Dataset, TrainedRun]:
    """Return the rows of a file, and the run with its columns."""
    rows = read_rows(source, scratch, encoding=encoding)
    run = run.onto(rows.select(range(min(LOOKED_AT, len(rows)))).to_list(), source, columns, labelled=True)
    if skip_bad_rows:
        rows = rows.select([n for n, row in enumerate(rows) if not run.preparation.problem(row, labelled=True)])
    run.preparation.check(rows)
    return rows, run


def _trainer(settings: RunSettings, run: TrainedRun, rows: Dataset) -> Any:
    """Return a Trainer that measures on rows.

    TRL's is not made without rows to train on, which it does not, and takes the model as it is then for the reference:
    the base, as when the run began.
    """
    is_trl = run.preparation.trainer_class.startswith("trl.")
    splits = {"eval": rows} | ({"train": rows} if is_trl else {})
    if is_trl:
        run.model.disable_adapters()
    trainer = Plan(settings, run.preparation, run.processor, splits, run.model).trainer()
    if is_trl:
        run.model.enable_adapters()
    trainer.remove_callback(PrinterCallback)  # stdout is for the result
    return trainer


_ROUNDING = 1e-5  # of float32: a library's sums depend on where in memory a tensor lies


def _recorded(folder: Path, name: str) -> dict[str, float]:
    """Return what the run's metrics.json says of these rows."""
    path = folder / METRICS
    found = read_json(path).get(name, {}) if path.is_file() else {}
    return figures(found) if isinstance(found, dict) else {}


def _difference(now: dict[str, float], recorded: dict[str, float]) -> str:
    other = [
        f"{key} is {now[key]!r}, {METRICS} says {recorded[key]!r}"
        for key in now
        if not math.isclose(recorded.get(key, now[key]), now[key], rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    ]
    return f"{'; '.join(other)}." if other else ""
