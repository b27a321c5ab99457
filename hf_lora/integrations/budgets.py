"""The budgets of adapters whose ranks change in training, in the stock Trainer: found, kept, saved, brought to an end.

The gradient of the regulariser is added after clipping, right before the optimizer's step, so that the loss is what the
model computes. After the step the budget takes its components away. What a budget has measured is in each checkpoint.
At the end the adapter becomes plain LoRA of the ranks that are left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import AdapterFileError, AdapterMismatchError, AdapterStateError, ConfigError, full_name
from ..files.tensors import read_tensors, write_tensors
from ..model.truncating import truncate
from ..training.ready import states_of
from ..variants.table import FORMULAS
from .trained_model import lora_model

_NAME = "budget_{}.safetensors"  # by adapter, in a checkpoint


class BudgetCallback(TrainerCallback):
    """Keeps the budgets of what a Trainer trains. budgets: by adapter, while it trains."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.budgets: dict[str, Any] = {}

    def check_steps(self, steps: int) -> None:
        """Raise what would end a training of so many steps before its first one.

        ConfigError where the settings leave no step for a budget to fall, AdapterStateError where it cannot be kept.
        """
        for _ in _budgeted(self.trainer, steps):
            pass

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the budgets, or read them from the checkpoint that training resumes from."""
        self.budgets = budgets_of(self.trainer, state.max_steps)
        if (checkpoint := getattr(self.trainer, "_resumed", None)) is not None:
            for name, budget in self.budgets.items():
                path = Path(checkpoint, _NAME.format(name))
                if not path.is_file():
                    raise AdapterFileError(
                        f"{checkpoint} has no {path.name}, which holds what {name!r} measured before; resume from a "
                        "checkpoint of this Trainer's, or train anew."
                    )
                try:
                    budget.load(read_tensors(path))
                except AdapterMismatchError as error:
                    raise AdapterMismatchError(f"{path} was not written in a training of {name!r}: {error}") from None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Add the regulariser's gradients."""
        for budget in self.budgets.values():
            budget.regularise()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the budgets. A step that the scaler of half precision skipped measures nothing."""
        skipped = self.trainer.accelerator.optimizer_step_was_skipped
        for budget in self.budgets.values():
            budget.settle(state.global_step + 1, measures=not skipped)


def budgets_of(trainer: Any, total_step: int) -> dict[str, Any]:
    """Return the budgets of the adapters that a Trainer trains for so many steps, by adapter; raises as `check_steps`.

    Their configs are told the number of steps, as a file of them says it, whoever trains it on.
    """
    made: dict[str, Any] = {}
    for name, config, places, settings in _budgeted(trainer, total_step):
        config.other["total_step"] = total_step
        made[name] = FORMULAS[config.formula].budget_class(places, settings)
    return made


def _budgeted(trainer: Any, total_step: int) -> Iterator[tuple[str, Any, dict[str, Any], dict[str, Any]]]:
    """Yield each adapter with a budget: its name, config, adapters by name of the layer, and settings of the budget."""
    for state in states_of(trainer.model):
        for name in state.trainable & {*state.selected}:
            config = state.records[name].config
            row = FORMULAS[config.formula]
            if not row.budget:
                continue
            _check(trainer, name, row.title)
            adapters = {id(each.adapter): each for each in state.carried(name) if each.adapter.low_rank}
            places = {full_name(each.module, each.key): each.adapter for each in adapters.values()}
            given, begun = config.other.get("total_step", 0), any(a.is_kept or not a.is_idle() for a in places.values())
            settings = {key: getattr(config, key) for key in row.settings} | {"total_step": total_step}
            problems = row.problems({"r": config.r, **settings})
            if given not in (0, total_step) and not begun:  # afterwards it says what an earlier training had
                problems = [f"total_step={given}, and the training has {total_step} steps: leave it out."]
            if problems:
                raise ConfigError(f"{name!r}: {' '.join(problems)}")
            yield name, config, places, settings


def save(trainer: Any, checkpoint: Path) -> None:
    """Write what the budgets have measured into a checkpoint."""
    for name, budget in _callback(trainer).budgets.items():
        write_tensors(checkpoint / _NAME.format(name), budget.tensors(), {})


def finish(trainer: Any) -> None:
    """Make plain LoRA of the adapters whose budgets were kept; an optimizer of theirs is given up."""
    callback = _callback(trainer)
    for name, budget in callback.budgets.items():
        if (left := budget.components()) > budget.target:
            warnings.warn(
                f"{name!r} has {left} components, more than the {budget.target} of target_r: training ended, or the "
                "best checkpoint was, before the budget was reached. A larger tfinal reaches it earlier.",
                stacklevel=3,
            )
        truncate(lora_model(trainer), energy=1.0, adapter_name=name)
    if callback.budgets:
        trainer.optimizer = trainer.lr_scheduler = None
    callback.budgets = {}


def _callback(trainer: Any) -> BudgetCallback:
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, BudgetCallback))


def _check(trainer: Any, name: str, title: str) -> None:
    if lora_model(trainer) is None:
        raise AdapterStateError(f"{name!r} is {title}, which is trained by a Trainer of the LoRAModel itself only.")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise AdapterStateError(f"{name!r} is {title}, which FSDP and DeepSpeed cannot train here: use DDP.")
    scales = getattr(trainer.accelerator, "scaler", None) is not None
    if scales and not trainer.args.max_grad_norm:
        raise AdapterStateError(f"{name!r} is {title}, which fp16 trains with max_grad_norm above 0 only; or use bf16.")
