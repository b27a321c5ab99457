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

from .trained_model import is_lora, lora_model
from .trainer import create_model_card

__all__ = ["refers_to_base", "trains_adapters"]


def trains_adapters(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap SFTTrainer.__init__ for a LoRAModel."""
    return _checking(original, lambda model, given: None)


def refers_to_base(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap DPOTrainer.__init__ for a LoRAModel: without a ref_model, the reference is its own base."""
    return _checking(original, _add_reference)


def _checking(original: Callable[..., None], prepare: Callable[[Any, dict[str, Any]], None]) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        model = given.get("model")
        if not is_lora(model):
            original(self, *args, **kwargs)
            return
        _check(model, given)
        prepare(model, given)
        bound = signature.bind_partial()
        bound.arguments.update(given)
        original(*bound.args, **bound.kwargs)
        self.create_model_card = functools.partial(_write_card, self)
        if getattr(self.args, "disable_dropout", False):
            _disable_dropout(model)

    return init


def _check(model: Any, given: dict[str, Any]) -> None:
    """Raise ModelError or TargetError for what TRL would train without a word, but not as it is meant."""
    from ..errors import ModelError, TargetError
    from ..layers.layer import LoRALayer

    if given.get("peft_config") is not None:
        raise ModelError(
            "the model has adapters of hf_lora already, so peft_config has no place: leave it out, or pass the "
            "model without adapters (model.unload())."
        )
    if isinstance(model.get_output_embeddings(), LoRALayer):
        raise TargetError(
            "TRL reads the weight of the output head instead of calling it, so an adapter on the head (or on token "
            "embeddings that are tied to it) would not train. Leave it out of target_modules, modules_to_save and "
            "trainable_token_indices, or use Transformers' Trainer."
        )


def _add_reference(model: Any, given: dict[str, Any]) -> None:
    """Give DPO its ref_model where there is none; raises AdapterStateError, ModelError."""
    from ..errors import ModelError
    from ..training.reference import Reference

    args = given.get("args")
    if given.get("ref_model") is not None or getattr(args, "precompute_ref_log_probs", False):
        return  # computed before training, with the model as it is: the very reference
    shards = os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if shards or getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
        raise ModelError(
            "under FSDP and DeepSpeed the reference has to be a model of its own: pass ref_model=, the base without "
            "adapters."
        )
    if getattr(args, "sync_ref_model", False):
        raise ModelError("sync_ref_model=True moves the reference, which is the base here: pass a ref_model=.")
    given["ref_model"] = Reference(model)


def _write_card(
    trainer: Any, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
) -> None:
    """Write the card as the stock Trainer does here: TRL's own names neither the adapter's base nor its library."""
    from transformers import Trainer

    given = [tags] if isinstance(tags, str) else tags or []
    facts: dict[str, Any] = {
        "model_name": model_name,
        "dataset": dataset_name,
        "tags": list(dict.fromkeys([*given, *trainer._tag_names])),
    }
    target = lora_model(trainer)
    if target is None:
        Trainer.create_model_card(trainer, **facts)
    else:
        create_model_card(target, trainer, **facts)


def _disable_dropout(model: Any) -> None:
    from ..variants.adapter import Adapter

    for module in model.modules():
        if isinstance(module, Adapter):
            module.drop_nothing()
