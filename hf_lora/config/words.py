"""What people write into a LoRAConfig: other libraries' names of settings, and values of other libraries' types."""

import dataclasses
import difflib
import os
from collections.abc import Iterable
from typing import Any

from ..variants.table import settings
from .keys import INERT, UNSUPPORTED, Fields

# Other names of a setting -> the setting.
OTHER_NAMES = {
    "alpha": "lora_alpha",
    "base_model": "base_model_name_or_path",
    "dropout": "lora_dropout",
    "exclude": "exclude_modules",
    "init": "init_lora_weights",
    "layers": "layers_to_transform",
    "lora_r": "r",
    "lora_rank": "r",
    "modules": "target_modules",
    "rank": "r",
    "target": "target_modules",
    "targets": "target_modules",
    "task": "task_type",
}


def unknown_settings(names: Iterable[str]) -> str:
    """Return what to tell of settings that a LoRAConfig does not have, each with the nearest one that it has."""
    known = [*(field.name for field in dataclasses.fields(Fields)), *settings()]
    told = []
    for name in sorted(names):
        if name in UNSUPPORTED:
            told.append(f"{name} asks for something that hf_lora does not build; leave it out.")
        elif name in INERT:
            told.append(f"{name} is only kept, from files that have it; other={{{name!r}: ...}} writes it.")
        elif name in OTHER_NAMES or (near := difflib.get_close_matches(name.lower(), known, 1, 0.6)):
            told.append(f"there is no setting {name!r}; did you mean {OTHER_NAMES.get(name) or near[0]!r}?")
        else:
            told.append(f"there is no setting {name!r}; there are {', '.join(known)}.")
    return " ".join(told)


def as_json(value: Any) -> Any:
    """Return a value whose NumPy's and torch's numbers and arrays are Python's own, paths texts, dataclasses dicts."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(dataclasses.asdict(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (list, tuple):
        return type(value)(as_json(each) for each in value)
    return {key: as_json(each) for key, each in value.items()} if type(value) is dict else value
