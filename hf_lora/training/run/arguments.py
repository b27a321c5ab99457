"""What the settings of a run make: the LoRAConfig, the arguments of the base's loading, and the TrainingArguments."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from ...config.keys import PRESETS
from ...config.lora_config import LoRAConfig
from ...errors import ConfigError, LoRAError, MissingExtraError
from ...variants.table import formula_of
from ..tasks.preparation import Preparation
from .record import CHECKPOINTS
from .settings import RunSettings, unknown_names, wrong_type

__all__ = ["base_arguments", "chosen_metric", "lora_config", "measured_names", "training_arguments"]

# Metrics that are better when lower; a task marks others by a "-" before the name.
_LOWER = {"loss", "perplexity", "mse", "mae", "wer", "cer", "ter"}
# Arguments of the Trainer's that have a flag of their own.
_FLAGS = {
    "output_dir": "output", "num_train_epochs": "epochs", "max_steps": "max-steps", "metric_for_best_model": "metric",
    "per_device_train_batch_size": "batch-size", "gradient_accumulation_steps": "accumulate", "bf16": "precision",
    "learning_rate": "learning-rate", "lr_scheduler_type": "scheduler", "warmup_steps": "warmup", "fp16": "precision",
    "weight_decay": "weight-decay", "seed": "seed", "eval_steps": "eval-steps", "save_steps": "eval-steps",
    "greater_is_better": "metric", "push_to_hub": "push", "hub_model_id": "push", "eval_strategy": "eval-steps",
    "gradient_checkpointing": "gradient-checkpointing", "activation_checkpointing": "gradient-checkpointing",
    "save_strategy": "eval-steps",
    "load_best_model_at_end": "metric", "resume_from_checkpoint": "resume",
}  # fmt: skip
_FIELDS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
_CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in _FIELDS)


def lora_config(settings: RunSettings, task_type: str | None = None) -> LoRAConfig:
    """Return the adapter's config. Raises ConfigError for settings that there are not, or that cannot be."""
    if twice := [name for name in settings.lora if name in {f.name for f in dataclasses.fields(RunSettings)}]:
        raise ConfigError(f"--lora {twice[0]}: that is a flag of its own, --{twice[0].replace('_', '-')}.")
    usual, lacks = RunSettings(), formula_of(settings.lora).lacks  # the flags' defaults are plain LoRA's
    flags = {name: getattr(settings, name) for name in ("r", "lora_alpha", "lora_dropout")}
    given = {name: value for name, value in flags.items() if name not in lacks or value != getattr(usual, name)}
    targets = target_names(settings.target_modules)
    return LoRAConfig(**{**given, "target_modules": targets, "task_type": task_type, **settings.lora})


def target_names(text: str) -> str | list[str]:
    """Return what `target_modules` is, of a text on a command line: a preset, names, or a regular expression.

    >>> target_names("auto"), target_names("query, value"), target_names(r".*\\.(query|value)")
    ('auto', ['query', 'value'], '.*\\\\.(query|value)')
    """
    names = [name.strip() for name in text.split(",")]
    return text if text in PRESETS or not all(re.fullmatch(r"[\w.]+", name) for name in names) else names


def base_arguments(settings: RunSettings) -> dict[str, Any]:
    """Return what the base is loaded with. Raises MissingExtraError where a package for it is missing."""
    given: dict[str, Any] = {"dtype": settings.dtype} if settings.dtype else {}
    if settings.quantize:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtraError(
                f"--quantize {settings.quantize} needs the package bitsandbytes, which is not here; run "
                "`pip install bitsandbytes`."
            )
        how: dict[str, Any] = {"load_in_8bit": True}
        if settings.quantize == "4bit":
            computes = torch.bfloat16 if settings.precision == "bf16" else torch.float32
            how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": computes}
        given["quantization_config"] = transformers.BitsAndBytesConfig(**how)
    return given


def precision() -> str:
    """Return the arithmetic that this machine is fast in without losing range."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def measured_names(settings: RunSettings) -> list[str]:
    """Return the metrics to compute: the loss is there anyway."""
    return [name.lstrip("-") for name in settings.metric if name.lstrip("-") != "loss"]


def chosen_metric(settings: RunSettings) -> tuple[str, bool]:
    """Return the metric that chooses the best checkpoint, and whether it is better when it is greater."""
    first = next(iter(settings.metric), "loss")
    return first.lstrip("-"), not first.startswith("-") and first not in _LOWER


def training_arguments(settings: RunSettings, preparation: Preparation) -> Any:
    """Return the Trainer's arguments for a run into `settings.output`. Raises ConfigError for what they refuse."""
    module, _, name = preparation.arguments_class.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    check_trainer(settings, cls)
    metric, greater = chosen_metric(settings)
    given: dict[str, Any] = {
        "output_dir": str(Path(str(settings.output)) / CHECKPOINTS),
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
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        _CHECKPOINTING: settings.gradient_checkpointing,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{metric}",
        "greater_is_better": greater,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    given = {name: value for name, value in given.items() if value is not None}
    with refusals(settings):
        made = cls(**{**given, **preparation.training_arguments(), **settings.trainer})
    if made.label_smoothing_factor and not preparation.smooths:
        raise ConfigError(
            f"--trainer label_smoothing_factor={made.label_smoothing_factor}: {preparation.task.name} has no classes "
            "or tokens that the Trainer could smooth; leave it out."
        )
    return made


@contextmanager
def refusals(settings: RunSettings) -> Iterator[None]:
    """Raise ConfigError for what the Trainer, or what it makes, raises of its arguments."""
    try:
        yield
    except (LoRAError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        is_plain = isinstance(error, TypeError | ValueError | ImportError | RuntimeError)
        if not settings.trainer and not is_plain:
            raise
        given = "".join(f" --trainer {name}={value}" for name, value in settings.trainer.items())
        told = ("" if is_plain else f"{type(error).__name__}: ") + " ".join(str(error).split())
        raise ConfigError(f"the Trainer refuses the settings{given}: {told}") from error


@contextmanager
def late_refusals(settings: RunSettings, trainer: Any) -> Iterator[None]:
    """Raise ConfigError for what a training with arguments of --trainer raises before its first step.

    What is raised without such arguments, or later, is raised as it is.
    """
    try:
        yield
    except Exception as error:
        if not settings.trainer or trainer.state.global_step:
            raise
        with refusals(settings):
            raise error


def check_trainer(settings: RunSettings, cls: type) -> None:
    """Raise ConfigError for further arguments of the Trainer's that it has not, or that are flags."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if unknown := unknown_names(settings.trainer, sorted(fields)):
        raise ConfigError(f"--trainer: {unknown}")
    if flag := next((f"{name}: that is --{_FLAGS[name]}" for name in settings.trainer if name in _FLAGS), None):
        raise ConfigError(f"--trainer {flag}.")
    negative = [
        f"{name}={value}: it has to be at least 0."
        for name, value in settings.trainer.items()
        if _is_negative(value) and not _is_negative(fields[name].default)
    ]
    if negative:
        raise ConfigError(f"--trainer {' '.join(negative)}")
    hints = typing.get_type_hints(cls)
    if wrong := [told for name, value in settings.trainer.items() if (told := wrong_type(name, value, hints[name]))]:
        raise ConfigError(f"--trainer {' '.join(wrong)}")


def _is_negative(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0
