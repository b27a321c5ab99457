"""Resuming from a downloaded checkpoint: the best one so far may not have come along."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

__all__ = ["tell_missing_best"]


def tell_missing_best(args: Any, checkpoint: Path) -> None:
    """Warn where the best model is wanted at the end and the best one so far is not on this machine.

    args: the TrainingArguments. checkpoint: a folder with trainer_state.json; without one nothing is said.
    """
    if not args.load_best_model_at_end or not (checkpoint / "trainer_state.json").is_file():
        return
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    best, step = state.get("best_model_checkpoint"), state.get("best_global_step")
    expected = Path(args.output_dir, f"checkpoint-{step}")
    if not step or expected.is_dir() or (best and Path(best).is_dir()):
        return
    warnings.warn(
        f"the best checkpoint so far (step {step}, {args.metric_for_best_model} {state.get('best_metric')}) is not on "
        f"this machine, so load_best_model_at_end can choose later ones only. To have it count, put it at {expected}.",
        stacklevel=3,
    )
