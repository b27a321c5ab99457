"""The keys of somebody's adapter_config.json: which are ours, which are kept, and what a file may not hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ..variants.initial import INITS
from ..variants.table import settings, switches
from .keys import FORMULA_WORDS, INERT, PEFT, PRESETS, UNSUPPORTED
from .rules import is_layers, may_hang

_EMPTY: tuple[Any, ...] = (None, False, {}, [], "")


class FileKeys(NamedTuple):
    """An adapter_config.json by keys: ours, those that are kept, unknown ones of a newer PEFT; and what is wrong."""

    mine: dict[str, Any]
    other: dict[str, Any]
    newer: dict[str, Any]
    problems: list[str]

    @classmethod
    def of(cls, values: Mapping[str, Any], fields: Collection[str], ignore_unknown: bool) -> FileKeys:
        """Return the sorted keys of a file's config. fields: the names of a LoRAConfig's."""
        keys, kept = cls({}, {}, {}, []), {*INERT, *settings()}
        is_newer = (version_of(values.get("peft_version")) or PEFT) > PEFT
        for key, value in values.items():
            if key in fields and key != "other":
                keys.mine[key] = value
            elif key in kept:
                keys.other[key] = value
            elif key in UNSUPPORTED:
                if value != UNSUPPORTED[key] and value is not None:
                    keys.problems.append(f"{key}={value!r} asks for something that hf_lora does not build.")
            elif key != "peft_type" and value not in _EMPTY:
                keys.other[key] = value
                if is_newer and not _formula_words() & {*key.split("_")}:
                    keys.newer[key] = value
                elif not ignore_unknown:
                    keys.problems.append(
                        f"unknown key {key}={value!r}; if it has no effect, delete it from the file or read it with "
                        "LoRAConfig.from_pretrained(..., ignore_unknown=True)."
                    )
        return keys


def _formula_words() -> set[str]:
    named = [*switches(), *(name for name in INITS if isinstance(name, str))]
    return {*FORMULA_WORDS, *(word for name in named for word in name.split("_"))}


def version_of(text: object) -> tuple[int, ...] | None:
    """Return the three numbers of a version of PEFT, None where it is none."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", text) if isinstance(text, str) else None
    return tuple(int(number or 0) for number in found.groups()) if found else None


def unreadable(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a file may not hold: expressions that can take for ever, and layers counted from the end."""
    for pattern in _expressions(values):
        if may_hang(pattern):
            yield (
                f"the expression {pattern!r:.200} is too long, or repeats a repeat, which can take for ever; rewrite "
                "it."
            )
    layers = values.get("layers_to_transform")
    if is_layers(layers) and not is_layers(layers, 0):
        yield f"layers_to_transform={layers!r}: a file has no layers that are counted from the end."


def _expressions(values: Mapping[str, Any]) -> list[str]:
    """Return the regular expressions among a config's values, of whatever type these are."""
    single = [v for key in ("target_modules", "exclude_modules") if isinstance(v := values.get(key), str)]
    patterns = [v for key in ("rank_pattern", "alpha_pattern") if isinstance(v := values.get(key), Mapping)]
    found = [*single, *(key for each in patterns for key in each if isinstance(key, str))]
    return [pattern for pattern in found if pattern not in PRESETS]
