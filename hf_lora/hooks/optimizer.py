"""The stock Trainer's optimizer: it must hold every parameter of a LoRAModel that requires a gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .marks import MARK
from .unwrapped import lora_model

__all__ = ["checks_optimizer"]


def checks_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.create_optimizer, which also hands out an optimizer that the user gave.

    Where parameters are sharded before the optimizer sees them (FSDP, DeepSpeed) or stand behind dummies (the
    layer-wise optimizers), they cannot be told apart by identity, and nothing is checked.
    """

    @functools.wraps(original)
    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

        from ..training import check_optimizer  # not above: it imports torch, which `import hf_lora` leaves alone

        optimizer = original(self, *args, **kwargs)
        model = lora_model(self)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if model is not None and not sharded and not isinstance(optimizer, LayerWiseDummyOptimizer):
            check_optimizer(model, self.optimizer)
        return optimizer

    setattr(create_optimizer, MARK, original)
    return create_optimizer
