"""A Trainer becomes the Trainer of a LoRAModel: its class is refined in place, as `trainer.py` says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import missing, trl
from .trained_model import contains_lora
from .trainer import METHODS, LoRATrainer, measures

__all__ = ["specialised", "specialises", "specialises_late"]


def specialises(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.__init__: the Trainer of a LoRAModel is specialised, before its first line where that is known."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        model = kwargs.get("model", args[0] if args else None)
        trl.check_head(type(self), model)
        _specialise(self, model)
        original(self, *args, **kwargs)
        _specialise(self, self.model)
        if isinstance(self, LoRATrainer):
            missing.tell_of_trainer(self)
            trl.disable_dropout(self.model, self.args)

    return init


def specialises_late(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a public method of Trainer: one whose model was given adapters since it was made is specialised first."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, LoRATrainer):
            _specialise(self, self.model)
            if isinstance(self, LoRATrainer):
                return getattr(LoRATrainer, original.__name__)(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    return method


@functools.cache
def specialised(cls: type) -> type:
    """Return the one class of a class's Trainers of LoRAModels; it has the same names."""
    from transformers.trainer import Trainer

    if cls is not Trainer:
        bases: tuple[type, ...] = (cls, specialised(Trainer))
    else:
        bases = (LoRATrainer, Trainer)
        for row in METHODS:
            (missing.found if callable(getattr(Trainer, row.path.partition(".")[2], None)) else missing.note)(row)
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    if getattr(getattr(cls, "create_model_card", None), "__module__", "").startswith("trl."):
        names["create_model_card"] = trl.create_model_card
    return type(cls.__name__, bases, names)


def _specialise(trainer: Any, model: Any) -> None:
    """Specialise a Trainer that is not yet, where its model has a LoRAModel inside or hf_lora measures it."""
    if not isinstance(trainer, LoRATrainer) and (contains_lora(model) or measures(trainer)):
        cls: Any = type(trainer)
        trainer.__class__ = specialised(cls)
    handler = getattr(trainer, "callback_handler", None)
    if handler is not None and isinstance(trainer, LoRATrainer):
        from .optimizer import OptimizerCheck  # not above: it imports torch

        if not any(isinstance(callback, OptimizerCheck) for callback in handler.callbacks):
            handler.add_callback(OptimizerCheck(trainer))
