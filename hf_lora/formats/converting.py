"""Adapters whose product at birth is in their file: plain LoRA of twice the rank to every tool, as PEFT converts them.

    B A - B0 A0 = [B, -B0] [A; A0]

A note in the file says what the halves are, so that hf_lora goes on with A and B alone and subtracts the rest.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..config.lora_config import LoRAConfig
from ..errors import AdapterFileError, ConfigError
from ..layers.state import Carried
from ..variants.initial import INITS
from ..variants.table import scaling_of
from .notes import START_NOTE

_FIELDS = ("alpha_pattern", "init_lora_weights", "lora_alpha", "r", "rank_pattern")


def started(config: LoRAConfig) -> dict[str, Any]:
    """Return what a file notes of an adapter that is written converted: its own config; nothing of others."""
    if not INITS[config.init_lora_weights].held:
        return {}
    data = INITS[config.init_lora_weights].data
    fields = (*_FIELDS, *([data.key] if data else []))
    return {name: getattr(config, name) for name in fields}


def check_converts(config: LoRAConfig) -> None:
    """Raise ConfigError where an adapter took nothing out of the base, so that there is nothing to convert."""
    if not INITS[config.init_lora_weights].moves_base:
        raise ConfigError(
            f"path_initial_model_for_weight_conversion=: init_lora_weights={config.init_lora_weights!r} took nothing "
            "out of the base, and the file is plain as it is; leave it out."
        )


def converted(config: LoRAConfig, carried: Iterable[Carried]) -> LoRAConfig:
    """Return the config of plain LoRA of twice the rank and the same scaling.

    carried: the adapters of the config; those that subtract nothing (an embedding's) keep their rank.
    """
    scale = scaling_of(config).of
    growth = scale(1, config.r) / scale(1, 2 * config.r)  # of lora_alpha
    whole = [c for c in carried if c.adapter.low_rank and not c.adapter.moves_base]
    names = [c.module if c.adapter.parameter == "weight" else f"{c.module}.{c.adapter.parameter}" for c in whole]
    ranks = {key: 2 * r for key, r in config.rank_pattern.items()}
    alphas = {key: alpha * growth for key, alpha in config.alpha_pattern.items()}
    return config.copy(
        r=2 * config.r,
        lora_alpha=config.lora_alpha * growth,
        rank_pattern={**{name: config.rank_of(name) for name in names}, **ranks},
        alpha_pattern={**{name: config.alpha_of(name) for name in names}, **alphas},
        init_lora_weights=True,
        **{data.key: None for data in (INITS[config.init_lora_weights].data,) if data},
    )


def restored(values: Mapping[str, Any], notes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an adapter_config.json stands for: of a converted adapter, what its file notes of its own config.

    values: the config's. A note that another rank stands beside is an older file's, and counts for nothing.
    Raises AdapterFileError where the note is damaged, ConfigError where the start's product is not in the file.
    """
    start, note = values.get("init_lora_weights"), notes.get(START_NOTE)
    if isinstance(start, str) and start in INITS and (INITS[start].held or not INITS[start].named):
        raise ConfigError(
            f"{where}: init_lora_weights={start!r} took its factors out of the base, which PEFT writes for it, and the "
            "file holds no more than the factors. PEFT converts such an adapter where it was trained: save_pretrained("
            "..., path_initial_model_for_weight_conversion=...); the result is plain LoRA, which can be loaded. If the "
            "base that you give is the one that PEFT wrote, set init_lora_weights to true in the file instead."
        )
    if note is None or start is not True:
        return dict(values)
    if not isinstance(note, dict) or {*_FIELDS} - note.keys() or note["init_lora_weights"] not in INITS:
        raise AdapterFileError(f"{where}: what the file of the weights says of its start is damaged; get it again.")
    return {**values, **note} if values.get("r") == 2 * note["r"] else dict(values)
