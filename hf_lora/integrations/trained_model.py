"""The LoRAModel that a Trainer trains, whatever is wrapped around it, and methods for Trainers of one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["contains_lora", "for_lora", "is_lora", "is_metrics", "lora_model"]

_HOME = "hf_lora.model.lora_model"  # where nobody has imported it (it imports torch), there is no LoRAModel


def for_lora(original: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function the method for Trainers of a LoRAModel, which it gets first; others keep their own."""

    def decorate(ours: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            target = lora_model(self)
            return original(self, *args, **kwargs) if target is None else ours(target, self, *args, **kwargs)

        return method

    return decorate


def lora_model(trainer: Any, model: Any = None) -> Any:
    """Return a Trainer's model (or a wrapped one of it) without wrappers where it is a LoRAModel, else None."""
    wrapped = trainer.model if model is None else model
    inner = trainer.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
    return inner if is_lora(inner) else None


def is_lora(model: Any) -> bool:
    """Return whether a model is a LoRAModel."""
    cls = getattr(sys.modules.get(_HOME), "LoRAModel", None)
    return cls is not None and isinstance(model, cls)


def is_metrics(compute_metrics: Any) -> bool:
    """Return whether a Trainer's compute_metrics is one of hf_lora's."""
    cls = getattr(sys.modules.get("hf_lora.training.metrics"), "Metrics", None)
    return cls is not None and isinstance(compute_metrics, cls)


def contains_lora(model: Any) -> bool:
    """Return whether a model is a LoRAModel, or has one inside, whatever is wrapped around it."""
    if _HOME not in sys.modules or not hasattr(model, "modules"):
        return False
    return any(is_lora(module) for module in model.modules())
