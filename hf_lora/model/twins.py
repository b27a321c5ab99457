"""Several LoRAModels over one base: copies of its modules that hold its very parameters and buffers.

A twin is a LoRAModel with one adapter, so that whatever trains, saves or resumes a LoRAModel does so with it; another
twin's adapter it never sees. The model they stand on carries the adapters of all, tensor by tensor the same, to compute
batches of mixed rows.
"""

import copy
from typing import Any

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError, ModelError
from ..layers.layer import attach, base_modules
from ..layers.specialising import is_pretrained
from ..layers.state import CHANGES, AdapterState, Record
from .creating import add_fresh, enter
from .lora_model import LoRAModel
from .overrides import keeps_routes
from .selecting import check_name, delete, require_grad


def carrier_of(model: nn.Module) -> Any:
    """Return a model as a LoRAModel, in place: a plain one has no adapter yet. Raises ModelError, AdapterStateError."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is wanted, not a {type(model).__name__}.")
    if "_orig_mod" in model._modules or getattr(model, "_compiled_call_impl", None) is not None:
        raise AdapterStateError("a compiled model cannot tell rows apart: give the model that is not compiled.")
    if len(set(getattr(model, "hf_device_map", None) or ())) > 1:
        raise AdapterStateError("the model is spread over several devices (device_map=): load it onto one.")
    if not trunks(model):
        raise ModelError(f"{type(model).__name__} has no model of Transformers' inside whose forward could be shared.")
    if isinstance(model, LoRAModel):
        model._lora.refuse_while_merged("training together")
    else:
        enter(LoRAModel, model)
    return model


def trunks(model: nn.Module) -> list[str]:
    """Return the names of the outermost models of Transformers' below a model: what its heads compute on."""
    found: list[str] = []
    for name, module in base_modules(model):
        if name and is_pretrained(module) and not any(name.startswith(f"{each}.") for each in found):
            found.append(name)
    return found


def twin(carrier: Any, config: LoRAConfig, name: str) -> Any:
    """Return a LoRAModel with one fresh adapter, selected, on a model's own parameters and buffers.

    Raises TargetError, ConfigError or AdapterNameError with the model unchanged.
    """
    check_name(name, carrier._lora.records)
    result = copy.deepcopy(carrier, {id(t): t for t in (*carrier.parameters(), *carrier.buffers())})
    delete(result._lora, list(result._lora.records))
    add_fresh(result, config, name)
    return result


def share(carrier: Any, other: Any, name: str) -> None:
    """Attach a twin's adapter to the model that it stands on: modules of its own, the tensors are the twin's."""
    state: AdapterState = carrier._lora
    modules = dict(base_modules(carrier))
    tensors = (t for held in other._lora.carried(name) for t in held.adapter.held().values())
    memo: dict[int, Any] = {id(t): t for t in tensors}  # an adapter that two tied layers share is one here as well
    with CHANGES:
        layers = dict(state.layers)
        for place, layer in other._lora.layers.items():
            copies = {key: copy.deepcopy(adapter, memo) for key, adapter in layer.carried(name).items()}
            layers[place] = attach(modules[place], state, name, copies, layer.behind(name), layer._steps.shown)
            require_grad(layers[place], name, True)
        record = other._lora.records[name]
        shared = Record(record.config.copy(), record.origin, trainable=True)
        state.layers, state.records = layers, {**state.records, name: shared}


def mirror_checkpointing(module: nn.Module, mirrored: nn.Module, carrier: Any) -> bool:
    """Have a module of the carrier checkpoint what its copy in a twin does, and return whether that is anything."""
    modules: dict[str, Any] = dict(base_modules(mirrored))
    found = [(name, each) for name, each in base_modules(module) if getattr(each, "gradient_checkpointing", False)]
    for name, each in found:
        chosen = each._gradient_checkpointing_func
        modules[name].gradient_checkpointing = True
        modules[name]._gradient_checkpointing_func = getattr(chosen, "checkpoint", chosen)
    if found:
        keeps_routes(carrier)
        carrier.enable_input_require_grads()
    return bool(found)
