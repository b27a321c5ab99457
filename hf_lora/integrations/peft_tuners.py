"""PEFT's tuners around a LoRAModel: refused, while the model is still whole."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from ..errors import ModelError

__all__ = ["refuses_lora_models"]


def refuses_lora_models(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap PEFT's BaseTuner.inject_adapter: a model with our adapters is refused while it is still whole.

    PEFT would put its layers around ours, freeze what is inside them, and fail or save half of it.
    """

    @functools.wraps(original)
    def inject_adapter(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        layer = getattr(sys.modules.get("hf_lora.layers.layer"), "LoRALayer", None)  # None: nobody made one
        if layer is not None and any(isinstance(module, layer) for module in model.modules()):
            raise ModelError(
                f"this {type(model).__name__} carries hf_lora's adapters, so PEFT cannot adapt it as well. Add another "
                "adapter with model.add_adapter(config, 'name') and leave get_peft_model, or TRL's peft_config=, out; "
                "or give PEFT the plain model: model.unload() or merge_and_unload()."
            )
        return original(self, model, *args, **kwargs)

    return inject_adapter
