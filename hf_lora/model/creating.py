"""Making a model a LoRAModel: of a base and a config, of an adapter and its base; and giving its own class back."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import ArgumentError, ModelError, full_name, some
from ..files.sources import HUB_KWARGS, place_of
from ..formats.contents import Contents
from ..formats.opening import open_adapter
from ..kinds.packed import keep_backward
from ..layers.memory.head import disable_linear_cross_entropy, own_head
from ..layers.memory.mlp import disable_mlp_recompute
from ..layers.specialising import Specialised, refine, restore
from ..layers.state import CHANGES, AdapterState
from . import adding, first_step, hooks
from .arguments import as_config, check_plain, uncompiled, warn_of_task
from .bases import load_base, load_base_of, may_be_base
from .heads import left_at_random, with_heads
from .hints import refuse_misplaced
from .overrides import forgets_routes, keeps_routes, takes_gradients
from .provenance import commit_of
from .selecting import remove, select
from .settings import rows_of_table, warn_of_others
from .vocabulary import make_room, with_new_rows


def from_pretrained(
    mixin: type[Specialised],
    name: str,
    lora_config: LoRAConfig | None,
    model_args: tuple[Any, ...],
    adapter_name: str,
    is_trainable: bool | None,
    base_model: nn.Module | str | None,
    auto_class: type | str | None,
    check_base: bool,
    ignore_unknown: bool,
    data: Any,
    kwargs: dict[str, Any],
) -> Any:
    """Load a base with a fresh adapter, or an adapter with the base it names (`LoRAModel.from_pretrained`)."""
    if kwargs.pop("output_loading_info", False):
        raise ArgumentError(
            "output_loading_info: new parts of a base train and are saved; an adapter's all find a place."
        )
    refuse_misplaced(kwargs)
    required = base_model is not None or (lora_config is None and not may_be_base(name, kwargs))
    found = open_adapter(name, kwargs, required, lora_config, ignore_unknown)
    if found is None:
        if is_trainable is False:
            raise ArgumentError(
                f"is_trainable=False: {name} is a base, so a fresh adapter is added, which has to train. Leave it out, "
                "or name an adapter."
            )
        return _from_base(mixin, name, as_config(lora_config), model_args, adapter_name, auto_class, data, kwargs)
    if data is not None:
        raise ArgumentError(f"data= has no effect: {name} is an adapter, which has begun already; leave it out.")
    model = _base_for(found, base_model, auto_class, kwargs)
    result = _entered(
        mixin, model, lambda: add_saved(model, found, adapter_name, bool(is_trainable), check_base, kwargs.keys())
    )
    if not isinstance(base_model, nn.Module):
        result._lora.place = _place({"revision": found.config.revision if base_model is None else None, **kwargs})
    return result


def _from_base(
    mixin: type[Specialised],
    name: str,
    config: LoRAConfig,
    model_args: tuple[Any, ...],
    adapter_name: str,
    auto_class: type | str | None,
    data: Any,
    kwargs: dict[str, Any],
) -> Any:
    """Load a base and add a fresh adapter to it."""
    if config.revision and config.base_model_name_or_path in (None, name):
        kwargs.setdefault("revision", config.revision)
    model = load_base(name, config.task_type, auto_class, model_args, kwargs)
    config = config.copy(base_model_name_or_path=None, revision=kwargs.get("revision"))
    result = from_model(mixin, model, config, adapter_name, data)
    result._lora.commit, result._lora.place = commit_of(name, kwargs), _place(kwargs)
    return result


def from_model(
    mixin: type[Specialised], model: nn.Module, lora_config: LoRAConfig | None, adapter_name: str, data: Any
) -> Any:
    """Add a fresh adapter to a model, in place, and return the same object (`LoRAModel.from_model`)."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"from_model takes an nn.Module, not a {type(model).__name__}.")
    config, model = as_config(lora_config), uncompiled(model)
    return _entered(mixin, model, lambda: add_fresh(model, config, adapter_name, data))


