"""Finding the adapter that a name stands for, in any of the formats: one reader each.

A reader takes a Candidate and returns its Contents, or None where it is not of its format. To add one: write the file,
add its reader to `READERS`. PEFT's comes last, because it says what is wrong with a config that is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError, ModelError, some
from ..files.names import CONFIG_NAME
from ..files.sources import Source
from ..files.strict_json import read_json
from ..files.transaction import find_config
from .adapterhub import read_adapterhub
from .contents import Candidate, Contents
from .folder import read_folder
from .loralib import read_loralib

__all__ = ["READERS", "adapters_below", "open_adapter"]

READERS: dict[str, Callable[[Candidate], Contents | None]] = {
    "loralib": read_loralib,
    "adapterhub": read_adapterhub,
    "peft": read_folder,
}


def open_adapter(
    name: str,
    kwargs: dict[str, Any],
    required: bool = False,
    lora_config: LoRAConfig | None = None,
    ignore_unknown: bool = False,
) -> Contents | None:
    """Read an adapter of the Hub or this machine; None where the name stands for something else.

    kwargs: Hub arguments among others; those that belong to the adapter alone (revision, subfolder) are taken out
    where it is one. lora_config: the caller's, for a format that holds none of its own.
    ignore_unknown: accept keys in the adapter's config that nobody here knows.
    Raises AdapterFileError where the adapter is damaged, lies in a folder below, or is `required` and not there.
    """
    source = Source.of(name, kwargs)
    contents = _read(source, lora_config, ignore_unknown)
    if contents is None:
        if below := adapters_below(source):
            raise AdapterFileError(
                f"{name} holds no {CONFIG_NAME}, but adapters in {some(below, 8)}; pass subfolder={below[-1]!r}, "
                "or the path of one of them."
            )
        if required:
            raise AdapterFileError(f"{source.missing}: there is no {CONFIG_NAME}.")
        return None
    for key in ("revision", "subfolder"):
        kwargs.pop(key, None)
    return contents


def _read(source: Source, lora_config: LoRAConfig | None, ignore_unknown: bool) -> Contents | None:
    """Read a source's adapter, again where a save came in between: config and weights are one adapter's."""
    while True:
        path = find_config(source)
        if path is not None and lora_config is not None:
            raise ModelError(
                f"{source.name} is an adapter, so lora_config has no place: its own {CONFIG_NAME} says what it is. To "
                "train it on, pass is_trainable=True; for a new adapter, name the base instead."
            )
        values = None if path is None else read_json(path)
        candidate = Candidate(source, str(path or source.name), values, lora_config, ignore_unknown)
        contents = next((found for read in READERS.values() if (found := read(candidate)) is not None), None)
        if contents is None or path is None or not source.is_local:
            return contents
        now = find_config(source)
        if now is not None and read_json(now) == values:
            return contents


def adapters_below(source: Source) -> list[str]:
    """Return the folders of a directory that hold adapters, checkpoints by their numbers; none beside a whole model."""
    top = Path(source.name, source.hub.get("subfolder", ""))
    if not top.is_dir() or (top / "config.json").exists():
        return []
    found = [path.parent.name for path in top.glob(f"*/{CONFIG_NAME}")]
    return sorted(found, key=lambda name: (len(name), name) if name.startswith("checkpoint-") else (0, name))
