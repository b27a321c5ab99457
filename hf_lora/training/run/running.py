"""Training a plan, measuring the result, and writing down all that belongs to it."""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed

from ...errors import DataError
from ...files.names import CARD_NAME
from ...files.privacy import hub_id
from ...hub.card.writing import amend_card
from ...model.publishing import push_folder
from . import arguments, record
from .arguments import chosen_metric
from .callbacks import BestBy, Progresses
from .curves import write_curves
from .folder import begin
from .log import logged_to
from .measuring import figures
from .planning import Plan
from .probing import fastest_threads, peak_so_far
from .settings import RunSettings
from .summary import steps_of, understood

__all__ = ["prepared_trainer", "train_plan"]

_OFTEN = 1000  # steps between evaluations, at most, where nobody says it
_SPLITS = {"eval": "validation", "test": "test"}  # what the card calls them


def train_plan(
    plan: Plan,
    *,
    resume: bool = False,
    repeats: Path | None = None,
    callbacks: Sequence[Any] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train, write the run's folder, and return its record, as metrics.json has it.

    resume: go on from the last whole checkpoint in the folder, or from the start where there is none. repeats: the
    folder of a run that this one repeats. callbacks: more of the Trainer's. say: is told what happens. Raises DataError
    where the data of a resumed run has changed, and what the Trainer raises; the folder then holds an unfinished run.
    """
    began, folder = time.monotonic(), Path(str(plan.settings.output))
    trainer, settings = prepared_trainer(plan, callbacks)
    found: dict[str, Any] = {"finished": False, "versions": record.versions()}
    found["data"] = record.data_facts(settings, plan.rows)
    earlier = folder if resume else repeats
    if changed := record.changed_data(earlier, found["data"]) if earlier else []:
        told = f"{', '.join(changed)}: it is no more what the run in {earlier} was trained on"
        if resume:
            raise DataError(f"{told}; bring it back, or start a new run.")
        say(f"{told}.")
    whole = resume and any((folder / record.CHECKPOINTS).glob("checkpoint-*/_COMPLETE"))
    if not whole:
        begin(folder, settings, found)
    record.save_preparation(plan.preparation, folder)
    with logged_to(folder / record.LOG) as log:
        trainer.add_callback(log)
        for name, value in understood(plan, trainer).items():
            log.say(f"{name}: {value}")
            say(f"{name}: {value}")
        found |= _trained(trainer, settings, whole)
        _save(trainer, plan, folder)
    write_curves(trainer.state.log_history, folder)
    found["seconds"]["all"] = round(time.monotonic() - began, 1)
    found["finished"] = True
    record.write_json(folder / record.METRICS, found)
    shutil.rmtree(folder / record.CHECKPOINTS, ignore_errors=True)
    if settings.push:
        url = push_folder(folder, settings.push, private=settings.private or None, base_model=settings.base_id)
        say(f"pushed to {url}")
    return found


def _trained(trainer: Any, settings: RunSettings, resume: bool) -> dict[str, Any]:
    """Train, measure the best weights, and return what is known of both. resume: from the last checkpoint."""
    held, trainer.eval_dataset = trainer.eval_dataset, trainer.eval_dataset["eval"]
    set_seed(trainer.args.seed)  # whatever was drawn since the plan
    with arguments.late_refusals(settings, trainer):
        trained = trainer.train(resume_from_checkpoint=resume or None)
    state, best = trainer.state, trainer.args.metric_for_best_model
    return {
        **_measured(trainer, held),
        "best": {"step": state.best_global_step, best.removeprefix("eval_"): state.best_metric},
        "steps": state.global_step,
        "epochs": state.epoch,
        "parameters": dict(zip(("trained", "total"), trainer.model.get_nb_trainable_parameters(), strict=True)),
        "seconds": {"training": trained.metrics["train_runtime"]},
        "peak_bytes": peak_so_far(trainer.args.device.type),
    }


def prepared_trainer(plan: Plan, callbacks: Sequence[Any] = ()) -> tuple[Any, Any]:
    """Return the Trainer of a plan, ready to train, and the settings with how often it evaluates."""
    chooses: list[Any] = [BestBy(chosen_metric(plan.settings)[0], getattr(plan.compute_metrics, "names", {}))]
    if plan.settings.patience:
        chooses.append(EarlyStoppingCallback(plan.settings.patience))
    with arguments.refusals(plan.settings):
        trainer = plan.trainer([*chooses, *callbacks])
    trainer.remove_callback(PrinterCallback)
    epoch, steps = steps_of(trainer)
    every = plan.settings.eval_steps or math.ceil(epoch / math.ceil(epoch / _OFTEN))
    trainer.args.eval_steps = trainer.args.save_steps = min(every, steps)
    trainer.args.logging_steps = max(steps // 100, 1)
    if plan.settings.warmup * steps < 1:
        trainer.args.warmup_steps = 0  # in a single step of warm-up the rate is zero
    with arguments.refusals(plan.settings):  # what a training makes, before anything is written
        if trainer.args.torch_compile:
            compiles = trainer.args.torch_compile_backend, trainer.args.torch_compile_mode
            torch.compile(torch.nn.Identity(), backend=compiles[0], mode=compiles[1])
        trainer.get_train_dataloader()
        for rows in trainer.eval_dataset.values():
            trainer.get_eval_dataloader(rows)
        trainer.create_optimizer_and_scheduler(steps)
        for callback in trainer.callback_handler.callbacks:
            getattr(callback, "check_steps", lambda steps: None)(steps)
    trainer.optimizer = trainer.lr_scheduler = None
    threads = plan.settings.threads
    if not threads:
        computed = not isinstance(plan.settings.lora.get("init_lora_weights", True), bool)
        # A start that is computed was computed with all threads, and has other bits with fewer.
        threads = torch.get_num_threads() if computed else fastest_threads(trainer)
    torch.set_num_threads(threads)
    return trainer, replace(plan.settings, eval_steps=trainer.args.eval_steps, threads=threads)


def _measured(trainer: Any, held: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Evaluate the best weights on each split; return the results by split, without "eval_"."""
    for callback in (BestBy, EarlyStoppingCallback, Progresses):  # they look at what training measures
        trainer.remove_callback(callback)
    trainer.eval_dataset = {_SPLITS[split]: rows for split, rows in held.items()}
    found = {}
    for split, rows in held.items():
        prefix = f"eval_{_SPLITS[split]}"
        found[split] = figures(trainer.evaluate(rows, metric_key_prefix=prefix), f"{prefix}_")
        log = trainer.state.log_history[-1]
        for key in [key for key in log if key.startswith("eval_") and not key.startswith(prefix)]:
            log[f"{prefix}_{key.removeprefix('eval_')}"] = log.pop(key)  # TRL names no split
    return found


def _save(trainer: Any, plan: Plan, folder: Path) -> None:
    """Write the adapter with its tokenizer and its card."""
    settings = plan.settings
    trainer.args.output_dir = str(folder)  # where the card goes
    trainer.save_model()
    (folder / "training_args.bin").unlink(missing_ok=True)
    source = str(settings.train)
    dataset = hub_id(source) or Path(source).name
    takes = inspect.signature(trainer.create_model_card).parameters
    trainer.create_model_card(**{"dataset_name" if "dataset_name" in takes else "dataset": dataset})
    about: dict[str, Any] = {"language": settings.language, "license": settings.license, "base_model": settings.base_id}
    if hub_id(source):
        about["datasets"] = [source]
    amend_card(folder / CARD_NAME, ModelCardData(**{name: value for name, value in about.items() if value}))
