"""The LoRAModel that a Trainer trains, whatever is wrapped around it, and methods for Trainers of one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .marks import MARK

__all__ = ["for_lora", "lora_model"]


def for_lora(original: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function the method for Trainers of a LoRAModel, which it gets first; others keep their own."""

    def decorate(ours: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            target = lora_model(self)
            return original(self, *args, **kwargs) if target is None else ours(target, self, *args, **kwargs)

        setattr(method, MARK, original)
        return method

    return decorate


def lora_model(trainer: Any, model: Any = None) -> Any:
    """Return a Trainer's model (or a wrapped one of it) without wrappers where it is a LoRAModel, else None."""
    from ..model.lora_model import LoRAModel  # not above: it imports torch, which `import hf_lora` leaves alone

    wrapped = trainer.model if model is None else model
    inner = trainer.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
    return inner if isinstance(inner, LoRAModel) else None
