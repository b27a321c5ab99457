"""The classes of LoRAModels' Trainers: one for each class that becomes one, under its own name."""

import functools
from typing import Any

from transformers import Trainer

from ..hub.card.metadata import joined
from . import budgets, containing
from .optimizer import OptimizerCheck
from .trainer import LoRATrainer


def specialise(trainer: Any) -> None:
    """Make a Trainer the Trainer of a LoRAModel, with a check of its optimizer, unless it is that already."""
    if not isinstance(trainer, LoRATrainer):
        cls: Any = type(trainer)
        trainer.__class__ = _specialised(cls)
    handler = getattr(trainer, "callback_handler", None)
    if handler is not None:
        for callback in (OptimizerCheck, budgets.BudgetCallback):
            if not any(isinstance(each, callback) for each in handler.callbacks):
                handler.add_callback(callback(trainer))


@functools.cache
def _specialised(cls: type) -> type:
    """Return the one class of a class's Trainers of LoRAModels; it has the same names."""
    names: dict[str, Any] = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= containing.reading(cls)
    if getattr(getattr(cls, "create_model_card", None), "__module__", "").startswith("trl."):
        names["create_model_card"] = _create_card_in_trl
    return type(cls.__name__, (LoRATrainer,) if cls is Trainer else (cls, LoRATrainer), names)


def _create_card_in_trl(
    self: Any, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
) -> None:
    """Write the card as the stock Trainer does here: TRL's own names neither the adapter's base nor its library."""
    tags = joined(tags, self._tag_names)
    LoRATrainer.create_model_card(self, model_name=model_name, dataset=dataset_name, tags=tags)
