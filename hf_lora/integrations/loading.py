"""`from_pretrained(lora_config=...)`, and an adapter's name where a model's is expected."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..model.hooks import is_plain, plainly

__all__ = ["finds_adapters", "is_adapter", "load_adapter", "takes_lora_config"]

_NOT_FOR_ADAPTERS = ("gguf_file", "state_dict")  # the weights come from elsewhere, so the name is no adapter's


def takes_lora_config(original: classmethod) -> classmethod:
    """Wrap a class's from_pretrained: with `lora_config=` the result is a LoRAModel of that class.

    The auto classes hand what they do not know themselves on to the model's class, so they take it as well. Without
    it, and without PEFT, the name may be that of an adapter.
    """

    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        lora_config = kwargs.pop("lora_config", None)
        if lora_config is not None:
            from ..model.lora_model import LoRAModel

            return LoRAModel.from_pretrained(
                pretrained_model_name_or_path, lora_config, *args, auto_class=cls, **kwargs
            )
        return _found(original, cls, pretrained_model_name_or_path, args, kwargs)

    return classmethod(from_pretrained)


def finds_adapters(original: classmethod) -> classmethod:
    """Wrap an auto class's from_pretrained: without PEFT, the name of an adapter gives a LoRAModel of its base."""

    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        return _found(original, cls, pretrained_model_name_or_path, args, kwargs)

    return classmethod(from_pretrained)


def _found(original: classmethod, cls: type, name: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _theirs(name, kwargs):
        return original.__func__(cls, name, *args, **kwargs)
    if not is_adapter(name, kwargs):
        with plainly():  # an auto class hands on to the model's class, which need not look again
            return original.__func__(cls, name, *args, **kwargs)
    if args:
        raise ModelError(f"{os.fspath(name)} is an adapter; further positional arguments have no meaning with it.")
    return load_adapter(cls, os.fspath(name), kwargs)


def _theirs(name: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is none of our business: PEFT is installed, or no adapter can be meant."""
    if is_plain() or not isinstance(name, (str, os.PathLike)):
        return True
    if any(kwargs.get(key) is not None for key in _NOT_FOR_ADAPTERS):
        return True
    return bool(importlib.import_module("transformers.utils").is_peft_available())


def is_adapter(name: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a name stands for an adapter that we are to load: never where PEFT is installed.

    kwargs: those of from_pretrained. Where the Hub does not answer the result is False, and Transformers' own attempt
    says why. (Transformers' find_adapter_config_file asks an unreachable Hub for half a minute about a model that lies
    in the cache.)
    """
    if _theirs(name, kwargs):
        return False
    from ..files.names import CONFIG_NAME  # not above: they import huggingface_hub
    from ..files.sources import Source

    try:
        return (
            Source.of(os.fspath(name), {**kwargs, **(kwargs.get("adapter_kwargs") or {})}).find(CONFIG_NAME) is not None
        )
    except (OSError, ValueError):  # no such repo, or no name that one can have
        return False


def load_adapter(cls: type | None, name: str, kwargs: Mapping[str, Any]) -> Any:
    """Return the LoRAModel of an adapter, its base loaded by `cls`, or by what the adapter says where that is None.

    `revision` and `subfolder` are the adapter's, and `adapter_kwargs` are for it alone. A directory that holds a whole
    model with the adapter beside it is its own base, as with PEFT. Raises LoRAError.
    """
    from ..model.lora_model import LoRAModel

    kwargs = dict(kwargs)
    own = kwargs.pop("adapter_kwargs", None) or {}
    if kwargs.pop("output_loading_info", False):
        raise _no_place(name, "output_loading_info=True", "every tensor of it finds its place, or loading fails")
    if kwargs.pop("lora_config", None) is not None:
        raise _no_place(name, "lora_config", "its own adapter_config.json says what it is")
    for key in ("revision", "subfolder"):
        if own.get(key) is not None and kwargs.get(key) not in (None, "", own[key]):
            raise _no_place(name, f"{key}={kwargs[key]!r} beside adapter_kwargs", "both would be the adapter's")
    base = name if Path(name, "config.json").is_file() else None
    return LoRAModel.from_pretrained(name, auto_class=cls, base_model=base, **{**kwargs, **own})


def _no_place(name: str, what: str, why: str) -> ModelError:
    return ModelError(f"{name} is an adapter, so {what} has no place: {why}.")
