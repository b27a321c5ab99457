"""Training: what an optimizer must hold of a model with adapters."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from .errors import AdapterStateError

__all__ = ["check_optimizer", "held_by"]


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise AdapterStateError where a parameter that requires a gradient is in no group of the optimizer.

    It would be saved as it was, without a word: an adapter that was added, or made active, after the optimizer was
    built. The stock Trainer is checked by itself; call this in a training loop of your own.

    >>> import torch
    >>> from hf_lora import LoRAConfig, add_lora
    >>> model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
    >>> check_optimizer(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    """
    held = held_by(optimizer)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise AdapterStateError(
            "nothing would train: no parameter of the model requires a gradient. Load the adapter with "
            "is_trainable=True, or choose one that trains with set_adapter()."
        )
    missing = [name for name, p in trained if id(p) not in held]
    if missing:
        raise AdapterStateError(
            f"{len(missing)} of {len(trained)} parameters that require gradients are missing from the optimizer and "
            f"would not train: {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}. Build the optimizer "
            "after adding, loading or choosing adapters."
        )


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ids (Python's) of the parameters that an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
