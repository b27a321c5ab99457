"""A run before it trains: settings, data and rows checked, then the model loaded; every setting is decided."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ...config.tasks import Task
from ...errors import ConfigError, DataError, ModelError
from ...files.privacy import is_repo_id, public_base
from ...model.lora_model import LoRAModel
from ..data.columns import choose_columns
from ..data.reading import read_splits
from ..data.splitting import split_rows
from ..data.written import Wanted
from ..tasks.preparation import Preparation
from ..tasks.table import TASKS
from ..tasks.task import TrainingTask
from . import arguments
from .folder import check_output
from .settings import RunSettings

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Plan", "part_rows", "plan_run", "read_files"]

_LOOKED_AT = 100  # rows whose values tell what a column is
_HELD = 0.1, 5000  # share of the rows, and at most so many, to choose by and to measure on, where nobody says it


@dataclass
class Plan:
    """A run that could start: `settings` are all decided, `rows` are by split ("train", "eval", "test")."""

    settings: RunSettings
    preparation: Preparation
    processor: Any
    rows: dict[str, Dataset]
    model: Any = None

    def __post_init__(self) -> None:
        """Make the Trainer's arguments and metrics, which need no model. Raises ConfigError."""
        names = arguments.measured_names(self.settings)
        self.arguments = arguments.training_arguments(self.settings, self.preparation)
        self.compute_metrics = self.preparation.compute_metrics(names, self.processor) if names else None

    def trainer(self, callbacks: Sequence[Any] = ()) -> Any:
        """Return the Trainer of the task. Its eval_dataset is a dict of the other splits."""
        module, _, name = self.preparation.trainer_class.rpartition(".")
        ways = {"train": self.preparation.training_dataset}
        rows = {s: ways.get(s, self.preparation.dataset)(found, self.processor) for s, found in self.rows.items()}
        return getattr(importlib.import_module(module), name)(
            model=self.model,
            args=self.arguments,
            train_dataset=rows.pop("train", None),
            eval_dataset=rows,
            data_collator=self.preparation.collator(self.processor, self.model),
            processing_class=self.processor,
            compute_metrics=self.compute_metrics,
            preprocess_logits_for_metrics=getattr(self.compute_metrics, "preprocess_logits_for_metrics", None),
            callbacks=list(callbacks),
        )


def plan_run(settings: RunSettings, scratch: Path, *, overwrite: bool = False, resume: bool = False) -> Plan:
    """Return the run that the settings ask for, checked as far as it goes without training. Nothing is written.

    scratch: a folder for the rows, which stays as long as the plan is used. overwrite: it may take another run's
    place. resume: it goes on with the run in its folder. Raises ConfigError, MissingExtraError, AdapterFileError for
    settings, DataError for rows, and then what loading a base raises.
    """
    settings = _checked(settings, overwrite, resume)
    rows = read_files(settings, scratch)
    task = TASKS[settings.task or "text-classification"]
    first = rows["train"].select(range(min(_LOOKED_AT, len(rows["train"])))).to_list()
    columns = choose_columns(first, task.roles, settings.column, str(settings.train))
    processor = _processor(settings, task.preparation.processor_class)
    options = {name: getattr(settings, name, None) for name in task.preparation.OPTIONS}
    preparation = task.preparation(task, columns, **options)
    preparation.learn(rows["train"], processor)
    part_rows(rows, settings, preparation)
    plan = Plan(_decided(settings, preparation), preparation, processor, rows)
    plan.model = _model(plan.settings, preparation)
    preparation.fit_model(plan.model, processor)
    return plan


