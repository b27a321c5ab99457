"""What a config names and a model has not: keys of patterns and exclusions that would change nothing.

A key of rank_pattern or alpha_pattern has to be the first one that matches some adapted layer. An exclusion has to
match something, and not only the modules around what is adapted.
"""

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ..config.lora_config import LoRAConfig, key_for
from ..errors import numberless, some
from .names import find_targets, is_saved, match_names, meant, parameter_names
from .reads import is_named_in_a_call

PATTERNS = ("rank_pattern", "alpha_pattern")


def idle_settings(
    model: nn.Module, config: LoRAConfig, modules: Mapping[str, nn.Module], adapted: Collection[str]
) -> Iterator[str]:
    """Yield a sentence for every key of patterns and every exclusion of a config that would change nothing.

    modules: the model's own, by full name. adapted: the names of the layers and parameters that the config adapts.
    """
    if not (config.rank_pattern or config.alpha_pattern or config.exclude_modules):
        return
    names = [*modules, *parameter_names(modules)]
    yield from idle_keys(config, adapted, names)
    if config.exclude_modules:
        targets, parameters = find_targets(model, config.copy(exclude_modules=None), modules)
        yield from _idle_exclusions(config, [*targets, *parameters], names)


def idle_tables(modules: Mapping[str, nn.Module], names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for every embedding of some names that the model never calls, but others tied to it do.

    T5's and BART's `shared` are such.
    """
    for name in names:
        table, (owner, _, child) = modules[name], name.rpartition(".")
        if isinstance(table, nn.Embedding) and owner in modules and not is_named_in_a_call(modules[owner], child):
            weight = table._parameters.get("weight")
            others = [
                n for n, m in modules.items()
                if m is not table and isinstance(m, nn.Embedding) and m._parameters.get("weight") is weight
            ]  # fmt: skip
            if others:
                yield f"{name} is never called, so nothing there would train; name {', '.join(others)} instead."


def warn_of_saved_targets(config: LoRAConfig, modules: Mapping[str, nn.Module]) -> None:
    """Warn of entries of target_modules whose layers all lie in modules_to_save, which goes before, as in PEFT."""
    entries, saved = config.target_modules, config.modules_to_save
    for entry in entries if saved and entries and not isinstance(entries, str) else ():
        if all(is_saved(config, name) for name in match_names([entry], modules)):
            warnings.warn(
                f"target_modules: {entry!r} lies in modules_to_save={saved!r}, so it trains in full and carries no "
                "low-rank adapter; name it in one of them.",
                stacklevel=6,
            )


def warn_of_no_biases(model: nn.Module, config: LoRAConfig, biases: Collection[object]) -> None:
    """Warn of a setting that trains biases where there are none: one config serves many models."""
    if config.bias != "none" and not biases:
        whose = f"{type(model).__name__} has no" if config.bias == "all" else "no adapted layer has a"
        warnings.warn(f"bias={config.bias!r}: {whose} bias, so it has no effect here.", stacklevel=6)


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


def _idle_exclusions(config: LoRAConfig, candidates: Collection[str], names: Collection[str]) -> Iterator[str]:
    """Yield a sentence for every exclusion that takes nothing away though it looks as if it did."""
    out = config.exclude_modules
    for entry in [out] if isinstance(out, str) else out or ():
        if isinstance(out, str):
            hit = {name for name in names if name and re.fullmatch(out, name)}
        else:
            hit = set(match_names([entry], names))
        inside = [name for name in candidates if any(name.startswith(f"{each}.") for each in hit)]
        if not hit:
            yield f"exclude_modules: {entry!r} matches nothing{meant(entry, names, isinstance(out, str))}."
        elif inside and hit.isdisjoint(candidates):
            yield (
                f"exclude_modules: {entry!r} matches {some(sorted(hit), 1)} itself and nothing inside it, where "
                f"{some(inside, 1)} would be adapted; write an expression that matches the layers' full names, "
                f"{'.*' + re.escape(entry.rpartition('.')[2]) + '[.].*'!r}."
            )


def _why_not(key: str, adapted: Collection[str], names: Collection[str]) -> str:
    if found := [name for name in names if name and key_for({key: None}, name)]:
        return f", only {some(dict.fromkeys(map(numberless, found)), 2)}, which the targets leave out."
    if not adapted:
        return ": the config adapts none."
    return (
        f"{meant(key, adapted)}. A key is a regular expression for the end of a layer's full name, such as "
        f"{next(iter(adapted))}, on whole words."
    )
