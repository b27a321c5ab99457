"""A LoRAModel inside another model: what that one's `save_pretrained` writes of it are its merged weights.

Nothing reads adapters out of a whole model's checkpoint: whoever loads it would get the base without a word.
"""

import sys
import warnings
from typing import Any

from torch import Tensor

from ..errors import full_name
from ..layers.merging import merged_values
from ..layers.state import AdapterState


def whole_that_saves() -> Any:
    """Return the Transformers model whose `save_pretrained` runs, above in this thread; None where none does.

    A Trainer's checkpoint is read again by the Trainer, so that it keeps weights and adapters apart: None there.
    """
    frame, whole = sys._getframe(1), None
    while frame is not None:
        place = frame.f_code.co_name, frame.f_globals.get("__name__")
        if place == ("save_pretrained", "transformers.modeling_utils"):
            whole = frame.f_locals.get("self")
        if place == ("_save_checkpoint", "transformers.trainer"):
            return None
        frame = frame.f_back  # type: ignore[assignment]
    return whole


def merge_into(tensors: dict[str, Tensor], prefix: str, model: Any, whole: Any) -> None:
    """Put merged weights in the place of a LoRAModel's own in a whole model's state dict, and take its adapters out.

    prefix: the LoRAModel's name in the whole, with a dot. What acts now is merged: nothing where adapters are disabled.
    The model stays as it is. Raises MergeError where a weight cannot be merged.
    """
    state: AdapterState = model._lora
    names = () if state.merged else state.route
    for module, layer in state.layers.items():
        inside = prefix + full_name(module, "adapters.")
        for key in [key for key in tensors if key.startswith(inside)]:
            del tensors[key]
        for parameter, value in (merged_values(layer, names) if names else {}).items():
            tensors[prefix + full_name(module, parameter)] = value
    if names:
        warnings.warn(
            f"{type(whole).__name__}.save_pretrained: the adapters {list(names)} of {prefix[:-1]} are merged into the "
            f"weights that are written. {prefix[:-1]}.save_pretrained(folder) saves them by themselves.",
            stacklevel=3,
        )
