"""LoRAConfig: PEFT's fields and defaults, validated when made, read from and written to adapter_config.json."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import AdapterFileError, ConfigError
from .variants import INITS, SCALINGS

__all__ = ["CONFIG_NAME", "PRESETS", "TASK_TYPES", "LoRAConfig"]

CONFIG_NAME = "adapter_config.json"
PRESETS = ("auto", "attention", "all-linear")
TASK_TYPES = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
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


@dataclass
class LoRAConfig:
    """What an adapter is: its rank, its targets, its variant.

    Field names, defaults and meanings are PEFT's (`peft.LoraConfig`), so that `adapter_config.json` is the same file.

    r: rank. lora_alpha: numerator of the scaling, alpha/r (`use_rslora`: alpha/sqrt(r)).
    target_modules: "auto" (query and value, or the fused qkv), "attention", "all-linear", a list of names or of
        dotted name endings, or a regular expression that the full name must match. Left out, it is "auto", or
        nothing where target_parameters are given.
    target_parameters: name endings of raw 2-D or 3-D parameters (fused experts).
    lora_dropout: probability in [0, 1). bias: which biases train along. modules_to_save: modules trained in full.
    init_lora_weights: True (A kaiming, B zero), False (random), "gaussian", "pissa", "pissa_niter_N".
    rank_pattern, alpha_pattern: regular expression on the end of a module's name -> its own r, alpha.
    fan_in_fan_out: accepted and written for other tools; the layer itself says how its weight lies.
    other: further keys of an adapter_config.json, kept and written back.

    Raises ConfigError, with every problem it found.

    >>> LoRAConfig(r=16, target_modules=["q_proj", "v_proj"]).scaling_of("model.layers.0.self_attn.q_proj")
    0.5
    >>> LoRAConfig(r=0)
    Traceback (most recent call last):
    ...
    hf_lora.errors.ConfigError: LoRAConfig: r=0, but the rank must be a positive integer; 8 is the usual start.
    """

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

    def __post_init__(self) -> None:
        if self.target_modules is None and not self.target_parameters:
            self.target_modules = "auto"
        for name in ("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "layers_pattern"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                setattr(self, name, _unique(value) if _is_names(value) else value)
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            setattr(self, name, dict(value) if isinstance(value, Mapping) else {} if value is None else value)
        problems = [*_value_problems(self), *_combination_problems(self)]
        if problems:
            raise ConfigError("LoRAConfig: " + " ".join(problems))

    @property
    def peft_type(self) -> str:
        """PEFT's name for the method: always "LORA"."""
        return "LORA"

    @property
    def formula(self) -> str:
        """The row of `variants.FORMULAS` that this config asks for."""
        return "dora" if self.use_dora else "lora"

    def rank_of(self, name: str) -> int:
        """Return the rank of the module of that full name."""
        return int(_by_pattern(self.rank_pattern, name, self.r))

    def scaling_of(self, name: str) -> float:
        """Return the factor on B A for the module of that full name."""
        alpha = float(_by_pattern(self.alpha_pattern, name, self.lora_alpha))
        return SCALINGS["rslora" if self.use_rslora else "lora"](alpha, self.rank_of(name))

    def copy(self, **changes: Any) -> LoRAConfig:
        """Return a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of PEFT's adapter_config.json: every key of PEFT's, JSON types only, keys sorted."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "other"}
        if self.target_modules in ("auto", "attention"):  # no other tool knows these; attaching resolves them
            mine["target_modules"] = None
        if self.target_modules is None:  # PEFT would take its own default for null
            mine["target_modules"] = []
        result = {"peft_type": self.peft_type, **UNSUPPORTED, **INERT, **self.other, **mine}
        return {key: _plain(result[key]) for key in sorted(result)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "this config") -> LoRAConfig:
        """Return the LoRAConfig that an adapter_config.json stands for.

        Keys that hf_lora does not use are kept in `other`. Raises ConfigError for another PEFT method, for a
        setting that hf_lora does not build and for an unknown key whose value is not an empty default.
        """
        kind = values.get("peft_type")
        if kind != "LORA":
            found = f"is for PEFT's method {kind!r}" if kind else "has no peft_type, so it is not PEFT's"
            keys = ", ".join(sorted(map(str, values)))[:200]
            raise ConfigError(f"{source} {found}; hf_lora reads LORA adapters. Its keys: {keys}.")
        names = {f.name for f in dataclasses.fields(cls)} - {"other"}
        mine, other, problems = {}, {}, []
        for key, value in values.items():
            if key in names:
                mine[key] = value
            elif key in UNSUPPORTED and value != UNSUPPORTED[key] and value is not None:
                problems.append(f"{key}={value!r} asks for something that hf_lora does not build.")
            elif key not in UNSUPPORTED and key not in INERT and key != "peft_type" and value not in _EMPTY:
                problems.append(f"unknown key {key}={value!r}; if it has no effect, delete it from the file.")
            elif key in INERT:
                other[key] = value
        if problems:
            raise ConfigError(f"{source}: " + " ".join(problems))
        try:
            return cls(**{k: v for k, v in mine.items() if v is not None or k in _KEEPS_NULL}, other=other)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write adapter_config.json into a directory, which is made where it is missing."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (directory / CONFIG_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> LoRAConfig:
        """Read the adapter_config.json of a local directory (or the file itself).

        Raises AdapterFileError where it is missing or no JSON object, ConfigError where it is no LoRA adapter's.
        """
        path = Path(directory)
        path = path / CONFIG_NAME if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AdapterFileError(f"{path} does not exist; an adapter directory holds {CONFIG_NAME}.") from None
        except (ValueError, OSError) as error:
            raise AdapterFileError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise AdapterFileError(f"{path} holds a JSON {type(values).__name__}, not an object.")
        return cls.from_dict(values, source=str(path))


_EMPTY: tuple[Any, ...] = (None, False, {}, [], "")
# A null stands for the default, but where it would hide what the adapter is.
_KEEPS_NULL = {f.name for f in dataclasses.fields(LoRAConfig) if "None" in str(f.type)} | {"r", "lora_alpha"}
_FLAGS = ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "inference_mode")


def _value_problems(c: LoRAConfig) -> list[str]:
    found = []
    if not _is_int(c.r, 1):
        found.append(f"r={c.r!r}, but the rank must be a positive integer; 8 is the usual start.")
    if not _is_number(c.lora_alpha):
        found.append(f"lora_alpha={c.lora_alpha!r}, but it must be a positive number; r or 2r is usual.")
    if not (c.lora_dropout == 0 or _is_number(c.lora_dropout)) or c.lora_dropout >= 1:
        found.append(f"lora_dropout={c.lora_dropout!r}, but it is a probability in [0, 1).")
    if c.bias not in ("none", "all", "lora_only"):
        found.append(f'bias={c.bias!r}; the choices are "none", "all" and "lora_only".')
    if c.task_type is not None and c.task_type not in TASK_TYPES:
        found.append(f"task_type={c.task_type!r}; the choices are {', '.join(TASK_TYPES)} and None.")
    if not isinstance(c.init_lora_weights, bool | str) or c.init_lora_weights not in INITS:
        known = ", ".join(map(repr, INITS))
        found.append(f"init_lora_weights={c.init_lora_weights!r}; the choices are {known} and 'pissa_niter_N'.")
    found += [f"{n}={getattr(c, n)!r}, but it is True or False." for n in _FLAGS if not isinstance(getattr(c, n), bool)]
    return [*found, *_name_problems(c), *_pattern_problems(c), *_index_problems(c)]


def _name_problems(c: LoRAConfig) -> list[str]:
    found = []
    for name in ("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "layers_pattern"):
        value = getattr(c, name)
        if isinstance(value, str) and name in ("target_parameters", "modules_to_save"):
            found.append(f"{name}={value!r} is one string; write a list, [{value!r}].")
        elif value is not None and not isinstance(value, str) and not _is_names(value):
            found.append(f"{name}={value!r}, but it takes a list of names.")
    for name in ("exclude_modules", "target_modules"):
        value = getattr(c, name)
        if isinstance(value, str) and value not in PRESETS:
            found += _regex_problem(name, value)
    return found


def _pattern_problems(c: LoRAConfig) -> list[str]:
    found = []
    for name, fits, what in (("rank_pattern", _is_int, "integer"), ("alpha_pattern", _is_number, "number")):
        patterns = getattr(c, name)
        if not isinstance(patterns, dict) or not all(isinstance(k, str) for k in patterns):
            found.append(f"{name}={patterns!r}, but it maps regular expressions to values, {{'q_proj': 4}}.")
            continue
        found += [f"{name}[{k!r}]={v!r} must be a positive {what}." for k, v in patterns.items() if not fits(v)]
        found += [problem for k in patterns for problem in _regex_problem(name, k)]
    return found


def _index_problems(c: LoRAConfig) -> list[str]:
    found = []
    layers, tokens = c.layers_to_transform, c.trainable_token_indices
    if layers is not None and not _is_int(layers, 0) and not _is_indices(layers):
        found.append(f"layers_to_transform={layers!r}, but it takes layer numbers, [0, 1] or 3.")
    tables = list(tokens.values()) if isinstance(tokens, Mapping) else [] if tokens is None else [tokens]
    if not all(map(_is_indices, tables)):
        found.append(f"trainable_token_indices={tokens!r}, but it takes token numbers, or {{'embed_tokens': [...]}}.")
    return found


def _combination_problems(c: LoRAConfig) -> list[str]:
    found = []
    regex = isinstance(c.target_modules, str) and c.target_modules not in PRESETS
    if regex and c.layers_to_transform is not None:
        found.append("layers_to_transform goes with a list of target_modules; write the layers into the expression.")
    if c.layers_pattern and c.layers_to_transform is None:
        found.append("layers_pattern has no effect without layers_to_transform; give the layers' numbers as well.")
    if c.target_modules is not None and not c.target_modules and not (c.target_parameters or c.trainable_token_indices):
        found.append("target_modules is empty, so there is nothing to train; name layers, or use 'auto'.")
    if c.lora_bias and c.use_dora:
        found.append("lora_bias=True and use_dora=True exclude each other: DoRA's length has no place for a bias.")
    if c.lora_bias and c.init_lora_weights not in (True, False):
        found.append(f"lora_bias=True goes with init_lora_weights=True or False, not {c.init_lora_weights!r}.")
    if c.lora_bias and c.bias != "none":
        found.append(f"lora_bias=True and bias={c.bias!r} would train the same biases twice; choose one.")
    return found


def _regex_problem(name: str, pattern: str) -> list[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        return [f"{name}: {pattern!r} is not a regular expression: {error}."]
    return []


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value of the first pattern that the end of a name matches, on whole dotted words (PEFT's rule)."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), default)


def _is_int(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    """Return whether a value is a positive, finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_indices(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(_is_int(v, 0) for v in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, Sequence | set | frozenset) and all(isinstance(v, str) for v in value)


def _unique(names: Any) -> list[str]:
    return sorted(names) if isinstance(names, set | frozenset) else list(dict.fromkeys(names))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple | range):
        return [_plain(v) for v in value]
    return value
