"""A LoRAModel as it was before its training, as a model of its own beside it that holds no weight: for DPO.

The reference of a policy with a fresh adapter is its base: the same model with its adapters disabled. Where the policy
starts from an adapter that was trained before, that adapter is the reference: a frozen copy, loaded as "ref".
Rafailov et al. 2023, arXiv:2305.18290.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError, TargetError
from ..layers.layer import own_tensor
from ..variants.adapter import Adapter

__all__ = ["REFERENCE", "Reference"]

REFERENCE = "ref"  # TRL's name for it


class Reference(nn.Module):
    """The model that a LoRAModel is compared with: calling it calls that, under "ref" or without adapters.

    It has the model's config and no parameters; use it under `torch.no_grad()`. Dropout acts in it where the model is
    in training mode, as in TRL with PEFT's models.
    """

    def __init__(self, model: Any) -> None:
        """Take a LoRAModel that has not been trained on yet.

        Raises AdapterStateError where it has no adapter "ref", and its active ones change the base already.
        """
        super().__init__()
        self._of = (model,)  # a tuple, so that it is no part of this one
        self.config = model.config
        self._has_own = REFERENCE in model.peft_config
        if not self._has_own and (moved := [name for name in model.active_adapters() if _changes(model, name)]):
            raise AdapterStateError(
                f"{', '.join(map(repr, moved))} changed the base before this training, so the base is not what it is "
                f"to be compared with. Load the same adapter a second time, model.load_adapter(path, {REFERENCE!r}); "
                f"model.set_adapter({moved[0]!r}), or pass ref_model=."
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, under the reference."""
        model = self._of[0]
        with model.adapters_active(REFERENCE) if self._has_own else model.adapters_disabled():
            return model(*args, **kwargs)


def _changes(model: Any, name: str) -> bool:
    """Return whether an adapter makes other weights of its base's, by more than rounding."""
    return any(
        _moves(adapter, own_tensor(layer, adapter.parameter))
        for layer in model._lora.layers.values()
        for adapter in layer.carried(name).values()
    )


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
