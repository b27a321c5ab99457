"""What a search may draw: choices and ranges by name, checked before anything trains."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from ..config.lora_config import LoRAConfig
from ..config.words import OTHER_NAMES
from ..errors import ArgumentError, ConfigError

_FIXED = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "other", "revision", "seed",
    "task_type",
}  # fmt: skip
ADAPTERS = {field.name for field in dataclasses.fields(LoRAConfig)} - _FIXED | {"scaling"}
_TRAINERS = {field.name for field in dataclasses.fields(TrainingArguments)}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: whole ones where both ends are `int`. log: drawn on a log scale.

    Raises ConfigError for ends that are no range.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ConfigError(f"{self} is no range: low is at most high, and above 0 on a log scale.")

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


def checked(space: Space) -> Space:
    """Return a space. Raises ConfigError for every name that cannot be searched, and for what are no choices."""
    if not isinstance(space, Mapping):
        raise ArgumentError(
            f"the search space: {space!r:.200} is no mapping; give names with their choices, {{'r': (4, 8), "
            "'learning_rate': Range(1e-4, 1e-3, log=True)}."
        )
    known, problems = sorted(ADAPTERS | _TRAINERS), [] if space else ["it is empty"]
    for name, where in space.items():
        if name not in known:
            usual = OTHER_NAMES.get(str(name))
            near = [usual] if usual else difflib.get_close_matches(str(name), known, 3, 0.5)
            problems.append(f"{name!r} is no setting that can be searched; the nearest are {', '.join(near) or 'none'}")
        if not isinstance(where, Range) and not (isinstance(where, list | tuple) and where):
            problems.append(f"{name}={where!r}, but choices are a list or tuple, and numbers between two a Range")
    if {"scaling", "lora_alpha"} <= space.keys():
        problems.append("scaling and lora_alpha say the same thing twice (scaling = lora_alpha / r)")
    if problems:
        raise ConfigError(f"the search space: {'; '.join(problems)}.")
    return space


def suggested(trial: Any, name: str, where: Sequence[Any] | Range) -> Any:
    """Return what an Optuna trial draws for a name, as it is stored."""
    if isinstance(where, Range):
        return where.suggest(trial, name)
    return trial.suggest_categorical(name, list(dict.fromkeys(map(_stored, where))))


def meant(value: Any, where: Sequence[Any] | Range) -> Any:
    """Return the choice that a stored value stands for."""
    choices = () if isinstance(where, Range) else where
    return next((choice for choice in choices if _stored(choice) == value), value)


def _stored(choice: Any) -> Any:
    """Return what Optuna can store of a choice: itself, or its text where it is a list or a mapping."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else str(choice)
