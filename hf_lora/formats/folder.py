"""PEFT's folder: adapter_config.json with the weights beside it, in one file or sharded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError, ConfigError
from ..files.names import CONFIG_NAME, WEIGHTS_NAMES
from ..files.shards import find_weights, read_weights
from ..files.tensors import read_notes
from .contents import Candidate, Contents, Fit
from .pairs import fit_pairs, is_flags

__all__ = ["MERGED_KEYS", "read_folder"]

MERGED_KEYS = ("enable_lora", "merge_weights")  # of PEFT 0.1 and 0.2, which had loralib's MergedLinear


def read_folder(candidate: Candidate) -> Contents | None:
    """Read PEFT's adapter; None where there is no adapter_config.json.

    Raises AdapterFileError, ConfigError, HubError.
    """
    source, values = candidate.source, candidate.values
    if values is None:
        return None
    config, enabled = _parsed(values, candidate.where, candidate.ignore_unknown)
    path = find_weights(source, WEIGHTS_NAMES)
    if path is None:
        raise AdapterFileError(
            f"{source.name} holds {CONFIG_NAME}, but neither {' nor '.join(WEIGHTS_NAMES)}, whole or sharded."
        )
    tensors = read_weights(source, path)
    fit = None if enabled is None else _merged_fit(config, tensors, enabled, candidate.where)
    return Contents(source, config, tensors, read_notes(path), fit)


def _parsed(values: Mapping[str, Any], where: str, ignore_unknown: bool) -> tuple[LoRAConfig, list[bool] | None]:
    """Return the config, and an oldest one's enable_lora. Its merge_weights says nothing about the adapter."""
    enabled = values.get("enable_lora")
    if values.get("peft_type") != "LORA" or enabled is None:
        kept = {k: v for k, v in values.items() if k != "merge_weights"}
        return LoRAConfig.from_dict(kept, where, ignore_unknown), None
    if not is_flags(enabled):
        raise ConfigError(
            f"{where}: enable_lora={enabled!r}, but it is a list of True and False, a block of rows each."
        )
    kept = {k: v for k, v in values.items() if k not in MERGED_KEYS}
    return LoRAConfig.from_dict(kept, where, ignore_unknown), enabled


def _merged_fit(config: LoRAConfig, tensors: Mapping[str, Tensor], enabled: list[bool], where: str) -> Fit:
    def fit(modules: Mapping[str, nn.Module]) -> tuple[LoRAConfig, dict[str, Tensor]]:
        pairs = fit_pairs(config, tensors, modules, enabled)
        if odd := [name for name, r in pairs.ranks.items() if r != config.rank_of(name)]:
            raise ConfigError(f"{where}: r={config.r}, but the factors of {odd[0]} have rank {pairs.ranks[odd[0]]}.")
        return pairs.config, pairs.tensors

    return fit
