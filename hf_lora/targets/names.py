"""Which modules a config names: PEFT's rules for lists and expressions, the structure's for presets.

A list entry matches a module whose full name it is, or ends, on whole dotted words; a string is a regular expression
for the whole name, unless it is one of the presets (`presets.py`).
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from ..config.keys import PRESETS
from ..config.lora_config import LoRAConfig
from ..errors import TargetError, beginnings, full_name, some
from ..layers.layer import base_modules
from .presets import preset_targets
from .tree import is_linear
from .words import letters


def resolve_targets(model: nn.Module, spec: str | Sequence[str]) -> tuple[str, ...]:
    """Return the full names of what a `target_modules` value names on a model, in model order.

    spec: "auto", "attention", "all-linear", a list of names or endings, or a regular expression. Weights that are no
    layer's (fused experts, which "all-linear" reaches) are given as full parameter names.
    Raises TargetError where nothing matches.

    >>> resolve_targets(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0"])
    ('0',)
    """
    config = LoRAConfig(target_modules=spec if isinstance(spec, str) else list(spec))
    modules, parameters = find_targets(model, config, dict(base_modules(model)))
    return (*modules, *parameters)


def find_targets(model: nn.Module, config: LoRAConfig, modules: Mapping[str, nn.Module]) -> tuple[list[str], list[str]]:
    """Return (modules, raw parameters) that a config targets, full names in model order.

    modules: the model's own, by full name. Raises TargetError for an entry that matches nothing, with the nearest
    names there are.
    """
    names = parameter_names(modules)
    if config.target_modules in PRESETS:
        found = [n for n in preset_targets(model, config.target_modules) if _in_layers(config, n)]
        found = [n for n in found if not _is_out(config, n)]
    else:
        found = _listed(model, config, modules)
    wanted = config.target_parameters or ()
    named = [n for n in match_names(wanted, names) if n in wanted or _in_layers(config, n)]
    if missing := [e for e in wanted if not match_names([e], named)]:
        raise TargetError(_nothing(model, missing, names, config, what="target_parameters"))
    raw = {n for n in found if n not in modules} | {n for n in named if not _is_out(config, n)}
    return [n for n in found if n in modules], [n for n in names if n in raw]


def parameter_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the full names of the parameters that modules own."""
    return [full_name(n, p) for n, m in modules.items() for p, v in m._parameters.items() if v is not None]


def _listed(model: nn.Module, config: LoRAConfig, modules: Mapping[str, nn.Module]) -> list[str]:
    spec = config.target_modules
    if not spec:
        return []
    named = _named(config, modules)
    entries = [spec] if isinstance(spec, str) else spec
    if missing := [e for e in entries if not (named if isinstance(spec, str) else match_names([e], named))]:
        raise TargetError(_nothing(model, missing, modules, config))
    kept = listed_modules(config, modules)
    if not kept:
        raise TargetError(
            f"{type(model).__name__}: every layer that target_modules={spec!r} match is excluded by "
            "exclude_modules or lies inside modules_to_save."
        )
    return kept


def listed_modules(config: LoRAConfig, names: Iterable[str]) -> list[str]:
    """Return the names that a config's own list or expression targets, exclusions taken off; none for a preset."""
    if config.target_modules is None or config.target_modules in PRESETS:
        return []
    return [n for n in _named(config, names) if not _is_out(config, n)]


def match_names(endings: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names that one of the endings ends on whole dotted words (or is), in their order."""
    wanted = tuple(endings)
    tails = tuple(f".{e}" for e in wanted)
    return [n for n in names if n and (n in wanted or n.endswith(tails))] if wanted else []


def saved_modules(endings: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names that modules_to_save entries match: PEFT's rule there is any ending, whole word or not."""
    wanted = tuple(endings)
    return [n for n in names if n and n.endswith(wanted)] if wanted else []


def is_inside(name: str, prefix: str) -> bool:
    """Return whether a dotted name is a prefix, whole words, or lies below it; "" is the prefix of all."""
    return not prefix or name == prefix or name.startswith(prefix + ".")


def as_endings(names: Collection[str], all_names: Collection[str]) -> list[str]:
    """Return the shortest list entries that match exactly these names among all names, sorted.

    What a preset found is written so that PEFT, which takes lists only, finds the same modules.
    """
    chosen, endings, exact = set(names), set(), {}
    for name in names:
        words = name.split(".")
        for start in range(len(words) - 1, -1, -1):
            tail = ".".join(words[start:])
            if tail not in exact:
                exact[tail] = chosen.issuperset(match_names([tail], all_names))
            if exact[tail]:
                break
        endings.add(tail)
    return sorted(endings)


def _named(config: LoRAConfig, names: Iterable[str]) -> list[str]:
    spec = config.target_modules
    assert spec is not None
    if isinstance(spec, str):
        return [n for n in names if n and re.fullmatch(spec, n)]
    named = [n for n in match_names(spec, names) if ".parametrizations." not in n]  # of what computes a layer's weight
    return [n for n in named if n in spec or _in_layers(config, n)]


def is_excluded(config: LoRAConfig, name: str) -> bool:
    """Return whether a module of that full name is one of exclude_modules."""
    out = config.exclude_modules
    return bool(out and (re.fullmatch(out, name) if isinstance(out, str) else match_names(out, [name])))


def is_left_out(config: LoRAConfig, name: str) -> bool:
    """Return whether exclude_modules or layers_to_transform keep a module of that full name from being adapted."""
    listed = not isinstance(config.target_modules, str) and name in (config.target_modules or ())
    return is_excluded(config, name) or not (listed or _in_layers(config, name))


def _is_out(config: LoRAConfig, name: str) -> bool:
    if is_excluded(config, name):
        return True
    return is_saved(config, name)  # what is saved in full carries no low-rank adapter besides, nor does anything in it


def is_saved(config: LoRAConfig, name: str) -> bool:
    """Return whether a module of that full name is one of modules_to_save, or lies in one."""
    return bool(saved_modules(config.modules_to_save or (), beginnings(name)))


def _in_layers(config: LoRAConfig, name: str) -> bool:
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    place = layer_of(config, name)
    return place is not None and place[1] in ([wanted] if isinstance(wanted, int) else wanted)


def layer_of(config: LoRAConfig, name: str) -> tuple[str, int] | None:
    """Return the stack of layers that a name lies in, and the layer's number there: PEFT's rule for layers_pattern."""
    patterns = config.layers_pattern or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    prefix = r".*?\." if not config.layers_pattern else r"(?:^|.*?\.)"
    found = next((m for p in patterns if (m := re.match(rf"({prefix}{p})\.(\d+)\.", name))), None)
    return None if found is None else (found[1], int(found[found.re.groups]))


def settle_layers(model: nn.Module, config: LoRAConfig, modules: Mapping[str, nn.Module]) -> LoRAConfig:
    """Return a config whose layers_to_transform are numbers of layers that the model has, none of them negative.

    modules: the model's own, by full name. Raises TargetError for a layer that there is not, and for a negative number
    where the targets are in stacks of different depth, so that it would mean two layers.
    """
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return config
    numbers = [wanted] if isinstance(wanted, int) else list(wanted)
    targets, parameters = find_targets(model, config.copy(layers_to_transform=None, layers_pattern=None), modules)
    stacks = {place[0] for name in (*targets, *parameters) if (place := layer_of(config, name))}
    depths = dict.fromkeys(stacks, 0)
    for name in modules:
        place = layer_of(config, f"{name}.")
        if place and place[0] in depths:
            depths[place[0]] = max(depths[place[0]], place[1] + 1)
    deepest = max(depths.values(), default=0)
    said = ", ".join(f"{depth} in {stack}" for stack, depth in sorted(depths.items())) or "none with a target"
    if bad := [n for n in numbers if not -deepest <= n < deepest]:
        raise TargetError(f"layers_to_transform={wanted!r}: {bad} are no layers of {type(model).__name__} ({said}).")
    if min(numbers) >= 0:
        return config
    if len(set(depths.values())) > 1:
        raise TargetError(
            f"layers_to_transform={wanted!r} counts from the end, which is not the same layer everywhere in "
            f"{type(model).__name__} ({said}). Write the numbers from the front, or choose a stack by layers_pattern."
        )
    settled = sorted({n % deepest for n in numbers})
    return config.copy(layers_to_transform=settled[0] if isinstance(wanted, int) else settled)


def _nothing(
    model: nn.Module, entries: Sequence[str], names: Collection[str], config: LoRAConfig, what: str = "target_modules"
) -> str:
    """Say that entries match nothing, with the nearest names there are."""
    is_target = what == "target_modules"
    near = {e: meant(e, names, is_target and isinstance(config.target_modules, str), is_target) for e in entries}
    hints = "; ".join(f"{e!r}{hint}" for e, hint in near.items() if hint)
    linear = sorted({n.rpartition(".")[2] for n, m in base_modules(model) if is_linear(m)})
    where = f" in layers {config.layers_to_transform}" if config.layers_to_transform is not None else ""
    usual = ""
    with suppress(TargetError):
        usual = f" ({some(sorted({n.rpartition('.')[2] for n in preset_targets(model, 'auto')}))} here)"
    return (
        f"{what}: {', '.join(map(repr, entries))} match nothing{where} in {type(model).__name__}. "
        f"{hints + '. ' if hints else ''}Its linear layers end in {some(linear, 20) or 'nothing (it has none)'}; "
        f"name some of them, or use 'auto'{usual}."
    )


def meant(entry: str, names: Collection[str], is_expression: bool = False, may_be_preset: bool = False) -> str:
    """Say which names somebody may have meant by an entry or expression, and how a string is read; empty for none."""
    preset = re.sub(r"[\W_]+", "-", entry.strip().lower())
    if may_be_preset and preset in PRESETS:
        return f": {preset!r} is a word of its own and not in a list, target_modules={preset!r}"
    parts = [part for part in re.split(r"[,;\s]+", entry) if part]
    if is_expression and parts and all(match_names([part], names) for part in parts):
        return f": a string is a regular expression for the full name. Write a list, {parts}"
    near = nearest(entry, names)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""


def nearest(entry: str, names: Iterable[str]) -> list[str]:
    """Return the last words of names, three at most, that are most like the last word of an entry or expression.

    A query's projection is not meant by a value's.
    """
    leaves = dict.fromkeys(n.rpartition(".")[2] for n in names if n and not n.rpartition(".")[2].isdigit())
    word = re.sub(r"\W+", ".", re.sub(r"\\[.]|\[[.]\]", ".", entry)).strip(".").rpartition(".")[2]
    wanted = letters(word)
    near = [leaf for leaf in leaves if not wanted or not wanted.isdisjoint(letters(leaf))]
    return difflib.get_close_matches(word, near, n=3, cutoff=0.5)


def input_table(model: Any) -> nn.Module | None:
    """Return the table that a model looks its tokens up in, None where it has none or does not say."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table if isinstance(table, nn.Module) else None
