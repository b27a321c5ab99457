"""Writing adapters, each file whole or not at all: config, tensors, card; what lies inside another model, merged."""

import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import Tensor

from ..config.lora_config import LoRAConfig
from ..config.tasks import TASK_TYPES
from ..errors import AdapterFileError, AdapterNameError, AdapterStateError, full_name
from ..files.disk import locked
from ..files.names import CARD_NAME, places_of
from ..files.transaction import commit, settled, withdraw
from ..formats.converting import check_converts, converted, started
from ..formats.elsewhere import no_peft
from ..formats.keys import PREFIX
from ..formats.notes import BASE_NOTE, RECIPE_NOTE, SEED_NOTE, START_NOTE
from ..formats.peft import adapter_tensors
from ..hub.card.writing import write_card
from ..layers.merging import merged_values
from ..layers.specialising import base_of
from ..layers.state import CHANGES, AdapterState
from ..variants.initial import INITS
from .provenance import note_of
from .replacing import check_in_place
from .saved_tensors import check, gather, is_sharded
from .selecting import check_known
from .settings import SETTINGS_NOTE, Checkpoint, checkpoint_of, differs_in_labels, own_numbers, settings_of


def adapter_state_dict(
    model: Any, adapter_name: str | None = None, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return one adapter's tensors under PEFT's names without their prefix.

    state_dict: the whole model's, where the tensors in the model are only shards of it.
    """
    return {
        k.removeprefix(PREFIX): v for k, v in _tensors(model, _name(model, adapter_name), state_dict, False).items()
    }


def save_adapters(
    model: Any,
    directory: Path,
    adapter_name: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    *,
    write: bool = True,
    card_data: ModelCardData | None = None,
    repo_id: str | None = None,
    bases: Mapping[str, str] | None = None,
    converts: bool = False,
) -> None:
    """Write a model's adapters into a directory (`LoRAModel.save_pretrained`), or nothing where one is not fit for it.

    write: False takes part in gathering tensors that are spread over processes, checks them, and writes nothing.
    card_data, repo_id: for the model cards (`card.write_card`). bases: the name of each adapter's base as it is
    written, where it is not the config's own. converts: write what took its start out of the base as plain LoRA of
    twice the rank, which needs no such base.
    Where all of them go into folders, an adapter that an earlier save left at the top is removed: it would be loaded.
    Raises AdapterStateError, AdapterNameError, ConfigError where there is no start to convert, and AdapterFileError
    where the directory is the base's own or the disk refuses.
    """
    state = model._lora
    state.refuse_while_merged("saving")
    check_in_place(model, state)
    names = [_name(model, adapter_name)] if adapter_name is not None or len(state.configs) == 1 else list(state.configs)
    if not names:
        raise AdapterStateError("the model has no adapter to save.")
    for name in names if converts else ():
        check_converts(state.configs[name])
    folders = {name: directory / place for name, place in places_of(names).items()}
    for folder in folders.values():
        refuse_base_folder(model, folder)
    if not write and not any(is_sharded(model, name, state_dict) for name in names):
        return
    with CHANGES:
        contents = {name: _tensors(model, name, state_dict, converts=converts) for name in names}
    checkpoint = checkpoint_of(model, state.place) if write else None
    for name, tensors in contents.items() if write else ():
        config = state.configs[name].copy(**({"base_model_name_or_path": bases[name]} if bases else {}))
        notes = _notes(model, name, config, tensors, checkpoint, converts)
        _save_one(model, name, config, folders[name], tensors, notes, card_data, repo_id, converts)
    if write and directory not in folders.values():
        withdraw(directory)


def refuse_base_folder(model: Any, directory: Path) -> None:
    """Raise AdapterFileError where a directory is the base's own, which would be another model with an adapter in it.

    One that holds an adapter beside the base already may be written again.
    """
    bases = {getattr(model, "name_or_path", None), *(c.base_model_name_or_path for c in model._lora.configs.values())}
    for base in bases - {None, ""}:
        if directory.is_dir() and os.path.isdir(base) and os.path.samefile(base, directory) and not settled(directory):
            raise AdapterFileError(
                f"{directory} is the folder of the base: whoever loads the base by it would get the adapter as well, "
                "and its card would be the adapter's. Save into a folder of its own."
            )


def _save_one(
    model: Any,
    name: str,
    config: LoRAConfig,
    directory: Path,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    card_data: ModelCardData | None,
    repo_id: str | None,
    converts: bool,
) -> None:
    published = _as_read(model, name, config, converts)
    if os.path.lexists(directory) and not directory.is_dir():
        raise AdapterFileError(f"{directory} is a file; save_pretrained takes a directory.")
    if reason := no_peft(model, name, config):
        warnings.warn(f"PEFT cannot open the adapter {name!r}: {reason}. hf_lora can.", stacklevel=5)
    is_new = not directory.is_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory):
            commit(directory, published.to_json().encode(), tensors, notes)
            write_card(directory / CARD_NAME, model, config, tensors, card_data, None, repo_id, name)
    except AdapterFileError:
        raise
    except OSError as error:
        if is_new:
            with suppress(OSError):
                directory.rmdir()
        raise AdapterFileError(
            f"the adapter {name!r} cannot be written to {directory}: {error}. What the directory holds is whole: the "
            "adapter of before, or this one."
        ) from error


def _as_read(model: Any, name: str, config: LoRAConfig, converts: bool) -> LoRAConfig:
    """Return an adapter's config as a file has it, which PEFT reads as well."""
    task = config.task_type if hasattr(model, "config") else None  # PEFT's class asks for one, and for what generates
    if task and TASK_TYPES[task].tag == "text-generation" and not hasattr(model, "prepare_inputs_for_generation"):
        task = None
    found = config.copy(inference_mode=True, task_type=task)
    if converts or started(config):
        found = converted(found, model._lora.carried(name))
    elif not INITS[config.init_lora_weights].named:
        found = found.copy(init_lora_weights=True, loftq_config={})
    found.auto_mapping = found.auto_mapping or _auto_mapping(model, found)
    if config.target_parameters and config.has_old_experts:  # the file is written as PEFT writes it today
        found = found.copy(other={k: v for k, v in found.other.items() if k != "peft_version"})
    return found


def _tensors(
    model: Any, name: str, state_dict: Mapping[str, Tensor] | None, checked: bool = True, converts: bool = False
) -> dict[str, Tensor]:
    try:
        gathered = gather(model, name, state_dict)
    except KeyError as missing:
        raise AdapterStateError(
            f"the state_dict to save from lacks {missing}; give the whole model's (model.state_dict()), or none."
        ) from None
    if checked:
        check(model, name, gathered)
    return adapter_tensors(model._lora.layers, name, gathered, converts)


def _name(model: Any, adapter_name: str | None) -> str:
    state = model._lora
    if adapter_name is None:
        chosen = state.selected or tuple(state.configs)
        if len(chosen) != 1:
            raise AdapterNameError(
                f"name one adapter: the model has {list(state.configs)}, active {list(state.selected)}."
            )
        return chosen[0]
    check_known(state, [adapter_name])
    return adapter_name


def _auto_mapping(model: Any, config: LoRAConfig) -> dict[str, str] | None:
    """Return the base's class, which PEFT writes where no task type says it."""
    if config.task_type is not None or getattr(model, "config", None) is None:
        return None
    base = base_of(type(model))
    return {"base_model_class": base.__name__, "parent_library": base.__module__}


def _notes(
    model: Any,
    name: str,
    adapter: LoRAConfig,
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint | None,
    converts: bool = False,
) -> dict[str, Any]:
    """Return what an adapter's file says besides its tensors: how many there are, its base and settings, its labels."""
    config, state = getattr(model, "config", None), model._lora
    labels = getattr(config, "id2label", None)
    has_head = getattr(model, "num_labels", None) is not None and "Classification" in type(model).__name__
    notes: dict[str, Any] = {"tensors": len(tensors)}
    if base := note_of(model, state, name, adapter):
        notes[BASE_NOTE] = base
    if adapter.seed is not None:
        notes[SEED_NOTE] = adapter.seed
    if not converts and (start := started(adapter)):
        notes[START_NOTE] = start
    if labels and (has_head or differs_in_labels(model, checkpoint)):
        notes["id2label"] = {str(k): v for k, v in labels.items()}
        if own := own_numbers(config, checkpoint):
            notes["label2id"] = own
    settings = settings_of(model, checkpoint)
    if settings := state.records[name].origin.settings if settings is None else settings:
        notes[SETTINGS_NOTE] = dict(settings)
    if recipe := state.records[name].origin.recipe:
        notes[RECIPE_NOTE] = dict(recipe)
    return notes


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
