"""A Trainer becomes the Trainer of a LoRAModel: its class is refined in place, as `trainer.py` says."""

from collections.abc import Callable
from typing import Any

from ..layers.specialising import is_a
from ..model.hooks import around
from . import missing, trl, trl_making
from .trained_model import contains_lora, measures


@around
def specialises(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap Trainer.__init__: the Trainer of a LoRAModel is specialised, before its first line where that is known."""
    model = trl_making.adapted(kwargs.get("model", args[0] if args else None))
    trl.check(type(self), model, kwargs.get("args", args[1] if len(args) > 1 else None))
    _specialise(self, model)
    original(self, *args, **kwargs)
    if _specialise(self, self.model):
        missing.tell(self)
        trl.disable_dropout(self.model, self.args)


@around
def specialises_late(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap a public method of Trainer: one whose model was given adapters since it was made is specialised first."""
    if not _is_ours(self) and (ours := _specialise(self, self.model)):
        return getattr(ours, original.__name__)(self, *args, **kwargs)
    return original(self, *args, **kwargs)


def _specialise(trainer: Any, model: Any) -> type | None:
    """Specialise a Trainer where its model has a LoRAModel inside or hf_lora measures it; return LoRATrainer then."""
    if not (_is_ours(trainer) or contains_lora(model) or measures(trainer)):
        return None
    from .trainer import LoRATrainer  # not above: they import torch
    from .trainer_classes import specialise

    specialise(trainer)
    return LoRATrainer


def _is_ours(trainer: Any) -> bool:
    return is_a(trainer, "hf_lora.integrations.trainer", "LoRATrainer")
