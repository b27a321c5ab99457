"""Training a plan, measuring the result, and writing down all that belongs to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from .planning import Plan
from .record import CHECKPOINTS, METRICS, SETTINGS, save_preparation, write_json

__all__ = ["train_plan"]


def train_plan(plan: Plan) -> dict[str, Any]:
    """Train, write the run's folder, and return what was measured. Raises what the Trainer raises."""
    settings, folder = plan.settings, Path(str(plan.settings.output))
    torch.set_num_threads(settings.threads or 1)
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(folder / SETTINGS)
    save_preparation(plan.preparation, folder)
    trainer = plan.trainer(folder)
    trainer.train()
    measured: dict[str, Any] = {}
    for name in ("eval", "test"):
        if name in plan.rows:
            measured[name] = trainer.evaluate(plan.preparation.dataset(plan.rows[name], plan.processor))
    trainer.args.output_dir = str(folder)
    trainer.save_model()
    write_json(folder / METRICS, measured)
    trainer.create_model_card()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return measured
