"""The start of a Trainer's training: a LoRAModel that cannot train is refused before anything moves."""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import AdapterStateError
from ..training.ready import check_ready, widen_masters

__all__ = ["check", "widen"]


def check(trainer: Any, model: Any) -> None:
    """Raise AdapterStateError where a model would not train, or FSDP1 would flatten adapters and frozen weights."""
    check_ready(model)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None) if trainer.is_fsdp_enabled else None
    if getattr(plugin, "fsdp_version", 1) == 1 and getattr(plugin, "use_orig_params", None) is False:
        raise AdapterStateError(
            "FSDP1 with use_orig_params=False flattens the weights of a layer into one, which must train as a whole or "
            "not at all; adapters train beside frozen weights. Use FSDP2 (fsdp_config={'version': 2}, or fsdp_version: "
            "2 for accelerate), or use_orig_params=True."
        )
    widen(trainer, model)


def widen(trainer: Any, model: Any) -> None:
    """Make half-precision masters float32 with a warning, except where an engine keeps its own or wants one dtype."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and (count := widen_masters(model)):
        warnings.warn(
            f"{count} adapter weights that train were in half precision, where small steps are lost and fp16 "
            "training fails; they are float32 now, as hf_lora makes them. To have only the base in half "
            "precision, load it with dtype= instead of casting the model with half(), bfloat16() or to().",
            stacklevel=3,
        )
