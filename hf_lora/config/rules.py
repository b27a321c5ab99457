"""What the fields of a LoRAConfig may be, alone and together; every problem is found, none is raised here."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..variants.initial import INITS
from ..variants.row import MOST_ITERATIONS
from ..variants.table import FORMULAS, SCALINGS, formula_of, is_on, settings, switches
from .keys import PRESETS, UNSUPPORTED, Fields
from .tasks import TASK_TYPES

_FLAGS = ("use_rslora", "lora_bias", "fan_in_fan_out", "inference_mode", "ensure_weight_tying")


def problems_of(c: Fields) -> list[str]:
    """Return what is wrong with a config, a sentence each, with what to do."""
    return [*_value_problems(c), *_combination_problems(c), *_other_problems(c)]


def is_names(value: Any) -> bool:
    """Return whether a value is a collection of strings, and not one string."""
    return isinstance(value, Sequence | set | frozenset) and all(isinstance(v, str) for v in value)


def _value_problems(c: Fields) -> list[str]:
    found = []
    if not is_int(c.r, 1):
        found.append(f"r={c.r!r}, but the rank must be a positive integer; 8 is the usual start.")
    if not is_positive(c.lora_alpha):
        found.append(f"lora_alpha={c.lora_alpha!r}, but it must be a positive number; r or 2r is usual.")
    if not (c.lora_dropout == 0 or is_positive(c.lora_dropout)) or c.lora_dropout >= 1:
        found.append(f"lora_dropout={c.lora_dropout!r}, but it is a probability in [0, 1).")
    if c.bias not in ("none", "all", "lora_only"):
        found.append(f'bias={c.bias!r}; the choices are "none", "all" and "lora_only".')
    if c.seed is not None and (not is_int(c.seed, 0) or c.seed >= 1 << 63):
        found.append(f"seed={c.seed!r}, but it is an integer from 0 to 2**63 - 1, or None.")
    for name in ("eva_config", "loftq_config", "lora_ga_config"):
        if not isinstance(value := getattr(c, name), dict | None):
            found.append(f"{name}={value!r:.200}, but it is a dict of settings, as PEFT has them, or None.")
    if c.task_type is not None and c.task_type not in tuple(TASK_TYPES):
        near = {key.replace("_", ""): key for key in TASK_TYPES}.get(re.sub("[^A-Z0-9]", "", str(c.task_type).upper()))
        hint = f" Did you mean {near!r}?" if near else ""
        found.append(f"task_type={c.task_type!r}; the choices are {', '.join(TASK_TYPES)} and None.{hint}")
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(value := getattr(c, name), str | None):
            found.append(f"{name}={value!r:.200}, but it is a name, or None.")
    flags = {name: value for name in (*_FLAGS, *switches()) if not isinstance(value := is_on(c, name), bool)}
    found += [f"{name}={value!r}, but it is True or False." for name, value in flags.items()]
    return [*found, *_init_problem(c), *_name_problems(c), *_pattern_problems(c), *_index_problems(c)]


# PEFT's starts that write into the base: without that base, the factors alone compute something else.
_MOVE_THE_BASE = ("corda",)


def _init_problem(c: Fields) -> list[str]:
    init = c.init_lora_weights
    if isinstance(init, bool | str) and init in INITS:
        return []
    if init in _MOVE_THE_BASE:
        return [
            f"init_lora_weights={init!r} writes into the base's weights, which the adapter's file does not hold and "
            "hf_lora does not build. PEFT converts it into a plain LoRA adapter, which can be loaded: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        ]
    known = ", ".join(map(repr, INITS))
    return [f"init_lora_weights={init!r}; the choices are {known} and 'pissa_niter_N', N at most {MOST_ITERATIONS}."]


def _name_problems(c: Fields) -> list[str]:
    found = []
    for name in ("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "layers_pattern"):
        value = getattr(c, name)
        if isinstance(value, str) and name in ("target_parameters", "modules_to_save"):
            found.append(f"{name}={value!r} is one string; write a list, [{value!r}].")
        elif isinstance(value, str) and name != "layers_pattern" and value not in PRESETS:
            found += _regex_problem(name, value)
        elif value is not None and not isinstance(value, str) and not is_names(value):
            found.append(f"{name}={value!r}, but it takes a list of names.")
    return found


def _pattern_problems(c: Fields) -> list[str]:
    found = []
    for name, fits, what in (("rank_pattern", is_int, "integer"), ("alpha_pattern", is_positive, "number")):
        patterns = getattr(c, name)
        if not isinstance(patterns, dict) or not all(isinstance(k, str) for k in patterns):
            found.append(f"{name}={patterns!r}, but it maps regular expressions to values, {{'q_proj': 4}}.")
            continue
        found += [f"{name}[{k!r}]={v!r} must be a positive {what}." for k, v in patterns.items() if not fits(v)]
        found += [problem for k in patterns for problem in _regex_problem(name, k)]
    return found


def _index_problems(c: Fields) -> list[str]:
    found = []
    layers, tokens = c.layers_to_transform, c.trainable_token_indices
    if layers is not None and not is_layers(layers):
        found.append(f"layers_to_transform={layers!r}, but it takes layer numbers, [0, 1], 3 or [-2, -1].")
    tables = list(tokens.values()) if isinstance(tokens, Mapping) else [] if tokens is None else [tokens]
    if not all(map(_is_indices, tables)):
        found.append(f"trainable_token_indices={tokens!r}, but it takes token numbers, or {{'embed_tokens': [...]}}.")
    return found


def _combination_problems(c: Fields) -> list[str]:
    found = []
    regex = isinstance(c.target_modules, str) and c.target_modules not in PRESETS
    if regex and c.layers_to_transform is not None:
        found.append("layers_to_transform goes with a list of target_modules; write the layers into the expression.")
    if c.layers_pattern and c.layers_to_transform is None:
        found.append("layers_pattern has no effect without layers_to_transform; give the layers' numbers as well.")
    others = c.target_parameters or c.trainable_token_indices or c.modules_to_save
    if c.target_modules is not None and not c.target_modules and not others:
        found.append("target_modules is empty, so there is nothing to train; name layers, or use 'auto'.")
    for what, rows in (("formula", FORMULAS), ("scaling", SCALINGS)):
        if len(on := [name for name in switches(rows) if is_on(c, name) is True]) > 1:
            found.append(f"{' and '.join(f'{name}=True' for name in on)} exclude each other: choose one {what}.")
    if c.lora_bias and (why := (formula := formula_of(c)).no_bias):
        found.append(f"lora_bias=True and {formula.switch}=True exclude each other: {why}.")
    found += _formula_problems(c)
    if c.lora_bias and c.init_lora_weights not in (True, False):
        found.append(f"lora_bias=True goes with init_lora_weights=True or False, not {c.init_lora_weights!r}.")
    if c.lora_bias and c.bias != "none":
        found.append(f"lora_bias=True and bias={c.bias!r} would train the same biases twice; choose one.")
    return found


def _formula_problems(c: Fields) -> list[str]:
    """Say which settings the formula has no place for, and which settings belong to another one."""
    row, mine = formula_of(c), set(formula_of(c).settings)
    usual = {field.name: getattr(Fields(), field.name) for field in fields(Fields)}
    found = [
        f"{name}={value!r}: {row.title} ({row.switch}=True) has no such setting; leave it out."
        for name in sorted(row.lacks)
        if (value := getattr(c, name)) != usual[name]
    ]
    if row.starts and c.init_lora_weights in INITS and c.init_lora_weights not in row.starts:
        known = ", ".join(sorted(map(repr, row.starts), reverse=True))
        found.append(f"init_lora_weights={c.init_lora_weights!r}: {row.title} ({row.switch}=True) takes {known}.")
    if c.init_lora_weights in INITS and (keeps := INITS[c.init_lora_weights].keeps) and row.switch:
        found.append(
            f"init_lora_weights={c.init_lora_weights!r} keeps {', '.join(keeps)} as it began, which {row.title} "
            f"({row.switch}=True) has no form of; leave one of them out."
        )
    for name, default in settings().items():
        if name not in c.other or name in switches():
            continue
        value = c.other[name]
        if name not in mine:
            of = next(each.switch for each in FORMULAS.values() if name in each.settings)
            found.append(f"{name}={value!r} has no effect without {of}=True; leave it out.")
        elif not _is_like(value, default):
            found.append(f"{name}={value!r}, but it is {_named(default)}.")
        elif name in row.bounds:
            found += _bound_problem(name, value, *row.bounds[name])
    if not found and is_int(c.r):
        found += row.problems({"r": c.r, **row.settings, **{k: v for k, v in c.other.items() if k in mine}})
    return found


def _bound_problem(name: str, value: float, least: float, most: float) -> list[str]:
    if least <= value <= most:
        return []
    return [f"{name}={value!r}, but it {f'is at least {least}' if most == math.inf else f'lies in {least} to {most}'}."]


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return is_number(value)
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)


def _named(default: Any) -> str:
    return {bool: "True or False", int: "an integer", float: "a number", str: "a name"}[type(default)]


def _other_problems(c: Fields) -> list[str]:
    """Say what nothing would read among the further keys."""
    read = {*vars(c), "peft_type"}
    return [
        f"other={{{key!r}: {value!r}}}: {'it is a setting of its own' if key in read else 'hf_lora does not build it'}."
        for key, value in c.other.items()
        if key in read or value not in (None, UNSUPPORTED.get(key, value))
    ]


def _regex_problem(name: str, pattern: str) -> list[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        return [f"{name}: {pattern!r} is not a regular expression: {error}."]
    return []


def is_int(value: Any, least: float = 1) -> bool:
    """Return whether a value is an integer, no less than `least`, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no bool."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and -sys.float_info.max <= value <= sys.float_info.max


