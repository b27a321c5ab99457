"""Models of Transformers and PEFT's tuners: adapters where a model is loaded by name, and what else a model is told."""

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, BaseMismatchError, ModelError
from ..layers.specialising import is_a
from ..model.hooks import OWNER, Owner, around, decided, leaves_adapters_to_peft, note_new

_NO_PLACE = {
    "adapter_kwargs": "revision, subfolder and token are the adapter's, and are given by themselves",
    "output_loading_info": "every tensor of an adapter finds its place, or loading fails",
}
_NOT_FOR_ADAPTERS = ("gguf_file", "state_dict")  # the weights come from elsewhere, so the name is no adapter's


def takes_adapters(original: classmethod) -> classmethod:
    """Wrap from_pretrained of a model's class, or of an auto class.

    With `lora_config=` the result is a LoRAModel of that class. Without it the name may be that of an adapter.
    """

    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        name, lora_config = pretrained_model_name_or_path, kwargs.pop("lora_config", None)
        if lora_config is not None:
            from ..model.lora_model import LoRAModel

            return LoRAModel.from_pretrained(name, lora_config, *args, auto_class=cls, **kwargs)
        owner = owner_of(name, kwargs)
        if owner != "hf_lora":
            with decided(owner):  # an auto class hands on to the model's class, which need not look again
                return _loaded(cls, original.__func__, name, *args, **kwargs)
        if args:
            raise ModelError(f"{os.fspath(name)} is an adapter; further positional arguments have no meaning with it.")
        return load_adapter(cls, name, kwargs)

    return classmethod(from_pretrained)


