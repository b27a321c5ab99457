"""A finished run's adapter, used as it was trained: loaded with its processor and its way to prepare rows.

One that others trained has no record of that. Its task is told by its model's class, its labels by the model's config,
its columns by the rows at hand.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import transformers

from ...config.tasks import classes_of
from ...errors import ArgumentError, ConfigError, DataError
from ...files.sources import Source
from ...layers.specialising import name_of
from ...model.lora_model import LoRAModel
from ..data.columns import choose_columns, place_of
from ..tasks.preparation import Preparation
from ..tasks.table import TASKS
from ..tasks.task import TrainingTask
from .arguments import base_arguments
from .record import SETTINGS, TASK, load_preparation
from .settings import RunSettings

__all__ = ["LOOKED_AT", "TrainedRun", "load_run"]

Row = Mapping[str, Any]
LOOKED_AT = 100  # rows of a file whose values tell what a column is
_PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class TrainedRun:
    """An adapter that predicts: the model in eval mode, its processor, and how rows are prepared.

    others: further ways, where nobody wrote down which task a model of its class learnt.
    """

    model: Any
    processor: Any
    preparation: Preparation
    others: tuple[Preparation, ...] = ()

    def onto(self, rows: Sequence[Row], source: str, given: Row | None = None, labelled: bool = False) -> TrainedRun:
        """Return it with the columns of these rows: the recorded ones where they are there, else those that fit.

        rows: the first ones. given: columns by role, which go before. labelled: whether they have what is learnt.
        Raises DataError where no column fits.
        """
        problems = []
        for each in (self.preparation, *self.others):
            fitted = copy.copy(each)
            known = {role: column for role, column in each.columns.items() if column in rows[0]}
            try:
                columns = choose_columns(rows, each.task.roles, {**known, **(given or {})}, source, labelled)
            except DataError as error:
                problems.append(error)
            else:
                fitted.columns = {**each.columns, **columns}
                return replace(self, preparation=fitted, others=())
        raise problems[0]

    def predict(self, rows: Iterable[Row], batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield what the model says of each row, in their order, a batch at a time. Raises DataError."""
        return (prediction for _, prediction in self.pairs(rows, batch_size))

    def pairs(
        self, rows: Iterable[Row], batch_size: int, left_out: list[str] | None = None
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row with what the model says of it, as `predict`, with one batch in memory.

        left_out: takes the places of rows that cannot be used; without it they are an error.
        """
        waiting = iter(rows)
        while batch := list(islice(waiting, batch_size)):
            if left_out is None:
                self.preparation.check(batch, labelled=False)
            else:
                bad = [bool(self.preparation.problem(row, labelled=False)) for row in batch]
                left_out += [place_of(row) for row, is_bad in zip(batch, bad, strict=True) if is_bad]
                batch = [row for row, is_bad in zip(batch, bad, strict=True) if not is_bad]
            if batch:
                yield from zip(batch, self.preparation.predictions(self.model, self.processor, batch), strict=True)

    def batches(self, rows: Sequence[Row], source: str) -> list[dict[str, Any]]:
        """Return each row as a batch that the model takes, with what is learnt where the rows have that; no padding.

        source: what the rows are called. Raises DataError where no column fits, or a row cannot be used.
        """
        try:
            fitted, labelled = self.onto(rows, source, labelled=True).preparation, True
        except DataError:
            fitted, labelled = self.onto(rows, source).preparation, False
        fitted.check(rows, labelled)
        collate = fitted.collator(self.processor, self.model)
        return [collate(fitted.features([row], self.processor, labelled)) for row in rows]


def load_run(
    name: str | os.PathLike[str],
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> TrainedRun:
    """Load an adapter onto its base: a run's folder, an adapter that others trained, or a repo of the Hub.

    task: what it learnt, where nobody wrote it down. options: of the task, in the place of its own. base_model: where
    its base lies, if it lies elsewhere.
    Raises AdapterFileError, ArgumentError, ConfigError, HubError, and what LoRAModel.from_pretrained raises.
    """
    source = Source.of(name, {})
    record = source.find(TASK)
    settings = source.find(SETTINGS) if source.is_local else None
    given = base_arguments(RunSettings.load(settings, {})) if settings else {}
    found = (load_preparation(record.parent),) if record else ()
    if found and task not in (None, found[0].task.name):
        raise ArgumentError(f"--task {task}: {source.name} says that it learnt {found[0].task.name}.")
    given |= {} if base_model is None else {"base_model": base_model}
    model = LoRAModel.from_pretrained(source.name, **given).eval()
    tasks = [each.task for each in found] or _tasks_of(model, task)
    processor = _processor(source, model, tasks[0].preparation)
    _check_options(options or {}, tasks)
    for each in found:
        each.options |= options or {}
        each.fit_model(model, processor)
    ways = found or tuple(_adopted(each, model, processor, options or {}) for each in tasks)
    return TrainedRun(model, processor, ways[0], ways[1:])


def _check_options(given: Mapping[str, Any], tasks: Sequence[TrainingTask]) -> None:
    """Raise ArgumentError for options that none of the tasks has."""
    known = dict.fromkeys(name for task in tasks for name in task.preparation.OPTIONS if name != "labels")
    if unknown := [name for name in given if name not in known]:
        raise ArgumentError(f"--set {unknown[0]}: {tasks[0].name} has no such option, but {', '.join(known)}.")


def _tasks_of(model: Any, given: str | None) -> list[TrainingTask]:
    """Return the tasks that a model may have learnt, by its class. Raises ConfigError where there is none."""
    if given is not None and given not in TASKS:
        raise ConfigError(f"--task {given}: there are {', '.join(TASKS)}.")
    name = name_of(model)
    fitting = [
        task
        for task in TASKS.values()
        if any(name in classes_of(f"MODEL_FOR_{row.mapping}_MAPPING_NAMES") for row in task.model_tasks)
        and task.preparation.suits(model.config)
    ]
    if given is not None:
        fitting = [task for task in fitting if task.name == given]
    if not fitting:
        what = f"no model for --task {given}" if given else f"for none of the tasks {', '.join(TASKS)}"
        raise ConfigError(f"the adapter's model is a {name}, which is {what}.")
    return fitting


def _adopted(task: TrainingTask, model: Any, processor: Any, options: Mapping[str, Any]) -> Preparation:
    given = {name: options.get(name) for name in task.preparation.OPTIONS}
    preparation: Preparation = task.preparation(task, {}, **given)
    preparation.adopt(model, processor)
    return preparation


def _processor(source: Source, model: Any, preparation: type[Preparation]) -> Any:
    """Return the adapter's own processor, or its base's where it has none. Raises ConfigError for neither."""
    has_own = any(source.find(file) is not None for file in _PROCESSORS)
    name = source.name if has_own else model.name_or_path
    try:
        return getattr(transformers, preparation.processor_class).from_pretrained(name)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigError(f"no {preparation.processor_class} can be loaded from {name}: {told}") from error
