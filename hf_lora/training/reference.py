"""A LoRAModel as it was before its training, as a model of its own beside it that holds no weight: for DPO, GRPO, KTO.

The reference of a policy with a fresh adapter is its base: the same model with its adapters disabled. Where the policy
starts from an adapter that was trained before, that adapter is the reference: a frozen copy of it, "ref".
Rafailov et al. 2023, arXiv:2305.18290.
"""

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..layers.routes import OFF, Route
from ..model.combining import copy_frozen
from ..variants.adapter import Adapter, own_tensor

REFERENCE = "ref"  # TRL's name for it


class Reference(nn.Module):
    """The model that a LoRAModel is compared with: calling it calls that, under what it was before its training.

    It has the model's config and no parameters; use it under `torch.no_grad()`. Dropout acts in it where the model is
    in training mode, as in TRL with PEFT's models. What else is asked of it, the model answers.
    """

    def __init__(self, model: Any) -> None:
        """Take a LoRAModel, or a model with some inside, that has not been trained on yet.

        An adapter "ref" is the reference where it has one. Otherwise what is active and frozen stays as it is, what
        trains and has changed the base already gets a frozen copy, "ref" ("ref_<name>" where there are several), and
        what is fresh is left out.
        """
        super().__init__()
        self._of = (model,)  # a tuple, so that it is no part of this one
        inside = [module for module in model.modules() if hasattr(module, "adapters_disabled")]
        self._routes = tuple((module, _route(module)) for module in inside)
        self.config = model.config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, under the reference."""
        with self._routed():
            return self._of[0](*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model generates, under the reference."""
        with self._routed():
            return self._of[0].generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return what the model has, where this has it not."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_of" not in self.__dict__:
                raise
        return getattr(self._of[0], name)

    def _routed(self) -> ExitStack:
        stack = ExitStack()
        for model, route in self._routes:
            stack.enter_context(model.adapters_active(route) if route else model.adapters_disabled())
        return stack


def _route(model: Any) -> Route:
    """Return the adapters that make a LoRAModel what it is before its training; they are made where there are none."""
    state = model._lora
    if REFERENCE in state.records:
        return (REFERENCE,)
    active = OFF if state.is_off else state.selected
    trained = [name for name in active if state.requires_gradients(name) and _changes(model, name)]
    copies = {name: REFERENCE if len(trained) == 1 else f"{REFERENCE}_{name}" for name in trained}
    for name, copy in copies.items():
        if copy not in state.records:
            copy_frozen(model, state, name, copy)
    return tuple(copies.get(name, name) for name in active if name in copies or not state.requires_gradients(name))


def _changes(model: Any, name: str) -> bool:
    """Return whether an adapter makes other weights of its base's, by more than rounding."""
    return any(_moves(a, own_tensor(layer, a.parameter)) for _, layer, _, a in model._lora.carried(name))


def _moves(adapter: Adapter, own: Tensor | None) -> bool:
    if adapter.is_idle():
        return False
    if math.isfinite(adapter.largest_change()) or own is None or adapter.changes_bias:
        return True
    try:
        with torch.no_grad():
            made = adapter.run(adapter.effective, own).float()
    except TargetError:  # quantised: what is added to it is not zero
        return True
    return not torch.allclose(made, own.float(), rtol=1e-2, atol=1e-5)