def _loaded(cls: type, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what from_pretrained gives; a model's parameters that its checkpoint did not fill are noted on it."""
    if not hasattr(cls, "tie_weights"):  # an auto class
        return load(cls, *args, **kwargs)
    asked = kwargs.pop("output_loading_info", False)
    result = load(cls, *args, output_loading_info=True, **kwargs)
    match result:
        case (model, dict() as info):
            note_new(model, info)
            _warn_of_adapters(info)
            return result if asked else model
    return result


def _warn_of_adapters(info: Mapping[str, Any]) -> None:
    """Warn where a checkpoint holds adapters of a part of the model, as a Trainer's does: nothing reads them there."""
    from ..variants.table import ADAPTERS

    names = {stored.attribute for row in ADAPTERS.values() for stored in row.tensors}
    keys = [k for k in info.get("unexpected_keys", ()) if ".adapters." in k and k.rpartition(".")[2] in names]
    if keys:
        warnings.warn(
            f"the checkpoint holds adapters inside of the model ({sorted(keys)[0]}), which are not read: this is the "
            "base alone. Add the adapters to the part, and then model.load_state_dict(...); or save it anew: its "
            "save_pretrained merges them.",
            stacklevel=4,
        )


def owner_of(name: Any, kwargs: Mapping[str, Any]) -> Owner:
    """Return who is to load the adapter that a name stands for, nobody where it is none.

    kwargs: those of from_pretrained. Adapters that hf_lora does not build are PEFT's where it is installed. Where the
    Hub does not answer it is nobody, and Transformers' own attempt says why. (Transformers'
    find_adapter_config_file asks an unreachable Hub for half a minute about a model that lies in the cache.)
    """
    if (owner := OWNER.get()) is not None:
        return owner
    if leaves_adapters_to_peft() or not isinstance(name, (str, os.PathLike)):
        return "peft"
    if any(kwargs.get(key) for key in _NOT_FOR_ADAPTERS):
        return "peft"
    from ..files.sources import Source  # not above: they import huggingface_hub
    from ..files.transaction import find_config, lacks_config

    try:
        source = Source.of(name, kwargs)
        config = find_config(source)
    except (OSError, ValueError):  # no such repo, or no name that one can have
        return "nobody"
    if config is None:  # where something of an adapter is missing, loading it says what
        return "hf_lora" if kwargs.get("config") is None and lacks_config(source) else "nobody"
    has_peft = importlib.import_module("transformers.utils").is_peft_available()
    return "peft" if has_peft and not _is_built(config) else "hf_lora"


def _is_built(config: Path) -> bool:
    """Return whether hf_lora reads such an adapter, or should say why not; raises AdapterFileError, HubError."""
    from ..config.keys import UNSUPPORTED
    from ..files.strict_json import read_json
    from ..variants.table import formula_named

    values = read_json(config)
    asked = [key for key, default in UNSUPPORTED.items() if values.get(key) not in (None, default)]
    return formula_named(values.get("peft_type", "LORA")) is not None and not asked


@around
def finds_none(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Wrap Transformers' find_adapter_config_file: it finds nothing where a model is wanted without any adapter."""
    return None if OWNER.get() == "nobody" else original(*args, **kwargs)


def load_adapter(cls: type | None, name: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the LoRAModel of an adapter, its base loaded by `cls`, or by what the adapter says where that is None.

    `revision` and `subfolder` are the adapter's. A directory that holds a whole model with the adapter beside it is its
    own base, as with PEFT, unless the adapter says that it was trained on another. Raises LoRAError.
    """
    from ..model.lora_model import LoRAModel

    for key, why in _NO_PLACE.items():
        if kwargs.get(key):
            raise ModelError(f"{os.fspath(name)} is an adapter, so {key}={kwargs[key]!r} has no place: {why}.")
    if not Path(name, "config.json").is_file():
        return LoRAModel.from_pretrained(os.fspath(name), auto_class=cls, **kwargs)
    try:
        model = LoRAModel.from_pretrained(os.fspath(name), auto_class=cls, base_model=name, **kwargs)
    except BaseMismatchError as error:
        raise BaseMismatchError(
            f"{os.fspath(name)} holds an adapter and a whole model that is not its base. If that is the merged one, "
            "the adapter is in it already: remove adapter_config.json from the folder, or save the two into folders of "
            f"their own. LoRAModel.from_pretrained({os.fspath(name)!r}) loads the adapter on the base it names. {error}"
        ) from error
    _warn_of_unknown_base(model, os.fspath(name))
    return model


def _warn_of_unknown_base(model: Any, name: str) -> None:
    """Warn where nothing tells whether the whole model beside an adapter is its base, or the two merged."""
    for adapter, config in model.peft_config.items():
        base, origin = config.base_model_name_or_path, model._lora.records[adapter].origin
        if not (origin.note or origin.seen) and base and base != name:
            warnings.warn(
                f"{name} holds an adapter and a whole model, and the adapter is put on that model, as Transformers "
                f"does it. If the model is {base} with the adapter merged in, it is now there twice: remove "
                "adapter_config.json from the folder, or save the two into folders of their own.",
                stacklevel=4,
            )


@around
def notes_new_rows(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap PreTrainedModel.resize_token_embeddings: an adapter added later trains and saves the rows that are new."""
    from ..model.vocabulary import new_rows_noted

    with new_rows_noted(self):
        return original(self, *args, **kwargs)


@around
def refuses_our_configs(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap Transformers' add_adapter of a plain model, which takes PEFT's configs, and not before it needs PEFT."""
    if any(is_a(each, "hf_lora.config.lora_config", "LoRAConfig") for each in (*args, *kwargs.values())):
        raise ArgumentError(
            f"add_adapter of a plain {type(self).__name__} is Transformers', for PEFT's configs. "
            "LoRAModel.from_model(model, config) adds the adapter of a LoRAConfig, in place; so does add_lora."
        )
    return original(self, *args, **kwargs)


@around
def refuses_lora_models(original: Callable[..., Any], self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap PEFT's BaseTuner.inject_adapter: a model with our adapters is refused while it is still whole.

    PEFT would put its layers around ours, freeze what is inside them, and fail or save half of it.
    """
    if any(is_a(module, "hf_lora.layers.layer", "LoRALayer") for module in model.modules()):
        raise ModelError(
            f"this {type(model).__name__} carries hf_lora's adapters, so PEFT cannot adapt it as well. Add another "
            "adapter with model.add_adapter(config, 'name') and leave get_peft_model, or TRL's peft_config=, out; "
            "or give PEFT the plain model: model.unload() or merge_and_unload()."
        )
    return original(self, model, *args, **kwargs)