def add_fresh(model: Any, lora_config: LoRAConfig, adapter_name: str, data: Any = None) -> None:
    """Add a fresh adapter to a LoRAModel and select it. data: batches for a start that learns of them."""
    with own_head(model), CHANGES:
        config = with_new_rows(model, with_heads(model, as_config(lora_config)))
        warn_of_task(model, config)
        base = getattr(model, "name_or_path", None) or config.base_model_name_or_path
        if base and model in hooks.MERGED:
            warnings.warn(
                f"adapters were merged into this model since it was loaded from {base!r}, which the new adapter's file "
                "will name as its base: a reload by name has the base without them. Save the merged model, load it "
                "from there, and add the adapter to that.",
                stacklevel=5,
            )
        revision = config.revision if config.base_model_name_or_path in (None, base) else None  # another base's
        config = config.copy(base_model_name_or_path=base, revision=revision)
        adding.add(model, model._lora, config, adapter_name, data)
        select(model._lora, adapter_name)
        first_step.wait(model)


def add_saved(
    model: Any,
    files: Contents,
    adapter_name: str,
    is_trainable: bool,
    check_base: bool,
    given: Collection[str] = (),
) -> None:
    """Add an adapter that was read from files to a LoRAModel and select it.

    given: the settings that the caller chose for the base, whatever the adapter was trained with.
    """
    files = files.onto(model)
    warn_of_others(files.notes, model, given)
    with own_head(model), CHANGES:
        adding.load(model, model._lora, files, adapter_name, is_trainable, check_base)
        select(model._lora, adapter_name)
        first_step.wait(model)
    carried = model._lora.carried(adapter_name)
    held = {full_name(module, adapter.parameter) for module, _, _, adapter in carried if adapter.row.whole}
    if left := left_at_random(model, held):
        warnings.warn(
            f"{len(left)} parameters are neither in the checkpoint of the base nor in the adapter {files.source.name} "
            f"and start at random: {some(left)}.",
            stacklevel=3,
        )


def _place(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return where on the Hub the checkpoint lies that was loaded with these arguments."""
    return {key: kwargs[key] for key in ("revision", "subfolder", "cache_dir") if kwargs.get(key) is not None}


def leave(model: Any) -> Any:
    """Give a LoRAModel back the class and the parameters' flags that it had before, without its adapters."""
    disable_mlp_recompute(model)
    disable_linear_cross_entropy(model)
    forgets_routes(model)
    with CHANGES:
        state: AdapterState = model._lora
        for name in list(state.records):
            remove(state, name)
        state.layers.clear()
        thawed = set(state.thawed)
        for name, parameter in model.named_parameters():
            if name in thawed:
                parameter.requires_grad_(True)
        del model.__dict__["_lora"]
        model.__dict__.pop("_hf_peft_config_loaded", None)
        restore(model)
    return model


def _base_for(
    files: Contents, base_model: nn.Module | str | None, auto_class: type | str | None, kwargs: Mapping[str, Any]
) -> nn.Module:
    """Return the module to load an adapter into: the caller's, or the base that the adapter names."""
    if isinstance(base_model, nn.Module):
        if idle := {*kwargs, *(["auto_class"] if auto_class else [])} - set(HUB_KWARGS):
            raise TypeError(f"{', '.join(sorted(idle))}: these load a base, but base_model= is loaded already.")
        return uncompiled(base_model)
    model = load_base_of(files, None if base_model is None else place_of(base_model), auto_class, dict(kwargs))
    make_room(model, files.config, files.tensors, rows_of_table(files.notes))
    return model


def _entered(mixin: type[Specialised], model: nn.Module, add: Callable[[], None]) -> Any:
    """Return a model as a LoRAModel to which an adapter was added; what was none before is none where that fails."""
    fresh = not isinstance(model, mixin)
    if fresh:
        enter(mixin, model)
    try:
        add()
    except BaseException:
        if fresh:
            leave(model)
        raise
    return model


def enter(mixin: type[Specialised], model: Any) -> None:
    """Make a model a LoRAModel without adapters yet: its parameters are frozen, and which were not is noted."""
    check_plain(model)
    for listener in hooks.LISTENERS:
        listener()
    thawed = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    keep_backward(model)
    model.__dict__.update(_lora=AdapterState(thawed=thawed), _hf_peft_config_loaded=True)
    refine(model, mixin)
    takes_gradients(model)
    keeps_routes(model)
    if any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):  # switched on before: now it matters
        model.enable_input_require_grads()
