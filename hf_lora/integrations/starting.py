"""The start of a Trainer's training: a LoRAModel that cannot train is refused before anything moves."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from ..errors import AdapterStateError
from . import missing
from .trained_model import for_lora

__all__ = ["checks_start", "tells_what_is_missing", "widen"]


def checks_start(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.set_initial_training_values, among the first that a training asks once its model is made.

    Raises AdapterStateError. Half-precision adapters that are to train become float32, except where an engine
    (DeepSpeed, FSDP) keeps masters of its own or wants one dtype.
    """

    @for_lora(original)
    def set_initial_training_values(target: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        from ..training.ready import check_ready  # not above: it imports torch

        check_ready(target)
        if self.is_fsdp_enabled:
            _check_fsdp(getattr(self.accelerator.state, "fsdp_plugin", None))
        widen(self, target)
        return original(self, *args, **kwargs)

    return set_initial_training_values


def tells_what_is_missing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.train: what this training needs of Transformers, and is not there, is told. See `missing`."""

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        missing.tell_of_trainer(self, resumes=bool(resume_from_checkpoint))
        return original(self, resume_from_checkpoint, *args, **kwargs)

    return train


def widen(trainer: Any, model: Any) -> None:
    """Make half-precision masters float32 with a warning, except where an engine sees to their dtype."""
    from ..training.ready import widen_masters

    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and (count := widen_masters(model)):
        warnings.warn(
            f"{count} adapter weights that train were in half precision, where small steps are lost and fp16 "
            "training fails; they are float32 now, as hf_lora makes them. To have only the base in half "
            "precision, load it with dtype= instead of casting the model with half(), bfloat16() or to().",
            stacklevel=3,
        )


def _check_fsdp(plugin: Any) -> None:
    """Raise AdapterStateError where FSDP1 would flatten adapters and frozen weights into one parameter."""
    if getattr(plugin, "fsdp_version", 1) == 1 and getattr(plugin, "use_orig_params", None) is False:
        raise AdapterStateError(
            "FSDP1 with use_orig_params=False flattens the weights of a layer into one, which must train as a whole or "
            "not at all; adapters train beside frozen weights. Use FSDP2 (fsdp_config={'version': 2}, or fsdp_version: "
            "2 for accelerate), or use_orig_params=True."
        )
