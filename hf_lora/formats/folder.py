"""PEFT's folder: adapter_config.json with the weights beside it, in one file or sharded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError
from ..files.names import CONFIG_NAME, WEIGHTS_NAMES
from ..files.shards import find_weights, read_weights
from ..files.tensors import read_notes
from .contents import Candidate, Contents
from .pairs import checked_flags, fit_pairs

__all__ = ["MERGED_KEYS", "read_folder"]

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
    tensors = read_weights(source, path)

    def fit(modules: Mapping[str, nn.Module]) -> tuple[LoRAConfig, dict[str, Tensor]]:
        pairs = fit_pairs(config, tensors, modules, enabled)
        pairs.check_ranks(config, where)
        return pairs.config, pairs.tensors

    return Contents(source, config, tensors, read_notes(path), fit if is_merged else None)
