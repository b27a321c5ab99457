"""A config's words: presets of targets, PEFT's keys that are refused or only kept. Needs no torch."""

from __future__ import annotations

from typing import Any, Literal, get_args

__all__ = ["INERT", "PRESETS", "UNSUPPORTED", "Bias", "Preset"]

Preset = Literal["auto", "attention", "all-linear"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
Bias = Literal["none", "all", "lora_only"]

# PEFT fields that change the maths and that hf_lora does not build: any other value is an error, never ignored.
UNSUPPORTED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "ensure_weight_tying": False,
    "kasa_config": None,
    "layer_replication": None,
    "megatron_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
    "use_qalora": False,
    "velora_config": None,
}
# PEFT fields that say how an adapter was started or where it ran: kept and written back, without effect here.
INERT: dict[str, Any] = {
    "corda_config": None,
    "eva_config": None,
    "loftq_config": {},
    "lora_ga_config": None,
    "megatron_core": "megatron.core",
    "peft_version": None,
    "qalora_group_size": 16,
}
