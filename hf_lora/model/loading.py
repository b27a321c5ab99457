"""Reading saved adapters back into the ones that a model has, in place: for resuming a training."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import AdapterNameError
from ..files.names import CONFIG_NAME, WEIGHTS_NAME, WEIGHTS_NAMES
from ..files.transaction import settled
from ..formats.opening import open_adapter
from .adding import copy_in

__all__ = ["load_weights", "missing_weights"]


def load_weights(model: Any, directory: Path) -> None:
    """Copy saved adapters into the ones of the same names that are here, in place (`LoRAModel.load_weights`)."""
    for name, folder in _places(model._lora.records, directory).items():
        if folder is None:
            raise AdapterNameError(f"{directory} holds no folder of the adapter {name!r}; it cannot be resumed.")
        files = open_adapter(os.fspath(folder), {}, required=True)
        assert files is not None
        copy_in(model, model._lora, files.config, files.tensors, name)


def missing_weights(model: Any, directory: Path) -> list[str]:
    """Return the files that `load_weights` would miss in a directory, by their paths in it; nothing is read."""
    missing = []
    for name, folder in _places(model._lora.records, directory).items():
        place = Path("" if folder == directory else name)
        if folder is None or settled(folder) is None:
            missing.append(os.fspath(place / CONFIG_NAME))
        if folder is None or not any((folder / file).is_file() for file in WEIGHTS_NAMES):
            missing.append(os.fspath(place / WEIGHTS_NAME))
    return missing


def _places(names: Iterable[str], directory: Path) -> dict[str, Path | None]:
    """Return where in a saved directory each adapter of a model lies, as `hub.places.places_of` says.

    One that was saved with others before lies in a folder of its name, and one that was saved alone at the top.
    """
    names, places = list(names), dict[str, Path | None]()
    for name in names:
        alone = len(names) == 1 or name == "default"
        candidates = (directory, directory / name) if alone else (directory / name,)
        found = next((place for place in candidates if settled(place) is not None), None)
        places[name] = directory if found is None and alone else found
    return places
