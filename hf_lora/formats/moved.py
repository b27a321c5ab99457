"""An adapter under new names: its tensors by today's keys, its config with the same ranks, scalings and targets."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterMismatchError
from ..targets.names import as_endings, match_names, parameter_names, saved_modules
from ..wording import full_name
from .entries import Entry, key_at, raw_owner
from .experts import Pair, beside, stacked
from .keys import PREFIX, WRAP
from .peft import place_of
from .renames import Today

__all__ = ["Move", "rebuilt"]

Factors = dict[str, Tensor]  # an adapter's tensors by attribute


@dataclass(frozen=True, eq=False)
class Move:
    """A tensor of a file, and where it lies today."""

    entry: Entry
    today: Today


@dataclass
class _Result:
    """What comes of all moves. sites: (rank, alpha) by today's name; raw: factors by the full name of a parameter."""

    tensors: Factors = field(default_factory=dict)
    sites: dict[str, tuple[int, float]] = field(default_factory=dict)
    layers: dict[str, None] = field(default_factory=dict)
    raw: dict[str, Factors] = field(default_factory=lambda: defaultdict(dict))
    saved: dict[str, None] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)


def rebuilt(
    modules: Mapping[str, nn.Module], config: LoRAConfig, moves: Sequence[Move], same_class: bool
) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """Return the config and the tensors of moves that all have their place, by today's names.

    same_class: whether the model is what the adapter was made for, so that its list of modules to save holds for it.
    Raises AdapterMismatchError for tensors that cannot follow what became of their weight.
    """
    result = _Result()
    joined: dict[tuple[str, ...], list[Move]] = defaultdict(list)
    for move in moves:
        if move.today.steps:
            joined[move.today.names].append(move)
        else:
            _carry(modules, config, move, result)
    for group in joined.values():
        _join(modules, config, group, result)
    changed = _config(modules, config, result, same_class)
    _nest(modules, changed, result)
    return changed, result.tensors


def _carry(modules: Mapping[str, nn.Module], config: LoRAConfig, move: Move, result: _Result) -> None:
    """Put one tensor at its new name."""
    entry, (name,) = move.entry, move.today.names
    path, _, leaf = name.rpartition(".")
    if entry.is_saved:
        _put(result.tensors, key_at(entry, path) if leaf == entry.leaf else PREFIX + name, entry.tensor)
        if not (entry.wraps or (config.bias != "none" and "bias" in leaf)):
            result.saved[path] = None
        return
    key = key_at(entry, path)
    place = place_of(key, modules, config) if leaf == "weight" else None
    if place is None and raw_owner(modules, entry, move.today):
        result.raw[name][entry.attribute] = entry.tensor
        result.sites[name] = _strength(config, entry.path)
    elif entry.is_rows:
        result.tables[entry.path] = path
        _put(result.tensors, key, entry.tensor)
    elif place is not None and match_names(config.target_parameters or (), [f"{place[0]}.{place[1]}"]):
        full = f"{place[0]}.{place[1]}"
        result.raw[full][entry.attribute] = entry.tensor
        result.sites[full] = _strength(config, full_name(entry.path, place[1]))
    else:
        site, old = _owner(modules, path), entry.path
        result.sites[site] = _strength(config, old if site == path else old.rpartition(".")[0])
        result.layers[site] = None
        _put(result.tensors, key, entry.tensor)


def _owner(modules: Mapping[str, nn.Module], path: str) -> str:
    """Return the name that a config knows a layer by: an attention's, for its output projection."""
    owner = path.rpartition(".")[0]
    return owner if isinstance(modules.get(owner), nn.MultiheadAttention) else path


def _put(tensors: Factors, key: str, tensor: Tensor) -> None:
    if key in tensors:
        raise AdapterMismatchError(f"two tensors of the file stand for {key}; save one adapter alone.")
    tensors[key] = tensor


def _strength(config: LoRAConfig, name: str) -> tuple[int, float]:
    return config.rank_of(name), config.alpha_of(name)


