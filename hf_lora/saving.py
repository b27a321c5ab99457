"""Writing adapters: the config, the tensors, the card, each file whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .card import CARD_NAME, write_card
from .config import CONFIG_NAME, LoRAConfig
from .errors import AdapterFileError, AdapterNameError, AdapterStateError
from .formats.files import write_atomically, write_tensors
from .formats.folder import NOTES_KEY, WEIGHTS_NAMES
from .formats.peft import PREFIX, adapter_tensors

__all__ = ["adapter_state_dict", "save_adapters"]


def adapter_state_dict(
    model: Any, adapter_name: str | None = None, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return one adapter's tensors under PEFT's names without their prefix.

    state_dict: the whole model's, where the tensors in the model are only shards of it.
    """
    return {k.removeprefix(PREFIX): v for k, v in _tensors(model, _name(model, adapter_name), state_dict).items()}


def save_adapters(
    model: Any, directory: Path, adapter_name: str | None = None, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model's adapters into a directory: one at its top, several into folders of their names."""
    state = model._lora
    if state.merged:
        raise AdapterStateError(
            f"{list(state.merged)} are merged into the weights; call unmerge_adapter() to save them."
        )
    if directory.is_file():
        raise AdapterFileError(f"{directory} is a file; save_pretrained takes a directory.")
    names = [_name(model, adapter_name)] if adapter_name is not None or len(state.configs) == 1 else list(state.configs)
    if not names:
        raise AdapterStateError("the model has no adapter to save.")
    for name in names:
        at_top = len(names) == 1 or name == "default"
        _save_one(model, name, directory if at_top else directory / name, state_dict)


def _save_one(model: Any, name: str, directory: Path, state_dict: Mapping[str, Tensor] | None) -> None:
    config: LoRAConfig = model._lora.configs[name]
    tensors = _tensors(model, name, state_dict)
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", NOTES_KEY: json.dumps(_notes(model), sort_keys=True)}
    write_tensors(directory / WEIGHTS_NAMES[0], tensors, metadata)
    published = config.copy(inference_mode=True, auto_mapping=config.auto_mapping or _auto_mapping(model, config))
    write_atomically(directory / CONFIG_NAME, published.to_json().encode())
    (directory / WEIGHTS_NAMES[1]).unlink(missing_ok=True)  # an older pickle would be another adapter's
    write_card(directory / CARD_NAME, model, config, tensors)


def _tensors(model: Any, name: str, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    try:
        return adapter_tensors(model._lora.layers, name, state_dict)
    except KeyError as missing:
        raise AdapterStateError(
            f"the state_dict to save from lacks {missing}; give the whole model's (model.state_dict()), or none."
        ) from None


def _name(model: Any, adapter_name: str | None) -> str:
    state = model._lora
    if adapter_name is None:
        chosen = state.selected or tuple(state.configs)
        if len(chosen) != 1:
            raise AdapterNameError(
                f"name one adapter: the model has {list(state.configs)}, active {list(state.selected)}."
            )
        return chosen[0]
    if adapter_name not in state.configs:
        raise AdapterNameError(f"no adapter {adapter_name!r}; the model has {list(state.configs)}.")
    return adapter_name


def _auto_mapping(model: Any, config: LoRAConfig) -> dict[str, str] | None:
    """Return the base's class, which PEFT writes where no task type says it."""
    if config.task_type is not None or getattr(model, "config", None) is None:
        return None
    base = type(model)._lora_base
    return {"base_model_class": base.__name__, "parent_library": base.__module__}


def _notes(model: Any) -> dict[str, Any]:
    """Return what of the base's config an adapter needs to be loaded with the same head: its labels."""
    config = getattr(model, "config", None)
    labels = getattr(config, "id2label", None)
    has_head = getattr(model, "num_labels", None) is not None and "Classification" in type(model).__name__
    return {"id2label": {str(k): v for k, v in labels.items()}} if labels and has_head else {}
