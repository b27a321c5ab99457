"""A run before it trains: data read, columns chosen, rows checked, model loaded, every setting decided."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from ...config.lora_config import LoRAConfig
from ...config.tasks import Task
from ...errors import ConfigError, DataError, ModelError
from ...model.lora_model import LoRAModel
from ..data.columns import choose_columns
from ..data.reading import read_rows
from ..data.splitting import split_rows
from ..tasks.preparation import Preparation
from ..tasks.table import TASKS
from ..tasks.task import TrainingTask
from .record import CHECKPOINTS
from .settings import RunSettings

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Plan", "part_rows", "plan_run", "read_files"]

_LOOKED_AT = 100  # rows whose values tell what a column is


@dataclass
class Plan:
    """A run that could start: `settings` are all decided, `rows` are by split ("train", "eval", "test")."""

    settings: RunSettings
    preparation: Preparation
    processor: Any
    rows: dict[str, Dataset]
    model: Any

    def trainer(self, folder: Path) -> Any:
        """Return the Trainer of the task."""
        module, _, name = self.preparation.trainer_class.rpartition(".")
        train, held = self.rows.get("train"), self.rows.get("eval")
        metrics = self.preparation.compute_metrics(self.settings.metric, self.processor)
        return getattr(importlib.import_module(module), name)(
            model=self.model,
            args=_arguments(self, folder),
            train_dataset=None if train is None else self.preparation.dataset(train, self.processor),
            eval_dataset=None if held is None else self.preparation.dataset(held, self.processor),
            data_collator=self.preparation.collator(self.processor, self.model),
            processing_class=self.processor,
            compute_metrics=metrics,
            preprocess_logits_for_metrics=getattr(metrics, "preprocess_logits_for_metrics", None),
        )


def plan_run(settings: RunSettings, scratch: Path) -> Plan:
    """Return the run that the settings ask for, checked as far as it goes without training.

    scratch: a folder for the rows, which stays as long as the plan is used. Raises DataError, ConfigError and what
    loading a base raises.
    """
    for name in ("model", "train"):
        if getattr(settings, name) is None:
            raise ConfigError(f"--{name} is missing: there is nothing to train{' on' if name == 'train' else ''}.")
    rows = read_files(settings, scratch)
    task = TASKS.get(settings.task or "text-classification")
    if task is None:
        raise ConfigError(f"task={settings.task!r}: there are {', '.join(TASKS)}.")
    first = rows["train"].select(range(min(_LOOKED_AT, len(rows["train"])))).to_list()
    columns = choose_columns(first, task.roles, settings.column, str(settings.train))
    transformers.set_seed(settings.seed)  # the adapter and new heads start at random
    processor = getattr(transformers, task.preparation.processor_class).from_pretrained(settings.model)
    options = {name: getattr(settings, name, None) for name in task.preparation.OPTIONS}
    preparation = task.preparation(task, columns, **options)
    preparation.learn(rows["train"], processor)
    part_rows(rows, settings, preparation)
    model = _model(settings, preparation)
    preparation.fit_model(model, processor)
    return Plan(_decided(settings, preparation), preparation, processor, rows, model)


def read_files(settings: RunSettings, scratch: Path) -> dict[str, Dataset]:
    """Return the rows of each file that the settings name, by split. Raises DataError."""
    return {
        name: read_rows(source, scratch, settings.limit)
        for name in ("train", "eval", "test")
        if (source := getattr(settings, name))
    }


def part_rows(rows: dict[str, Dataset], settings: RunSettings, preparation: Preparation) -> None:
    """Check each file's rows, and hold back shares of those to train on, in place; the same every time.

    Raises DataError.
    """
    for each in rows.values():
        preparation.check(each)
    for name, share in (("test", settings.test_share), ("eval", settings.eval_share)):
        if name not in rows and share:
            column = preparation.columns.get("label")
            classes = rows["train"][column] if column and preparation.options.get("labels") else None
            rows["train"], rows[name] = split_rows(rows["train"], share, settings.seed, classes)
    if not len(rows["train"]):
        raise DataError(f"{settings.train}: no row is left to train on.")


def _model(settings: RunSettings, preparation: Preparation) -> Any:
    targets, kind = settings.target_modules, _model_task(str(settings.model), preparation.task)
    config = LoRAConfig(
        r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules=targets.split(",") if "," in targets else targets,
        task_type=kind.task_type, **settings.lora,
    )  # fmt: skip
    given: dict[str, Any] = {"dtype": settings.dtype} if settings.dtype else {}
    given |= {} if kind.task_type else {"auto_class": kind.auto_class}
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
    """Return the settings with what the task decides."""
    import torch

    task = preparation.task
    return replace(
        settings,
        task=task.name,
        column=preparation.columns,
        max_length=preparation.options.get("max_length"),
        output=settings.output or f"outputs/{Path(str(settings.train)).stem}-{Path(str(settings.model)).name}",
        learning_rate=settings.learning_rate or task.learning_rate,
        epochs=settings.epochs or task.epochs,
        batch_size=settings.batch_size or task.batch_size,
        metric=settings.metric or list(task.metrics),
        threads=settings.threads or torch.get_num_threads(),
    )


def _arguments(plan: Plan, folder: Path) -> Any:
    settings, preparation = plan.settings, plan.preparation
    module, _, name = preparation.arguments_class.rpartition(".")
    return getattr(importlib.import_module(module), name)(
        **{
            "output_dir": str(folder / CHECKPOINTS),
            "num_train_epochs": settings.epochs,
            "max_steps": settings.max_steps or -1,
            "per_device_train_batch_size": settings.batch_size,
            "per_device_eval_batch_size": settings.batch_size,
            "gradient_accumulation_steps": settings.accumulate,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": settings.scheduler,
            "warmup_steps": settings.warmup,
            "weight_decay": settings.weight_decay,
            "seed": settings.seed,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "load_best_model_at_end": True,
            "report_to": "none",
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            **preparation.training_arguments(),
            **settings.trainer,
        }
    )