def _join(modules: Mapping[str, nn.Module], config: LoRAConfig, group: Sequence[Move], result: _Result) -> None:
    """Put the tensors of several old weights together, or one apart, as their weights were."""
    today = group[0].today
    rows = [modules[n.rpartition(".")[0]]._parameters[n.rpartition(".")[2]].shape for n in today.names]  # type: ignore[union-attr]
    attributes = {m.entry.attribute for m in group}
    if today.steps == ("split",):
        for move in group:
            _split(modules, config, move, [shape[0] for shape in rows], result)
        return
    if attributes != {"lora_A", "lora_B"} or today.steps not in (
        ("stack",),
        ("stack", "beside in 1"),
        ("beside in 0",),
    ):
        raise AdapterMismatchError(
            f"{group[0].entry.key} belongs to a weight that Transformers made {', '.join(today.names)} of "
            f"({', '.join(today.steps)}), where its {', '.join(sorted(attributes))} cannot follow."
        )
    (name,) = today.names
    pairs = _pairs(config, group)
    if today.steps == ("beside in 0",):
        _fused_layer(config, name, pairs, today.parts, rows[0][0], result)
        return
    experts, parts = rows[0][0], today.parts if len(today.steps) > 1 else 1
    halves: list[Pair | None] = []
    transposed = getattr(modules[name.rpartition(".")[0]], "is_transposed", False)
    out = rows[0][2 if transposed else 1] // parts
    for i in range(experts):
        own = [pairs.pop((i, part), None) for part in range(parts)]
        halves.append(beside(own, _checked(name, own, [out] * parts)) if any(own) else None)
    if pairs:
        raise AdapterMismatchError(
            f"the file adapts experts {sorted({i for i, _ in pairs})} of {name}, which has {experts}."
        )
    a, b, scaling = stacked(halves)
    result.raw[name] = {"lora_A": a.flatten(0, 1), "lora_B": b.permute(1, 2, 0).flatten(1)}
    result.sites[name] = a.shape[1], _alpha(config, scaling, a.shape[1])


def _pairs(config: LoRAConfig, group: Iterable[Move]) -> dict[tuple[int, int], Pair]:
    """Return the pairs of a group by (item, part)."""
    factors: dict[tuple[int, int], dict[str, Entry]] = defaultdict(dict)
    for move in group:
        held = factors[move.today.item, move.today.part]
        if (other := held.setdefault(move.entry.attribute, move.entry)) is not move.entry:
            raise AdapterMismatchError(f"{other.key} and {move.entry.key} are two tensors for one place.")
    pairs = {}
    for at, held in factors.items():
        if held.keys() != {"lora_A", "lora_B"} or any(entry.tensor.ndim != 2 for entry in held.values()):
            raise AdapterMismatchError(f"{next(iter(held.values())).key} has no lora_A and lora_B of two dimensions.")
        a, b = held["lora_A"], held["lora_B"]
        rank = config.rank_of(a.path)
        if a.tensor.shape[0] != rank or b.tensor.shape[1] != rank:
            found = f"{tuple(a.tensor.shape)} and {tuple(b.tensor.shape)}"
            raise AdapterMismatchError(f"{a.key} and {b.key} are {found}, but the config gives them rank {rank}.")
        pairs[at] = Pair(a.tensor, b.tensor, config.scaling_of(a.path))
    return pairs


def _checked(name: str, pairs: Sequence[Pair | None], rows: Sequence[int]) -> Sequence[int]:
    """Return how many rows each weight has. Raises AdapterMismatchError where a pair has others."""
    if any(pair is not None and pair.b.shape[0] != count for pair, count in zip(pairs, rows, strict=True)):
        found = [None if pair is None else pair.b.shape[0] for pair in pairs]
        raise AdapterMismatchError(f"the file's parts of {name} have {found} rows, the model's {list(rows)}.")
    if len({pair.a.shape[1] for pair in pairs if pair is not None}) > 1:
        raise AdapterMismatchError(f"the file's parts of {name} do not read inputs of one width.")
    return rows