def is_positive(value: Any) -> bool:
    """Return whether a value is a positive, finite number."""
    return is_number(value) and value > 0


def _is_indices(value: Any, least: float = 0) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(is_int(v, least) for v in value)


def is_layers(value: Any, least: float = -math.inf) -> bool:
    """Return whether a value is a layer's number, or several, none below `least`."""
    return is_int(value, least) or _is_indices(value, least)


_LONGEST = 10_000  # characters
_ATOM = re.compile(r"\\(.)|\[(\^?)(\]?(?:\\.|[^\]\\])*)\]", re.DOTALL)  # an escaped character, or a class
_GROUP = re.compile(r"\((?:\?[:=!]|\?P<\w+>)?([^()]*)\)([*+]|\{\d*,\})?")  # without groups inside
_REPEAT = re.compile(r"[*+]|\{\d*,\}")


def may_hang(pattern: str) -> bool:
    r"""Return whether a pattern is very long, or repeats without bound a group that itself repeats without bound.

    Such a pattern can try a number of ways that doubles with every letter. A group is harmless where each round has to
    end with a dot that nothing else in it can take.

    >>> may_hang(r"(.*a)+b"), may_hang(r"(\w+\.)+q_proj"), may_hang(r".*\.(q|v)_proj")
    (True, False, False)
    """
    if len(pattern) > _LONGEST:
        return True
    plain = _ATOM.sub(_letter, pattern)  # one letter for each, so that only real brackets and repeats are left
    while group := _GROUP.search(plain):
        inside, repeat = group[1], group[2]
        repeats = _REPEAT.search(inside) is not None
        ends = inside.endswith("D") and "." not in inside
        if repeat and repeats and not ends:
            return True
        plain = plain[: group.start()] + (".+" if repeats or repeat else ".") + plain[group.end() :]
    return False


def _letter(atom: re.Match[str]) -> str:
    """Return "D" for a dot itself, "." for what can take one among others, "x" for what cannot."""
    escaped, negated, characters = atom.groups()
    if escaped:
        return "D" if escaped == "." else "." if escaped in "WSD" else "x"
    return "." if ("." in characters) != bool(negated) else "x"
