"""Models of Transformers and PEFT's tuners: adapters where a model is loaded by name, and what else a model is told."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..model.hooks import IS_PLAIN, plainly
from .trained_model import is_a

__all__ = ["is_adapter", "load_adapter", "notes_new_rows", "refuses_lora_models", "takes_adapters"]

_NO_PLACE = {
    "adapter_kwargs": "revision, subfolder and token are the adapter's, and are given by themselves",
    "output_loading_info": "every tensor of an adapter finds its place, or loading fails",
}
_NOT_FOR_ADAPTERS = ("gguf_file", "state_dict")  # the weights come from elsewhere, so the name is no adapter's


def takes_adapters(original: classmethod) -> classmethod:
    """Wrap from_pretrained of a model's class, or of an auto class.

    With `lora_config=` the result is a LoRAModel of that class. Without it, and without PEFT, the name may be that of
    an adapter.
    """

    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        name, lora_config = pretrained_model_name_or_path, kwargs.pop("lora_config", None)
        if lora_config is not None:
            from ..model.lora_model import LoRAModel

            return LoRAModel.from_pretrained(name, lora_config, *args, auto_class=cls, **kwargs)
        if not is_adapter(name, kwargs):
            with plainly():  # an auto class hands on to the model's class, which need not look again
                return original.__func__(cls, name, *args, **kwargs)
        if args:
            raise ModelError(f"{os.fspath(name)} is an adapter; further positional arguments have no meaning with it.")
        return load_adapter(cls, name, kwargs)

    return classmethod(from_pretrained)


def is_adapter(name: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a name stands for an adapter that we are to load: never where PEFT is installed.

    kwargs: those of from_pretrained. Where the Hub does not answer the result is False, and Transformers' own attempt
    says why. (Transformers' find_adapter_config_file asks an unreachable Hub for half a minute about a model that lies
    in the cache.)
    """
    if IS_PLAIN.get() or not isinstance(name, (str, os.PathLike)) or any(kwargs.get(k) for k in _NOT_FOR_ADAPTERS):
        return False
    if importlib.import_module("transformers.utils").is_peft_available():
        return False
    from ..files.sources import Source  # not above: they import huggingface_hub
    from ..files.transaction import find_config

    try:
        return find_config(Source.of(os.fspath(name), kwargs)) is not None
    except (OSError, ValueError):  # no such repo, or no name that one can have
        return False


def load_adapter(cls: type | None, name: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the LoRAModel of an adapter, its base loaded by `cls`, or by what the adapter says where that is None.

    `revision` and `subfolder` are the adapter's. A directory that holds a whole model with the adapter beside it is its
    own base, as with PEFT. Raises LoRAError.
    """
    from ..model.lora_model import LoRAModel

    for key, why in _NO_PLACE.items():
        if kwargs.get(key):
            raise ModelError(f"{os.fspath(name)} is an adapter, so {key}={kwargs[key]!r} has no place: {why}.")
    base = name if Path(name, "config.json").is_file() else None
    return LoRAModel.from_pretrained(os.fspath(name), auto_class=cls, base_model=base, **kwargs)


def notes_new_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap PreTrainedModel.resize_token_embeddings: an adapter added later trains and saves the rows that are new."""

    @functools.wraps(original)
    def resize_token_embeddings(self: Any, *args: Any, **kwargs: Any) -> Any:
        from ..model.vocabulary import new_rows_noted

        with new_rows_noted(self):
            return original(self, *args, **kwargs)

    return resize_token_embeddings


def refuses_lora_models(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap PEFT's BaseTuner.inject_adapter: a model with our adapters is refused while it is still whole.

    PEFT would put its layers around ours, freeze what is inside them, and fail or save half of it.
    """

    @functools.wraps(original)
    def inject_adapter(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if any(is_a(module, "hf_lora.layers.layer", "LoRALayer") for module in model.modules()):
            raise ModelError(
                f"this {type(model).__name__} carries hf_lora's adapters, so PEFT cannot adapt it as well. Add another "
                "adapter with model.add_adapter(config, 'name') and leave get_peft_model, or TRL's peft_config=, out; "
                "or give PEFT the plain model: model.unload() or merge_and_unload()."
            )
        return original(self, model, *args, **kwargs)

    return inject_adapter