def _checked(settings: RunSettings, overwrite: bool, resume: bool) -> RunSettings:
    """Return the settings with a folder. Raises where they cannot be right, whatever the data."""
    for name in ("model", "train"):
        if getattr(settings, name) is None:
            raise ConfigError(f"--{name} is missing: there is nothing to train{' on' if name == 'train' else ''}.")
    if settings.task is not None and settings.task not in TASKS:
        raise ConfigError(f"task={settings.task!r}: there are {', '.join(TASKS)}.")
    arguments.lora_config(settings)
    arguments.base_arguments(settings)
    if settings.push:
        if not is_repo_id(settings.push):
            raise ConfigError(f"push={settings.push!r}: it has to be the name of a repo, as me/reviews-lora.")
        public_base(
            settings.model, settings.base_id, "the adapter to push", "name it on the Hub with --base-id org/name"
        )
    name = f"outputs/{Path(str(settings.train)).stem}-{Path(str(settings.model)).name}"
    settings = replace(settings, output=settings.output or name)
    if not resume:
        check_output(Path(str(settings.output)), overwrite)
    return settings


def _processor(settings: RunSettings, name: str) -> Any:
    try:
        return getattr(transformers, name).from_pretrained(settings.model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        told = " ".join(str(error).split())
        raise ModelError(
            f"--model {settings.model}: no {name} could be loaded from there; name a model of the Hub, or a folder "
            f"with a model and its tokenizer or processor. {type(error).__name__}: {told}"
        ) from error


def read_files(settings: RunSettings, scratch: Path) -> dict[str, Dataset]:
    """Return the rows of each file that the settings name, or a folder of splits has. Raises DataError."""
    given = {name: getattr(settings, name) for name in ("train", "eval", "test")}
    found = read_splits(given, scratch, Wanted(limit=settings.limit))
    return {name: each.rows for name, each in found.items()}


def part_rows(rows: dict[str, Dataset], settings: RunSettings, preparation: Preparation) -> None:
    """Check each file's rows, and hold back shares of those to train on, in place; the same every time.

    Raises DataError.
    """
    for each in rows.values():
        preparation.check(each)
    whole = len(rows["train"])
    usual = min(_HELD[0], _HELD[1] / whole)
    for name, share in (("test", settings.test_share), ("eval", settings.eval_share)):
        if name not in rows and share != 0:
            column = preparation.columns.get("label")
            classes = rows["train"][column] if column and preparation.options.get("labels") else None
            left = (usual if share is None else share) * whole / len(rows["train"])
            rows["train"], rows[name] = split_rows(rows["train"], left, settings.seed, classes)
    if not len(rows["train"]):
        raise DataError(f"{settings.train}: no row is left to train on.")


def _model(settings: RunSettings, preparation: Preparation) -> Any:
    """Return the base with a fresh adapter, which the seed and the number of threads decide."""
    torch.set_num_threads(settings.threads or 1)
    transformers.set_seed(settings.seed)
    kind = _model_task(str(settings.model), preparation.task)
    config = arguments.lora_config(settings, kind.task_type)
    given = arguments.base_arguments(settings) | ({} if kind.task_type else {"auto_class": kind.auto_class})
    return LoRAModel.from_pretrained(str(settings.model), config, **given, **preparation.model_arguments())


def _model_task(name: str, task: TrainingTask) -> Task:
    """Return the first row of the models' table that a task trains and a base is of. Raises ModelError for none."""
    config = transformers.AutoConfig.from_pretrained(name)
    for row in task.model_tasks:
        if type(config) in getattr(transformers, row.auto_class)._model_mapping:
            return row
    raise ModelError(
        f"--model {name}: it is a {config.model_type}, which {' and '.join(task.models)} do not know; --task "
        f"{task.name} needs another base."
    )


def _decided(settings: RunSettings, preparation: Preparation) -> RunSettings:
    """Return the settings with what the task and the machine decide."""
    task = preparation.task
    return replace(
        settings,
        task=task.name,
        column=preparation.columns,
        max_length=preparation.options.get("max_length"),
        learning_rate=settings.learning_rate or task.learning_rate,
        epochs=settings.epochs or task.epochs,
        batch_size=settings.batch_size or task.batch_size,
        metric=settings.metric or list(preparation.metrics()),
        precision=settings.precision or arguments.precision(),
        threads=settings.threads or torch.get_num_threads(),
    )
