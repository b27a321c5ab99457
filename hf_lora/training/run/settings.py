"""What a run is made of: one table of settings, the flags of `hf-lora train` and the keys of its YAML file."""

from __future__ import annotations

import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError
from ...files.disk import write_whole

__all__ = ["RunSettings", "read_yaml", "unknown_names", "wrong_type"]


_THREADS = 1024  # so many more than processors have; torch crashes where the system gives no further ones
_MANY = 2**20  # more rows of a batch, or batches of a step, than anybody means
_BOUNDS = {"above": operator.gt, "at least": operator.ge, "at most": operator.le, "below": operator.lt}


def _set(says: str, panel: str, default: Any = None, choices: Sequence[str] = (), **bounds: float) -> Any:
    """Return a field. says: the help of its flag. panel: under which heading the help lists it. choices: what a text
    can be. bounds: of a number, by `_BOUNDS`, as at_least=0."""
    limits = {name.replace("_", " "): bound for name, bound in bounds.items()}
    about = {"says": says, "panel": panel, "choices": choices, "bounds": limits}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run. None stands for what the task, the model or the data decide; a finished run has no None
    where something was decided.

    Raises ConfigError for values that cannot be.
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
    eval_share: float | None = _set(
        "share of the rows to choose by, where --eval is not given (default: a tenth, 5,000 rows at most)",
        "Model and data",
        above=0,
        below=1,
    )
    test_share: float | None = _set(
        "share of the rows to measure on, where --test is not given; 0 for none (default: a tenth, 5,000 rows at most)",
        "Model and data",
        at_least=0,
        below=1,
    )
    limit: int | None = _set("use at most so many rows of each file", "Model and data", above=0)
    max_length: int | None = _set("tokens of a row; what is longer is cut", "Model and data", above=0)
    encoding: str | None = _set("of files of text that are not UTF-8, as cp1252", "Model and data")
    skip_bad_rows: bool = _set("leave out rows that cannot be used, instead of stopping", "Model and data", False)

    augment: bool = _set("pictures: cut and mirror those to train on at random", "Task", False)
    box_format: str | None = _set(
        "object-detection: how rows write boxes (default: found out)",
        "Task",
        choices=("coco", "pascal_voc", "albumentations", "yolo"),
    )
    threshold: float | None = _set(
        "object-detection: least score of what is predicted (default: 0.5)", "Task", at_least=0, at_most=1
    )
    speech_task: str | None = _set(
        "speech-recognition by Whisper: write what is said, or translate it into English (default: transcribe)",
        "Task",
        choices=("transcribe", "translate"),
    )
    max_seconds: float | None = _set("sounds: seconds of one that are used (default: the model's)", "Task", above=0)

    output: str | None = _set("folder for the adapter and all that belongs to the run", "Output")
    push: str | None = _set("push the adapter to this repo of the Hub at the end", "Output")
    private: bool = _set("make that repo private", "Output", False)
    base_id: str | None = _set("the base's id on the Hub, where --model is a folder", "Output")
    language: str | None = _set("of the data, as en: for the card, and for Whisper", "Output")
    license: str | None = _set("of the adapter, for the card, as apache-2.0", "Output")

    r: int = _set("rank", "LoRA", 16, above=0, at_most=2**16)
    lora_alpha: float = _set("the update is scaled by alpha / r", "LoRA", 32, above=0, at_most=1e6)
    lora_dropout: float = _set("dropout before the adapters", "LoRA", 0.0, at_least=0, below=1)
    target_modules: str = _set(
        "auto, attention, all-linear, names with commas between, or a regular expression", "LoRA", "all-linear"
    )
    lora: dict[str, Any] = _set("any other setting of LoRAConfig, as bias=lora_only", "LoRA", {})
    quantize: str | None = _set("load the base in 4bit or 8bit (bitsandbytes)", "LoRA", choices=("4bit", "8bit"))
    dtype: str | None = _set(
        "of the base (default: the checkpoint's)", "LoRA", choices=("float32", "bfloat16", "float16")
    )

    epochs: float | None = _set("passes over the rows (default: the task's)", "Training", above=0, at_most=1e6)
    max_steps: int | None = _set("stop after so many optimizer steps", "Training", above=0, at_most=10**9)
    batch_size: int | None = _set(
        "rows a step on each device (default: the task's)", "Training", above=0, at_most=_MANY
    )
    accumulate: int = _set("batches that make a step", "Training", 1, above=0, at_most=_MANY)
    learning_rate: float | None = _set(
        "peak learning rate (default: the task's, times what the variant needs)", "Training", above=0, at_most=10
    )
    scheduler: str = _set("course of the learning rate", "Training", "cosine")
    warmup: float = _set("share of the steps in which the learning rate rises", "Training", 0.05, at_least=0, below=1)
    weight_decay: float = _set("AdamW's", "Training", 0.0, at_least=0, at_most=10)
    precision: str | None = _set(
        "of the arithmetic (default: bf16 on a GPU that has it)", "Training", choices=("float32", "bf16", "fp16")
    )
    gradient_checkpointing: bool = _set("compute activations twice, and keep fewer", "Training", False)
    eval_steps: int | None = _set(
        "steps between evaluations, with a checkpoint each (default: once an epoch, and every 1,000 steps)",
        "Training",
        above=0,
    )
    patience: int | None = _set("stop after so many evaluations without a better one", "Training", above=0)
    metric: list[str] = _set(
        "what to measure; the first chooses the best checkpoint (default: the task's)", "Training", []
    )
    seed: int = _set("of the split, the start and the order", "Training", 0, at_least=0, below=2**32)
    threads: int | None = _set(
        "CPU threads; the same number gives the same bits again (default: what is fastest here)",
        "Training",
        above=0,
        at_most=_THREADS,
    )
    trainer: dict[str, Any] = _set("any other argument of TrainingArguments, as max_grad_norm=0.5", "Training", {})

    packing: bool = _set("causal-lm: lay texts end to end in blocks of max_length", "Task", False)
    max_new_tokens: int | None = _set("tokens that the model may write in a prediction (default: 128)", "Task", above=0)
    chat_template: str | None = _set("chat: simple, trl, or a file with a template, instead of the tokenizer's", "Task")
    answers: str = _set(
        "chat: learn all answers of a conversation, or the last", "Task", "all", choices=("all", "last")
    )
    beta: float | None = _set("preference: how much it costs to differ from the base (default: 0.1)", "Task", above=0)
    max_target_length: int | None = _set(
        "summarization, translation: tokens of what is written (default: 128)", "Task", above=0
    )
    prefix: str | None = _set(
        "summarization, translation: what stands before each text (default: what the base was taught)", "Task"
    )
    source_lang: str | None = _set("translation: the language to read, as de or the base's own word for it", "Task")
    target_lang: str | None = _set("translation: the language to write", "Task")

    def __post_init__(self) -> None:
        if problems := list(_problems(self)) or list(_ranges(self)):
            raise ConfigError(" ".join(problems))

    def of_tasks(self) -> list[str]:
        """Return the settings that only some tasks have and that somebody set."""
        return [
            each.name
            for each in fields(self)
            if each.metadata["panel"] == "Task" and getattr(self, each.name) != each.default
        ]

    @classmethod
    def load(cls, path: Path | None, given: Mapping[str, Any]) -> RunSettings:
        """Return the settings of a YAML file (None for no file), with what was given instead of what it says."""
        found = _read(path) if path else {}
        both = {name: {**found[name], **value} for name, value in given.items() if isinstance(found.get(name), dict)}
        return cls(**{**found, **given, **both})

    def save(self, path: Path) -> None:
        """Write the settings as YAML, each with its help."""
        lines = []
        for each in fields(self):
            said = yaml.dump({each.name: getattr(self, each.name)}, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
            lines.append(f"# {each.metadata['says']}\n{said}")
        write_whole(path, "".join(lines))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, so that 3e-4 is one, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} is there twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """It quotes the texts that `_Loader` would read as numbers."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def read_yaml(text: str) -> Any:
    """Return what a YAML text says. Raises yaml.YAMLError.

    >>> read_yaml("3e-4"), read_yaml("true"), read_yaml("query,value")
    (0.0003, True, 'query,value')
    """
    return yaml.load(text, _Loader)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path}: it holds no settings, such as `model: gpt2`.")
    if unknown := unknown_names(found, [each.name for each in fields(RunSettings)]):
        raise ConfigError(f"--config {path}: {unknown}")
    return found


def unknown_names(given: Iterable[Any], known: Sequence[str]) -> str:
    """Return what to tell of settings that are not among those known, with the nearest one; nothing if all are."""
    told = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
            told.append(f"there is no setting {name!r}; {hint}")
    return " ".join(told)


def _problems(settings: RunSettings) -> Iterator[str]:
    """Yield what is of another type than its setting, or out of its range."""
    hints = typing.get_type_hints(RunSettings)
    for each in fields(settings):
        value = getattr(settings, each.name)
        is_number = type(value) in (int, float)
        if wrong := wrong_type(each.name, value, hints[each.name]):
            yield wrong
        elif is_number and not math.isfinite(value):
            yield f"{each.name}={value}: it is not a finite number."
        elif is_number and (missed := _missed(value, each.metadata["bounds"])):
            yield f"{each.name}={value}: it has to be {missed}."
        elif value is not None and (choices := each.metadata["choices"]) and value not in choices:
            yield f"{each.name}={value!r}: it is one of {', '.join(choices)}."


def _missed(value: float, bounds: Mapping[str, float]) -> str:
    """Return the bounds of a number in words where it is outside of them; nothing where it is inside."""
    if all(_BOUNDS[name](value, bound) for name, bound in bounds.items()):
        return ""
    return " and ".join(f"{name} {bound:,}" for name, bound in bounds.items())


def _ranges(settings: RunSettings) -> Iterator[str]:
    """Yield what is out of the range that it has beside others."""
    shares = settings.eval_share or 0, settings.test_share or 0
    if sum(shares) >= 1:
        yield f"eval_share={shares[0]}, test_share={shares[1]}: they are shares, together below 1."
    for role, name in settings.column.items():
        if not isinstance(role, str) or not isinstance(name, str):
            yield f"column {role!r}: {name!r} is no text; write quotes around what is a column's name."


def wrong_type(name: str, value: Any, kind: Any) -> str:
    """Return what to tell of a value that is of another type than a setting; nothing where it fits, or nobody knows.

    >>> wrong_type("epochs", "many", float | None), wrong_type("epochs", 3, float | None)
    ("epochs='many': it is a text, and has to be a number or nothing.", '')
    """
    kinds = [typing.get_origin(each) or each for each in (typing.get_args(kind) if _is_union(kind) else (kind,))]
    if not set(kinds) <= _WORDS.keys() or (type(value) is int and float in kinds):
        return ""
    if isinstance(value, tuple(kinds)) and not (isinstance(value, bool) and bool not in kinds):
        return ""
    has_to_be = " or ".join(_WORDS[each] for each in kinds)
    return f"{name}={value!r}: it is {_WORDS.get(type(value), type(value).__name__)}, and has to be {has_to_be}."


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union


_WORDS: dict[Any, str] = {
    type(None): "nothing", str: "a text", int: "a whole number", float: "a number", bool: "true or false",
    list: "a list", dict: "names with values",
}  # fmt: skip
