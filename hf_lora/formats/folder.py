"""PEFT's folder: adapter_config.json with the weights beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import CONFIG_NAME, LoRAConfig
from ..errors import AdapterFileError
from ..sources import Source
from .contents import Contents
from .files import read_metadata, read_tensors

__all__ = ["NOTES_KEY", "WEIGHTS_NAMES", "read_folder"]

WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
NOTES_KEY = "hf_lora"  # of the safetensors metadata: a JSON object


def read_folder(source: Source) -> Contents | None:
    """Read an adapter; None where there is no adapter_config.json. Raises AdapterFileError, ConfigError, HubError."""
    config_file = source.find(CONFIG_NAME)
    if config_file is None:
        return None
    config = LoRAConfig.from_pretrained(config_file)
    path = _weights(source)
    return Contents(source, config, read_tensors(path), _parsed(read_metadata(path).get(NOTES_KEY)))


def _weights(source: Source) -> Path:
    for file in WEIGHTS_NAMES:
        path = source.find(file)
        if path is not None:
            return path
    raise AdapterFileError(f"{source.name} holds {CONFIG_NAME}, but neither {' nor '.join(WEIGHTS_NAMES)}.")


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
