"""The stock Trainer with a LoRAModel: resuming, and the best model at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .marks import MARK

__all__ = ["loads_best", "resumes"]


def resumes(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._load_from_checkpoint: a LoRAModel's adapters are read back in place."""

    @functools.wraps(original)
    def load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        wrapped = self.model if model is None else model
        target = _lora_model(self, wrapped)
        if target is None:
            original(self, resume_from_checkpoint, model)
        else:
            target.load_weights(resume_from_checkpoint)

    setattr(load_from_checkpoint, MARK, original)
    return load_from_checkpoint


def loads_best(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap Trainer._load_best_model: a LoRAModel's adapters are read back in place, whatever their names."""

    @functools.wraps(original)
    def load_best_model(self: Any) -> None:
        target = _lora_model(self, self.model)
        if target is None:
            original(self)
        else:
            target.load_weights(self.state.best_model_checkpoint)

    setattr(load_best_model, MARK, original)
    return load_best_model


def _lora_model(trainer: Any, model: Any) -> Any:
    from ..model import LoRAModel

    inner = trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
    return inner if isinstance(inner, LoRAModel) else None
