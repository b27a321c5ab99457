"""What a hyper-parameter search may try: choices and ranges by name, all of them checked before the first trial."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.lora_config import LoRAConfig
from ..errors import ConfigError
from ..variants.table import scaling_of

__all__ = ["Range", "Space", "checked_space", "config_with", "default_space", "labels"]

_COMBINATIONS = 10_000  # of choices that are tried as a LoRAConfig each, at about 10 microseconds
_FIXED = (
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "other",
    "revision",
    "task_type",
)
LORA_NAMES = {field.name for field in dataclasses.fields(LoRAConfig)} - {*_FIXED} | {"scaling"}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: whole ones where both ends are `int`. log: drawn on a log scale.

    Raises ConfigError for ends that are no range.

    >>> Range(1e-4, 1e-2, log=True)
    Range(low=0.0001, high=0.01, log=True)
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in ends):
            raise ConfigError(f"{self}: the ends of a range are finite numbers.")
        if not self.low < self.high:
            raise ConfigError(f"{self}: low must be below high; for a choice of values write a list, {list(ends)}.")
        if self.log and self.low <= 0:
            raise ConfigError(f"{self}: a log scale starts above 0.")

    def suggest(self, trial: Any, name: str) -> float:
        """Return the value that an Optuna trial draws."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        drawn: float = (trial.suggest_int if whole else trial.suggest_float)(name, self.low, self.high, log=self.log)
        return drawn


Space = Mapping[str, Sequence[Any] | Range]


def default_space(config: LoRAConfig) -> Space:
    """Return what is worth trying first, given a config.

    r: 4 to 32 in doublings; little is gained above (Hu et al. 2021, section 7.2). scaling: 1 and 2, that is lora_alpha
    = r and 2r, so that the rank alone does not change the step. target_modules: where the config leaves the default,
    attention's two projections against every linear layer, which Dettmers et al. 2023 (QLoRA) found to need.
    learning_rate: 1e-4 to 5e-3; adapters want about ten times what full fine-tuning takes.
    """
    targets = {"target_modules": ("auto", "all-linear")} if config.target_modules == "auto" else {}
    return {"r": (4, 8, 16, 32), "scaling": (1, 2), **targets, "learning_rate": Range(1e-4, 5e-3, log=True)}


def checked_space(space: Space, config: LoRAConfig) -> dict[str, tuple[Any, ...] | Range]:
    """Return a space whose every value can be, choices as tuples. Raises ConfigError with every problem found."""
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(f"space={space!r}; it maps names to choices or ranges, {{'r': (4, 8), ...}}.")
    problems = [problem for name, where in space.items() for problem in _problems(name, where)]
    if {"scaling", "lora_alpha"} <= space.keys():
        problems.append("scaling and lora_alpha say the same thing twice (scaling = lora_alpha / r); keep one of them.")
    found = {} if problems else {n: w if isinstance(w, Range) else tuple(w) for n, w in space.items()}
    if problems := problems or list(dict.fromkeys(_config_problems(found, config))):
        raise ConfigError("the search space: " + " ".join(problems))
    return found


def labels(choices: Sequence[Any]) -> dict[Any, Any]:
    """Return choices by what Optuna can store of each: itself, or its text where it is a list or a mapping."""
    return {_label(choice): choice for choice in choices}


def config_with(config: LoRAConfig, values: Mapping[str, Any]) -> LoRAConfig:
    """Return a config with some fields changed; `scaling` sets the lora_alpha that gives it. Raises ConfigError."""
    fields = {name: value for name, value in values.items() if name != "scaling"}
    config = config.copy(**fields)
    if "scaling" not in values:
        return config
    if not isinstance(values["scaling"], int | float):
        raise ConfigError(f"LoRAConfig: scaling={values['scaling']!r}, but it must be a positive number.")
    alpha = values["scaling"] / scaling_of(config).of(1.0, config.r)
    return config.copy(lora_alpha=int(alpha) if float(alpha).is_integer() else alpha)


def _problems(name: str, where: object) -> Iterator[str]:
    from transformers import TrainingArguments

    known = LORA_NAMES | {field.name for field in dataclasses.fields(TrainingArguments)}
    if name not in known:
        near = difflib.get_close_matches(str(name), sorted(known), 3, 0.5)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        yield f"{name!r} is neither a field of LoRAConfig that can be searched nor one of TrainingArguments{hint}."
    if isinstance(where, Range):
        return
    if isinstance(where, str) or not isinstance(where, Sequence) or not where:
        yield f"{name}={where!r}; write the choices as a list or tuple, or Range(low, high, log=...)."
    elif len({_label(choice) for choice in where}) < len(where):
        yield f"{name}={where!r} names a choice twice (1, 1.0 and True are the same to Optuna)."


def _config_problems(space: Mapping[str, tuple[Any, ...] | Range], config: LoRAConfig) -> Iterator[str]:
    """Yield what is wrong with the configs that a space can make, its ranges' ends for all of a range."""
    names = [name for name in space if name in LORA_NAMES]
    tried = ((where.low, where.high) if isinstance(where, Range) else where for where in (space[n] for n in names))
    for values in itertools.islice(itertools.product(*tried), _COMBINATIONS):
        try:
            config_with(config, dict(zip(names, values, strict=True)))
        except ConfigError as error:
            yield str(error).removeprefix("LoRAConfig: ")


def _label(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else str(choice)
