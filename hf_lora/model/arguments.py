"""What a caller hands over to be adapted, a model and a config: put right, or refused before anything is touched."""

import json
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import nn

from ..config.lora_config import LoRAConfig
from ..config.tasks import TASK_TYPES, TASKS, classes_of
from ..errors import ArgumentError, ModelError
from ..layers.layer import LoRALayer
from ..layers.specialising import Specialised, is_pretrained, name_of

# The child in which a wrapper keeps what it wraps -> whose wrapper that is, and what to do instead.
_WRAPPERS = {
    "_orig_mod": ("torch.compile", "compile layers in place (layer.compile()), which keeps their names"),
    "_fsdp_wrapped_module": ("FSDP", "add the adapter first and wrap afterwards"),
    "_checkpoint_wrapped_module": ("torch's activation checkpointing", "add the adapter first and wrap afterwards"),
}


def as_config(given: object) -> LoRAConfig:
    """Return the LoRAConfig that a caller gave: None is the default one, and PEFT's LoraConfig is read as its file is.

    Raises ArgumentError for anything else, ConfigError for what PEFT's config asks for and hf_lora does not build.
    """
    if given is None:
        return LoRAConfig()
    if isinstance(given, LoRAConfig):
        return given
    if _is_pefts(given) and hasattr(given, "to_dict"):
        values = json.loads(json.dumps(given.to_dict(), default=sorted))  # enums as their names, sets as lists
        return LoRAConfig.from_dict(values, f"PEFT's {type(given).__name__}")
    way = "LoRAConfig(**it) takes its values" if isinstance(given, dict) else "give a LoRAConfig"
    if isinstance(given, str):
        way = "give a LoRAConfig. In PEFT the adapter's name comes first, here the config does: (config, name)"
    raise ArgumentError(f"a {type(given).__name__} is given where a LoRAConfig is wanted; {way}.")


def as_card_data(given: object) -> ModelCardData | None:
    """Return a card's metadata as the Hub's client has it. Raises ArgumentError for what is neither that nor a dict."""
    if isinstance(given, Mapping):
        return ModelCardData(**given)
    if given is None or isinstance(given, ModelCardData):
        return given
    raise ArgumentError(
        f"card_data={given!r:.80}: give a dict or huggingface_hub.ModelCardData, such as {{'license': 'mit'}}."
    )


def as_dtype(given: Any) -> torch.dtype | None:
    """Return a dtype, given itself or by its name. Raises ArgumentError for what is none."""
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if (found is not None and not isinstance(found, torch.dtype)) or (found is None and given is not None):
        raise ArgumentError(f"dtype={given!r} is no dtype of torch; torch.float32 is one, 'float32' its name.")
    return found


def as_share(given: Any) -> float | None:
    """Return how much of the effect a merge may lose. Raises ArgumentError for what is no number."""
    if given is None or (isinstance(given, numbers.Real) and not isinstance(given, bool)):
        return None if given is None else float(given)
    raise ArgumentError(
        f"verify={given!r}: it is the largest share of the adapters' effect that rounding may take, such as 0.01."
    )


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile(model)`, now compiled in place with the same settings; others as they are.

    The wrapper knows neither the model's class nor its names, so an adapter goes onto what it wraps. It stays usable.
    """
    inner = model._modules.get("_orig_mod")
    context = getattr(model, "dynamo_ctx", None)
    if inner is None or context is None:
        return model
    if inner._compiled_call_impl is None:
        inner._compiled_call_impl = context(inner._call_impl)
    return inner


def check_plain(model: nn.Module) -> None:
    """Raise ModelError where a model that is no LoRAModel carries adapters already, or parts of it are wrapped."""
    kind = type(model).__name__
    for name, module in model.named_modules():
        if _is_pefts(module):
            raise ModelError(
                f"this {kind} carries PEFT's layers already{name and f' ({name})'}. Give the plain model: "
                "merge_and_unload() of a PeftModel keeps what its adapter learnt, unload() does not; where "
                "Transformers' add_adapter or load_adapter put them there, load the model again. An adapter that PEFT "
                "saved loads here by its folder."
            )
        if isinstance(module, LoRALayer):
            raise ModelError(
                f"{name or 'this layer'} of this {kind} carries an adapter of another LoRAModel, which goes on "
                "choosing what acts there. Call add_adapter(config, 'name') of that model, with target_modules that "
                "name layers in here, or unload() it first."
            )
        if isinstance(module, Specialised) and "_lora" in module.__dict__:
            raise ModelError(
                f"this {kind} holds a LoRAModel at {name!r}, whose adapters a second one around it would freeze. Give "
                f"that one a further adapter (model.{name}.add_adapter(config, 'name')), or unload() it first and "
                "add the adapter to the whole."
            )
        if wrapper := _wrapper(module):
            whose, instead = wrapper
            raise ModelError(
                f"{name or 'this model'} ({kind}) is wrapped by {whose}, which would not know of an adapter added now, "
                f"and whose name would stand in the saved file; {instead}."
            )


def warn_of_task(model: nn.Module, config: LoRAConfig) -> None:
    """Warn where a config's task type is that of other models: its heads are not trained, and PEFT loads another class.

    A language model may be of either kind (people write CAUSAL_LM for T5), and every model has features.
    """
    given = TASK_TYPES.get(config.task_type or "")
    if given is None or given.mapping is None or not is_pretrained(model):
        return
    name = name_of(model)
    own = [t for t in TASKS if t.mapping and name in classes_of(f"MODEL_FOR_{t.mapping}_MAPPING_NAMES")]
    others = [t for t in own if t.task_type]
    if not others or any(t is given or t.tag == given.tag for t in own):
        return
    warnings.warn(
        f"task_type={config.task_type!r} is given for a {name}, whose task type is {others[0].task_type!r}: a head "
        f"that is not new stays frozen, and PEFT would load {given.auto_class} for it.",
        stacklevel=5,
    )


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    """Return (whose wrapper a module is, what to do instead), None where it is none."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return type(module).__name__, "give the model inside it (model.module) and wrap it afterwards"
    if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
        return "fully_shard", "add the adapter first and shard afterwards"
    return next((wrapper for child, wrapper in _WRAPPERS.items() if child in module._modules), None)


def _is_pefts(thing: object) -> bool:
    return any(cls.__module__.partition(".")[0] == "peft" for cls in type(thing).__mro__)
