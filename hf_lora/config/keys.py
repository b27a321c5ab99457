"""A config's keys: its fields with PEFT's names and defaults, PEFT's keys that are refused or only kept.

Needs no torch. `lora_config.py` says what the fields mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Preset = Literal["auto", "attention", "all-linear"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

# PEFT fields that change the maths and that hf_lora does not build: any other value is an error, never ignored.
UNSUPPORTED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
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
    "loftq_config": {},
    "megatron_core": "megatron.core",
    "peft_version": None,
    "qalora_group_size": 16,
}
NO_TARGETS = "dummy-target-modules"  # PEFT's target_modules of an adapter that has none: it takes no empty list
PEFT = (0, 21, 2)  # the version whose keys are known here
# Keys that PEFT has had from its first versions on, and that servers read without asking: written at any value. A later
# one is written where it is not at its default, so that older versions of PEFT, which refuse or misread a file with a
# key that they do not know, read the file.
ALWAYS = frozenset({
    "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
    "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type",
})  # fmt: skip
# Fields that say of a base or of a file what no adapter depends on.
FREE = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "fan_in_fan_out", "inference_mode", "other",
    "revision", "task_type",
})  # fmt: skip
# A key with one of these words says how the update is computed; so does one with a word of a formula's or start's name.
FORMULA_WORDS = frozenset({"alpha", "bias", "init", "rank", "scale", "scaling", "use"})


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
    bias: Literal["none", "all", "lora_only"] = "none"
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
    ensure_weight_tying: bool = False
    eva_config: dict[str, Any] | None = None
    loftq_config: dict[str, Any] = field(default_factory=dict)
    lora_ga_config: dict[str, Any] | None = None
    seed: int | None = field(default=None, compare=False)
    other: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
