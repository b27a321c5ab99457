"""Finding the adapter that a name stands for, in any of the formats: one reader each.

A reader takes a Candidate and returns its Contents, or None where it is not of its format. To add one: write the file,
add its reader to `READERS`. PEFT's comes last, because it says what is wrong with a config that is nobody's.
"""

import fnmatch
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError, ModelError, some
from ..files.names import CONFIG_NAME, WEIGHTS_NAMES
from ..files.shards import find_weights, read_weights
from ..files.sources import Source
from ..files.strict_json import read_json
from ..files.transaction import find_config, folders_of_adapters
from .adapterhub import read_adapterhub
from .contents import Candidate, Contents
from .converting import restored
from .keys import lowered
from .loralib import read_loralib
from .pairs import checked_flags, fit_pairs

MERGED_KEYS = ("enable_lora", "merge_weights")  # of PEFT 0.1 and 0.2, which had loralib's MergedLinear


def read_folder(candidate: Candidate) -> Contents | None:
    """Read PEFT's adapter; None where there is no adapter_config.json.

    Those of PEFT 0.1 and 0.2 may have loralib's MergedLinear: enable_lora says which blocks of rows it adapts, and
    merge_weights nothing about the adapter. Raises AdapterFileError, ConfigError, HubError.
    """
    source, values, where = candidate.source, candidate.values, candidate.where
    if values is None:
        return None
    is_merged = values.get("peft_type") == "LORA" and values.get("enable_lora") is not None
    enabled = checked_flags(values["enable_lora"], f"{where}: ") if is_merged else None
    dropped = MERGED_KEYS if is_merged else ("merge_weights",)
    config = LoRAConfig.from_dict(
        {k: v for k, v in values.items() if k not in dropped}, where, candidate.ignore_unknown
    )
    path = find_weights(source, WEIGHTS_NAMES)
    if path is None:
        raise AdapterFileError(
            f"{source.name} holds {CONFIG_NAME}, but neither {' nor '.join(WEIGHTS_NAMES)}, whole or sharded."
        )
    tensors, notes = read_weights(source, path)
    tensors = lowered(tensors)
    if (own := restored(values, notes, where)) != values:
        config = LoRAConfig.from_dict(own, where, candidate.ignore_unknown)

    def fit(modules: Mapping[str, nn.Module]) -> tuple[LoRAConfig, dict[str, Tensor]]:
        pairs = fit_pairs(config, tensors, modules, enabled)
        pairs.check_ranks(config, where)
        return pairs.config, pairs.tensors

    return Contents(source, config, tensors, notes, fit if is_merged else None)


# What other files of adapters are called -> what they are, and what to do.
_OTHERS = {
    CONFIG_NAME: "PEFT's config; name the folder that holds it",
    "adapter_model.*": f"PEFT's weights; {CONFIG_NAME}, which says their lora_alpha, has to lie beside them",
    "pytorch_lora_weights.*": "diffusers' adapter, which pipe.load_lora_weights() reads",
    "adapters.*": "mlx-lm's adapter, whose keys and axes are other ones; fuse it there, or train it again",
    "*.gguf": "llama.cpp's; load the adapter that it was made from",
    "modules.json": "a model of sentence-transformers; adapters go onto the Transformers model in it",
    "model.safetensors": "a whole model's weights, to which LoRAModel.from_pretrained(folder) adds a new adapter",
    "*.safetensors": "tensors in a layout of their own, such as kohya's; PEFT's layout is read here",
}

READERS: dict[str, Callable[[Candidate], Contents | None]] = {
    "loralib": read_loralib,
    "adapterhub": read_adapterhub,
    "peft": read_folder,
}


def open_adapter(
    name: str | os.PathLike[str] | Source,
    kwargs: dict[str, Any],
    required: bool = False,
    lora_config: LoRAConfig | None = None,
    ignore_unknown: bool = False,
) -> Contents | None:
    """Read an adapter of the Hub or this machine; None where the name stands for something else.

    name: what a user gives, or the source that it stands for.
    kwargs: Hub arguments among others; those that belong to the adapter alone (revision, subfolder) are taken out
    where it is one. lora_config: the caller's, for a format that holds none of its own.
    ignore_unknown: accept keys in the adapter's config that nobody here knows.
    Raises AdapterFileError where the adapter is damaged, lies in a folder below, or is `required` and not there.
    """
    source = name if isinstance(name, Source) else Source.of(name, kwargs)
    contents = _read(source, lora_config, ignore_unknown)
    if contents is None:
        if below := adapters_below(source):
            raise AdapterFileError(
                f"{source.name} holds no {CONFIG_NAME}, but adapters in {some(below, 8)}; pass "
                f"subfolder={below[-1]!r}, or the path of one of them."
            )
        if required:
            lacks = "" if source.is_file else f": there is no {CONFIG_NAME}"
            raise AdapterFileError(f"{source.missing}{lacks}{_instead(source)}.")
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


def _instead(source: Source) -> str:
    """Say what a place of this machine holds that is not PEFT's, or not all of it; empty where nobody knows it."""
    top = Path(source.name, source.hub.get("subfolder", ""))
    names = [path.name for path in (sorted(top.iterdir()) if top.is_dir() else [top])] if source.is_local else []
    found = ((name, what) for pattern, what in _OTHERS.items() for name in fnmatch.filter(names, pattern))
    return next((f"; {name} is {what}" for name, what in found), "")


def adapters_below(source: Source) -> list[str]:
    """Return the folders of a directory that hold adapters, checkpoints by their numbers; none beside a whole model."""
    top = Path(source.name, source.hub.get("subfolder", ""))
    if not top.is_dir() or (top / "config.json").exists():
        return []
    found = folders_of_adapters(top)
    found = [name for name in found if name.rpartition("/")[0] not in found]  # of a checkpoint its top
    return sorted(found, key=lambda name: (len(name), name) if name.startswith("checkpoint-") else (0, name))
