"""TRL's SFTTrainer and DPOTrainer with a LoRAModel: treated as they treat PEFT's models, or refused.

DPO compares with the model before its training: here that is the base, without a second copy of it
(`training/reference.py`). TRL reads the output head's weight instead of calling it, and knows dropout only as a module.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from .trained_model import is_lora

__all__ = ["check_head", "disable_dropout", "refers_to_base"]


def refers_to_base(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap DPOTrainer.__init__ for a LoRAModel: without a ref_model, the reference is its own base."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        if is_lora(given.arguments.get("model")) and given.arguments.get("ref_model") is None:
            given.arguments["ref_model"] = _reference(given.arguments["model"], given.arguments.get("args"))
        original(*given.args, **given.kwargs)

    return init


def check_head(cls: type, model: Any) -> None:
    """Raise TargetError where a Trainer's class reads the output head's weight, so that an adapter on it is idle."""
    if not is_lora(model) or not {"SFTTrainer", "DPOTrainer"} & {each.__name__ for each in cls.__mro__}:
        return
    from ..errors import TargetError
    from ..layers.layer import LoRALayer

    if isinstance(model.get_output_embeddings(), LoRALayer):
        raise TargetError(
            "TRL reads the weight of the output head instead of calling it, so an adapter on the head (or on token "
            "embeddings that are tied to it) would not train. Leave it out of target_modules, modules_to_save and "
            "trainable_token_indices, or use Transformers' Trainer."
        )


def disable_dropout(model: Any, args: Any) -> None:
    """Do for adapters what `disable_dropout=True` of TRL's arguments does for modules."""
    from ..variants.adapter import Adapter

    for module in model.modules() if getattr(args, "disable_dropout", False) else ():
        if isinstance(module, Adapter):
            module.drop_nothing()


def _reference(model: Any, args: Any) -> Any:
    """Return DPO's reference, None where none is needed; raises AdapterStateError, ModelError."""
    from ..errors import ModelError
    from ..training.reference import Reference

    if getattr(args, "precompute_ref_log_probs", False):
        return None  # computed before training, with the model as it is: the very reference
    shards = os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if shards or getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
        raise ModelError(
            "under FSDP and DeepSpeed the reference has to be a model of its own: pass ref_model=, the base without "
            "adapters."
        )
    if getattr(args, "sync_ref_model", False):
        raise ModelError("sync_ref_model=True moves the reference, which is the base here: pass a ref_model=.")
    return Reference(model)
