"""The LoRAModel that a Trainer trains, whatever is wrapped around it."""

from __future__ import annotations

from typing import Any

__all__ = ["lora_model"]


def lora_model(trainer: Any, model: Any = None) -> Any:
    """Return a Trainer's model (or a wrapped one of it) without wrappers where it is a LoRAModel, else None."""
    from ..model import LoRAModel  # not above: it imports torch, which `import hf_lora` leaves alone

    wrapped = trainer.model if model is None else model
    inner = trainer.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
    return inner if isinstance(inner, LoRAModel) else None
