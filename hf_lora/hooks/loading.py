"""`from_pretrained(lora_config=...)`: any class of Transformers makes a LoRAModel of itself."""

from __future__ import annotations

import functools
from typing import Any

from .marks import MARK

__all__ = ["takes_lora_config"]


def takes_lora_config(original: classmethod) -> classmethod:
    """Wrap a from_pretrained: with `lora_config=` the result is a LoRAModel of that class.

    The auto classes hand what they do not know themselves on to the model's class, so they take it as well.
    """

    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        lora_config = kwargs.pop("lora_config", None)
        if lora_config is None:
            return original.__func__(cls, pretrained_model_name_or_path, *args, **kwargs)
        from ..model import LoRAModel  # not above: it imports torch, which `import hf_lora` leaves alone

        return LoRAModel.from_pretrained(pretrained_model_name_or_path, lora_config, *args, auto_class=cls, **kwargs)

    setattr(from_pretrained, MARK, original)
    return classmethod(from_pretrained)
