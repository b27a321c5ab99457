"""What is refused before anything moves: training a LoRAModel that cannot train, and PEFT's layers around ours."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from ..errors import AdapterStateError, ModelError
from .marks import MARK
from .unwrapped import for_lora

__all__ = ["checks_start", "refuses_lora_models", "widen"]


def checks_start(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer._inner_training_loop, the first thing after a model_init has made its model.

    Raises AdapterStateError. Half-precision adapters that are to train become float32, except where an engine
    (DeepSpeed, FSDP) keeps masters of its own or wants one dtype.
    """

    @for_lora(original)
    def inner_training_loop(target: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        from ..training.ready import check_ready  # not above: it imports torch

        check_ready(target)
        if self.is_fsdp_enabled:
            _check_fsdp(getattr(self.accelerator.state, "fsdp_plugin", None))
        widen(self, target)
        return original(self, *args, **kwargs)

    return inner_training_loop


def widen(trainer: Any, model: Any) -> None:
    """Make half-precision masters float32 with a warning, except where an engine sees to their dtype."""
    from ..training.precision import widen_masters

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


def refuses_lora_models(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap PEFT's BaseTuner.inject_adapter: a model with our adapters is refused while it is still whole.

    PEFT would put its layers around ours, freeze what is inside them, and fail or save half of it.
    """

    @functools.wraps(original)
    def inject_adapter(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        from ..layers.layer import LoRALayer

        if any(isinstance(module, LoRALayer) for module in model.modules()):
            raise ModelError(
                f"this {type(model).__name__} carries hf_lora's adapters, so PEFT cannot adapt it as well. Add another "
                "adapter with model.add_adapter(config, 'name') and leave get_peft_model, or TRL's peft_config=, out; "
                "or give PEFT the plain model: model.unload() or merge_and_unload()."
            )
        return original(self, model, *args, **kwargs)

    setattr(inject_adapter, MARK, original)
    return inject_adapter
