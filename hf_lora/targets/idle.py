"""What a config names and a model has not: keys of patterns and exclusions that would change nothing.

A key of rank_pattern or alpha_pattern has to be the first one that matches some adapted layer. An exclusion has to
match something, and not only the modules around what is adapted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ..config.lora_config import LoRAConfig, key_for
from ..errors import numberless, some

__all__ = ["idle_exclusions", "idle_keys", "nearest"]

PATTERNS = ("rank_pattern", "alpha_pattern")


def idle_keys(config: LoRAConfig, adapted: Collection[str], names: Collection[str]) -> Iterator[str]:
    """Yield a sentence for every key of a config's patterns that sets nothing.

    adapted: the full names of the adapted layers and parameters. names: those of all modules and parameters.
    """
    for setting in PATTERNS:
        patterns: Mapping[str, Any] = getattr(config, setting)
        first = {key_for(patterns, name) for name in adapted} if patterns else set()
        for key, value in patterns.items():
            if key in first:
                continue
            matched = [name for name in adapted if key_for({key: value}, name)]
            if any(patterns[str(key_for(patterns, name))] != value for name in matched):
                yield (
                    f"{setting}: {key!r} has no effect, because an earlier key matches the same layers and the first "
                    "one counts; write it before that one."
                )
            elif not matched:
                yield f"{setting}: {key!r} matches no adapted layer{_why_not(key, adapted, names)}"


def idle_exclusions(config: LoRAConfig, candidates: Collection[str], names: Collection[str]) -> Iterator[str]:
    """Yield a sentence for every exclusion that takes nothing away though it looks as if it did.

    candidates: what would be adapted without exclusions. names: those of all modules and parameters.
    """
    out = config.exclude_modules
    for entry in [out] if isinstance(out, str) else out or ():
        if isinstance(out, str):
            hit = {name for name in names if name and re.fullmatch(out, name)}
        else:
            hit = {name for name in names if name == entry or name.endswith(f".{entry}")}
        inside = [name for name in candidates if any(name.startswith(f"{each}.") for each in hit)]
        if not hit:
            yield f"exclude_modules: {entry!r} matches nothing{_meant(entry, names, isinstance(out, str))}."
        elif inside and hit.isdisjoint(candidates):
            yield (
                f"exclude_modules: {entry!r} matches {some(sorted(hit), 1)} itself and nothing inside it, where "
                f"{some(inside, 1)} would be adapted; write an expression that matches the layers' full names, "
                f"{'.*' + re.escape(entry.rpartition('.')[2]) + '[.].*'!r}."
            )


def nearest(entry: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return the last words of names that are most like an entry's last word."""
    leaves = dict.fromkeys(n.rpartition(".")[2] for n in names if n and not n.rpartition(".")[2].isdigit())
    word = re.sub(r"\W+", ".", re.sub(r"\\[.]|\[[.]\]", ".", entry)).strip(".").rpartition(".")[2]
    return difflib.get_close_matches(word, leaves, n=most, cutoff=0.5)


def _why_not(key: str, adapted: Collection[str], names: Collection[str]) -> str:
    if found := [name for name in names if name and key_for({key: None}, name)]:
        return f", only {some(dict.fromkeys(map(numberless, found)), 2)}, which the targets leave out."
    if not adapted:
        return ": the config adapts none."
    return (
        f"{_meant(key, adapted, False)}. A key is a regular expression for the end of a layer's full name, such as "
        f"{next(iter(adapted))}, on whole words."
    )


def _meant(entry: str, names: Collection[str], is_expression: bool) -> str:
    """Say which names somebody may have meant, and how a string is read."""
    if is_expression and any(name == entry or name.endswith(f".{entry}") for name in names):
        return f": a string is a regular expression for the full name. Write a list, [{entry!r}]"
    near = nearest(entry, names)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
