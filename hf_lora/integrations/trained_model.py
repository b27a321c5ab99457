"""The LoRAModel that a Trainer trains, whatever is wrapped around it; nothing is imported to find that out."""

import sys
from collections.abc import Iterator
from typing import Any

from ..layers.specialising import is_a

_HOME = "hf_lora.model.lora_model"  # where nobody has imported it (it imports torch), there is no LoRAModel


def lora_model(trainer: Any) -> Any:
    """Return a Trainer's model without wrappers where it is a LoRAModel, else None."""
    if trainer.model is None:  # none yet in a search
        return None
    inner = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return inner if is_lora(inner) else None


def is_lora(model: Any) -> bool:
    """Return whether a model is a LoRAModel."""
    return is_a(model, _HOME, "LoRAModel")


def contains_lora(model: Any) -> bool:
    """Return whether a model is a LoRAModel, or has one inside, whatever is wrapped around it."""
    return _HOME in sys.modules and hasattr(model, "modules") and any(is_lora(module) for module in model.modules())


def inner_models(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (full name, LoRAModel) of every LoRAModel inside a model that is none itself."""
    if contains_lora(model) and not is_lora(model):
        yield from ((name, module) for name, module in model.named_modules() if is_lora(module))


def measures(trainer: Any) -> bool:
    """Return whether a Trainer's compute_metrics is one of hf_lora's."""
    return is_a(getattr(trainer, "compute_metrics", None), "hf_lora.training.metrics", "Metrics")
