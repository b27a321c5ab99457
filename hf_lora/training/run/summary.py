"""A plan in words: what was understood of the data and will be trained, and for a dry run what it will take."""

from __future__ import annotations

import math
from typing import Any

from .planning import Plan
from .probing import estimated_memory

__all__ = ["dry_run", "steps_of", "understood"]

_SHOWN = 3  # samples
_SAYS = {"train": "to train on", "eval": "to choose the best checkpoint by", "test": "to test on"}


def understood(plan: Plan, trainer: Any) -> dict[str, str]:
    """Return what is shown before a training, by name. The Trainer knows its steps (`prepared_trainer`)."""
    settings, preparation = plan.settings, plan.preparation
    trained, total = plan.model.get_nb_trainable_parameters()
    found = {
        "model": f"{settings.model}, {type(plan.model).__name__}: {trained:,} of {total:,} parameters train "
        f"({trained / total:.2%})",
        "task": f"{preparation.task.name}: {preparation.task.says}",
        "columns": ", ".join(f"{role} = {column}" for role, column in preparation.columns.items()),
        "rows": ", ".join(f"{len(plan.rows[split]):,} {says}" for split, says in _SAYS.items() if split in plan.rows),
    }
    if labels := preparation.options.get("labels"):
        more = f", and {len(labels) - 20} more" if len(labels) > 20 else ""
        found["classes"] = ", ".join(map(str, labels[:20])) + more
        if positive := preparation.positive():
            found["classes"] += f"; f1, precision and recall are of {positive!r}"
    if preparation.remarks:
        found["remarks"] = " ".join(preparation.remarks)
    rows = trainer.get_total_train_batch_size(trainer.args)
    found["steps"] = f"{steps_of(trainer)[1]:,} of {rows} rows, peak learning rate {settings.learning_rate:g}"
    found["output"] = str(settings.output)
    return found


def steps_of(trainer: Any) -> tuple[int, int]:
    """Return how many optimizer steps an epoch has, and how many a Trainer will take."""
    args = trainer.args
    batches = math.ceil(len(trainer.train_dataset) / (args.train_batch_size * args.world_size))
    epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return epoch, args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)


def dry_run(plan: Plan, trainer: Any) -> dict[str, Any]:
    """Return what a training would be, as JSON takes it: targets, parameters, steps, memory, three samples.

    "memory" is in bytes (`probing.Memory`).
    """
    trained, total = plan.model.get_nb_trainable_parameters()
    rows = plan.rows["train"].select(range(min(_SHOWN, len(plan.rows["train"])))).to_list()
    features = plan.preparation.features(rows, plan.processor)[:_SHOWN]  # TRL's datasets hold others
    return {
        **understood(plan, trainer),
        "steps": steps_of(trainer)[1],
        "parameters": {"trained": trained, "total": total},
        "targets": str(plan.model.targets_report()),
        "memory": estimated_memory(trainer).to_dict(),
        "samples": [plan.preparation.shown(feature, plan.processor) for feature in features],
    }
