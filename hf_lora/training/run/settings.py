"""What a run is made of: one table of settings, the flags of `hf-lora train` and the keys of its YAML file."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import ConfigError

__all__ = ["RunSettings"]


def _set(says: str, panel: str, default: Any = None) -> Any:
    """Return a field. says: the help of its flag. panel: under which heading the help lists it."""
    about = {"says": says, "panel": panel}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run. None stands for what the task, the model or the data decide; a finished run has no None
    where something was decided.

    `load` reads a YAML file, `save` writes one that `load` takes. Raises ConfigError for a value that cannot be.
    """

    model: str | None = _set("the base: an id of the Hub or a folder", "Model and data")
    task: str | None = _set(
        "what to learn (see `hf-lora tasks`); found from the columns where it is left out", "Model and data"
    )
    train: str | None = _set(
        "rows to train on: a CSV, TSV, JSONL, Parquet or text file, a folder of pictures or sounds, a Hub data set",
        "Model and data",
    )
    eval: str | None = _set(
        "rows to choose the best checkpoint by (default: a share of those to train on)", "Model and data"
    )
    test: str | None = _set("rows to measure the result on (default: a share of those to train on)", "Model and data")
    column: dict[str, str] = _set(
        "which column is what, as text=review; guessed where it is left out", "Model and data", {}
    )
    eval_share: float = _set("share of the rows to choose by, where --eval is not given", "Model and data", 0.1)
    test_share: float = _set("share of the rows to measure on, where --test is not given", "Model and data", 0.1)
    limit: int | None = _set("use at most so many rows of each file", "Model and data")
    max_length: int | None = _set("tokens of a row; what is longer is cut", "Model and data")
    skip_bad_rows: bool = _set("leave out rows that cannot be used, instead of stopping", "Model and data", False)

    output: str | None = _set("folder for the adapter and all that belongs to the run", "Output")
    push: str | None = _set("push the adapter to this repo of the Hub at the end", "Output")
    private: bool = _set("make that repo private", "Output", False)
    base_id: str | None = _set("the base's id on the Hub, where --model is a folder", "Output")
    language: str | None = _set("of the data, for the card", "Output")
    license: str | None = _set("of the adapter, for the card", "Output")

    r: int = _set("rank", "LoRA", 16)
    lora_alpha: float = _set("the update is scaled by alpha / r", "LoRA", 32)
    lora_dropout: float = _set("dropout before the adapters", "LoRA", 0.0)
    target_modules: str = _set(
        "auto, attention, all-linear, names with commas between, or a regular expression", "LoRA", "all-linear"
    )
    lora: dict[str, Any] = _set("any other setting of LoRAConfig, as use_dora=true", "LoRA", {})
    quantize: str | None = _set("load the base in 4bit or 8bit (bitsandbytes)", "LoRA")
    dtype: str | None = _set("of the base: float32, bfloat16, float16 (default: the checkpoint's)", "LoRA")

    epochs: float | None = _set("passes over the rows", "Training")
    max_steps: int | None = _set("stop after so many optimizer steps", "Training")
    batch_size: int | None = _set("rows a step on each device", "Training")
    accumulate: int = _set("batches that make a step", "Training", 1)
    learning_rate: float | None = _set("peak learning rate (default: the task's)", "Training")
    scheduler: str = _set("course of the learning rate", "Training", "cosine")
    warmup: float = _set("share of the steps in which the learning rate rises", "Training", 0.05)
    weight_decay: float = _set("AdamW's", "Training", 0.0)
    patience: int | None = _set("stop after so many evaluations without a better one", "Training")
    metric: list[str] = _set(
        "what to measure; the first chooses the best checkpoint (default: the task's)", "Training", []
    )
    seed: int = _set("of the split, the start and the order", "Training", 0)
    threads: int | None = _set("CPU threads; the same number gives the same bits again", "Training")
    trainer: dict[str, Any] = _set("any other argument of TrainingArguments, as max_grad_norm=0.5", "Training", {})

    packing: bool = _set("causal-lm: lay texts end to end in blocks of max_length", "Task", False)
    max_new_tokens: int | None = _set("tokens that the model may write in a prediction (default: 128)", "Task")

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise ConfigError(" ".join(problems))

    @classmethod
    def load(cls, path: Path | None, given: Mapping[str, Any]) -> RunSettings:
        """Return the settings of a YAML file (None for no file), with what was given instead of what it says."""
        return cls(**{**(_read(path) if path else {}), **given})

    def save(self, path: Path) -> None:
        """Write the settings as YAML, each with its help."""
        import yaml

        lines = []
        for each in fields(self):
            lines.append(f"# {each.metadata['says']}")
            lines.append(
                yaml.safe_dump({each.name: getattr(self, each.name)}, allow_unicode=True, sort_keys=False).strip()
            )
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())}") from error
    names = [each.name for each in fields(RunSettings)]
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path}: it holds no settings, such as `model: gpt2`.")
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
            raise ConfigError(f"--config {path}: there is no setting {name!r}; {hint}")
    return found


def _problems(settings: RunSettings) -> typing.Iterator[str]:
    """Yield what is of another type than its setting, or out of its range."""
    hints = typing.get_type_hints(RunSettings)
    for each in fields(settings):
        value, kind = getattr(settings, each.name), hints[each.name]
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        plain = tuple(typing.get_origin(k) or k for k in kinds)
        if float in plain and type(value) is int:
            continue
        if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
            raise ConfigError(f"{each.name}={value!r}: it is a {type(value).__name__}, and has to be {_words(plain)}.")
    if (
        not 0 < settings.eval_share < 1
        or not 0 <= settings.test_share < 1
        or settings.eval_share + settings.test_share >= 1
    ):
        yield f"eval_share={settings.eval_share}, test_share={settings.test_share}: they are shares, together below 1."
    for name in (
        "r",
        "limit",
        "max_length",
        "batch_size",
        "accumulate",
        "max_steps",
        "patience",
        "threads",
        "epochs",
        "learning_rate",
    ):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            yield f"{name}={value}: it has to be above 0."
    if settings.quantize not in (None, "4bit", "8bit"):
        yield f"quantize={settings.quantize!r}: it is 4bit or 8bit."


def _words(kinds: tuple[Any, ...]) -> str:
    return " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
