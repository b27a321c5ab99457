"""The fields of a LoRAConfig, with PEFT's names and defaults; `lora_config.py` says what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .keys import Bias

__all__ = ["Fields"]


@dataclass
class Fields:
    """A config's values, as they were given: nothing is checked here (`rules.problems_of` does)."""

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    target_parameters: Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    bias: Bias = "none"
    task_type: str | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    trainable_token_indices: Sequence[int] | dict[str, Sequence[int]] | None = None
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    inference_mode: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None
    auto_mapping: dict[str, Any] | None = None
    other: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