def _fused_layer(
    config: LoRAConfig, name: str, pairs: Mapping[tuple[int, int], Pair], parts: int, total: int, result: _Result
) -> None:
    own = [pairs.get((0, part)) for part in range(parts)]
    known = [pair.b.shape[0] for pair in own if pair is not None]
    left, unknown = total - sum(known), parts - len(known)
    if unknown and left % unknown:
        raise AdapterMismatchError(
            f"the file adapts {len(known)} of {parts} parts of {name}; where they lie is not known."
        )
    rows = [left // unknown if pair is None else pair.b.shape[0] for pair in own]
    if unknown > 1 or sum(rows) != total:
        raise AdapterMismatchError(f"the file's parts of {name} have {known} rows, the model's weight {total}.")
    pair, path = beside(own, _checked(name, own, rows)), name.removesuffix(".weight")
    result.layers[path] = None
    result.sites[path] = pair.a.shape[0], _alpha(config, pair.scaling, pair.a.shape[0])
    _put(result.tensors, f"{PREFIX}{path}.lora_A.weight", pair.a)
    _put(result.tensors, f"{PREFIX}{path}.lora_B.weight", pair.b)


def _split(
    modules: Mapping[str, nn.Module], config: LoRAConfig, move: Move, rows: Sequence[int], result: _Result
) -> None:
    """Give each part of a weight the rows of B that are its own, and all of A."""
    entry = move.entry
    if entry.tensor.ndim == 0 or (entry.attribute != "lora_A" and entry.tensor.shape[0] != sum(rows)):
        raise AdapterMismatchError(
            f"{entry.key} is {tuple(entry.tensor.shape)}, its parts in the model have {list(rows)} rows."
        )
    pieces = [entry.tensor] * len(rows) if entry.attribute == "lora_A" else entry.tensor.split(list(rows))
    for name, piece in zip(move.today.names, pieces, strict=True):
        leaf = name.rpartition(".")[2]
        part = Entry(
            entry.key,
            entry.path,
            entry.wraps,
            leaf if entry.is_saved else entry.leaf,
            entry.attribute,
            piece.clone(),
        )
        _carry(modules, config, Move(part, Today((name,))), result)


def _alpha(config: LoRAConfig, scaling: float, rank: int) -> float:
    alpha = scaling * (math.sqrt(rank) if config.use_rslora else rank)
    return float(f"{alpha:.12g}")


def _nest(modules: Mapping[str, nn.Module], config: LoRAConfig, result: _Result) -> None:
    """Write the factors of raw parameters under the keys that PEFT gives them, the owner's first one innermost."""
    for full, factors in result.raw.items():
        owner = full.rpartition(".")[0]
        names = match_names(config.target_parameters or (), parameter_names({owner: modules[owner]}))
        depth = len(names) - 1 - names.index(full)
        for attribute, tensor in factors.items():
            path = ".".join([owner, *[WRAP] * depth, f"{attribute}.weight"])
            _put(result.tensors, PREFIX + path, tensor)


def _config(modules: Mapping[str, nn.Module], config: LoRAConfig, result: _Result, same_class: bool) -> LoRAConfig:
    """Return a config that means for the new names what the old one meant for the old."""
    entries = config.modules_to_save or ()
    whole = [
        e for e in entries if (found := saved_modules([e], modules)) and (same_class or _holds(modules, found, result))
    ]
    more = [n for n in result.saved if n and not saved_modules(whole, _within(n))]
    ends = as_endings(more, list(modules))
    ends = ends if set(saved_modules(ends, modules)) == set(more) else more
    changes: dict[str, Any] = {
        "rank_pattern": _patterns({n: r for n, (r, _) in result.sites.items()}, config.r),
        "alpha_pattern": _patterns({n: a for n, (_, a) in result.sites.items()}, config.lora_alpha),
        "modules_to_save": [*whole, *ends] or None,
        "auto_mapping": config.auto_mapping if same_class else None,  # saving names the class that it is for now
    }
    if result.sites:
        layers, raw = as_endings(result.layers, list(modules)), as_endings(result.raw, parameter_names(modules))
        changes |= {"target_modules": layers, "target_parameters": raw or None, "exclude_modules": None}
        changes |= {"layers_to_transform": None, "layers_pattern": None}
    tokens = config.trainable_token_indices
    if isinstance(tokens, Mapping):
        rows = {
            result.tables.get(old, old): v for k, v in tokens.items() for old in match_names([k], result.tables) or [k]
        }
        changes["trainable_token_indices"] = rows
    return config.copy(**changes)


def _holds(modules: Mapping[str, nn.Module], names: Iterable[str], result: _Result) -> bool:
    """Return whether every parameter inside modules is of a module that was saved."""
    inside = tuple(f"{name}." for name in names)
    owners = [
        n
        for n, m in modules.items()
        if f"{n}.".startswith(inside) and any(v is not None for v in m._parameters.values())
    ]
    return all(owner in result.saved for owner in owners)


def _within(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[: i + 1]) for i in range(len(words))]


def _patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return name endings with their values, for all names whose value is not the default."""
    by_value: dict[Any, list[str]] = defaultdict(list)
    for name, value in values.items():
        if value != default:
            by_value[value].append(name)
    names: Collection[str] = list(values)
    return {re.escape(e): value for value, group in by_value.items() for e in as_endings(group, names)}
