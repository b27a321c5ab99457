"""Training: what an optimizer must hold of a model with adapters."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.optim import Optimizer

from ..errors import AdapterStateError, some
from .groups import check_rates
from .ready import check_trains

__all__ = ["check_optimizer", "held_by"]


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise AdapterStateError where a parameter that requires a gradient would not train, or would train twice a step.

    It would be saved as it was, without a word: an adapter that was added, or made active, after the optimizer was
    built, or one that is disabled or merged. Raises ConfigError where the optimizer's groups do not follow
    `model.set_learning_rates`. The stock Trainer is checked by itself; call this in a training loop of your own.

    >>> import torch
    >>> from hf_lora import LoRAConfig, add_lora, parameter_groups
    >>> model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
    >>> check_optimizer(model, torch.optim.AdamW(parameter_groups(model, 0.001)))
    """
    check_trains(model)
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if missing := [name for name, p in trained if id(p) not in held]:
        raise AdapterStateError(
            f"{len(missing)} of {len(trained)} parameters that require gradients are missing from the optimizer and "
            f"would not train: {some(missing)}. Build the optimizer after adding, loading or choosing adapters; "
            "trainer.optimizer = None lets a Trainer that has trained build a new one."
        )
    if twice := [name for name, p in trained if held[id(p)] > 1]:
        raise AdapterStateError(
            f"{len(twice)} of {len(trained)} parameters are in the optimizer more than once and would be moved twice a "
            f"step: {some(twice)}. Give each to one group."
        )
    check_rates(model, optimizer)


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ids (Python's) of the parameters that an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
