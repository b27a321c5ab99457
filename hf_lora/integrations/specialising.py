"""A Trainer becomes the Trainer of a LoRAModel: its class is refined in place, as `trainer.py` says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import missing, trl
from .trained_model import contains_lora, is_a, measures

__all__ = ["specialised", "specialises", "specialises_late"]


def specialises(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.__init__: the Trainer of a LoRAModel is specialised, before its first line where that is known."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        model = kwargs.get("model", args[0] if args else None)
        trl.check_head(type(self), model)
        _specialise(self, model)
        original(self, *args, **kwargs)
        if _specialise(self, self.model):
            missing.tell(self)
            trl.disable_dropout(self.model, self.args)

    return init


def specialises_late(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a public method of Trainer: one whose model was given adapters since it was made is specialised first."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_ours(self) and _specialise(self, self.model):
            from .trainer import LoRATrainer

            return getattr(LoRATrainer, original.__name__)(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    return method


@functools.cache
def specialised(cls: type) -> type:
    """Return the one class of a class's Trainers of LoRAModels; it has the same names."""
    from transformers.trainer import Trainer

    from .trainer import METHODS, LoRATrainer  # not above: it imports torch

    if cls is not Trainer:
        bases: tuple[type, ...] = (cls, specialised(Trainer))
    else:
        bases = (LoRATrainer, Trainer)
        for row in METHODS:
            row.is_missing = not callable(getattr(Trainer, row.path.partition(".")[2], None))
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    if getattr(getattr(cls, "create_model_card", None), "__module__", "").startswith("trl."):
        names["create_model_card"] = trl.create_model_card
    return type(cls.__name__, bases, names)


def _specialise(trainer: Any, model: Any) -> bool:
    """Specialise a Trainer where its model has a LoRAModel inside or hf_lora measures it; return whether it is now."""
    if not _is_ours(trainer):
        if not (contains_lora(model) or measures(trainer)):
            return False
        cls: Any = type(trainer)
        trainer.__class__ = specialised(cls)
    if (handler := getattr(trainer, "callback_handler", None)) is not None:
        from .optimizer import OptimizerCheck  # not above: it imports torch

        if not any(isinstance(callback, OptimizerCheck) for callback in handler.callbacks):
            handler.add_callback(OptimizerCheck(trainer))
    return True


def _is_ours(trainer: Any) -> bool:
    return is_a(trainer, "hf_lora.integrations.trainer", "LoRATrainer")
