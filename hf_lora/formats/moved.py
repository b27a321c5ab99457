"""An adapter under new names: its tensors by today's keys, its config with the same ranks, scalings and targets."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterMismatchError, full_name
from ..targets.names import as_endings, is_inside, is_saved, match_names, parameter_names, saved_modules
from ..variants.table import TOKENS
from .entries import FACTORS, Entry, key_at, parameter_at
from .keys import PREFIX, WRAP
from .pairs import Pair, alpha_for, beside, stacked, with_sizes
from .peft import place_of

Factors = dict[str, Tensor]  # an adapter's tensors by attribute
# How weights were put together, where their pairs can follow.
_STACKED, _STACKED_PARTS, _BELOW = ("stack",), ("stack", "beside in 1"), ("beside in 0",)


@dataclass
class _Result:
    """What comes of a file. sites: (rank, alpha) by today's name; raw: factors by the full name of a parameter."""

    tensors: Factors = field(default_factory=dict)
    sites: dict[str, tuple[int, float]] = field(default_factory=dict)
    layers: dict[str, None] = field(default_factory=dict)
    raw: dict[str, Factors] = field(default_factory=lambda: defaultdict(dict))
    saved: dict[str, None] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, tensor: Tensor) -> None:
        """Add a tensor. Raises AdapterMismatchError where there is one of its key."""
        if key in self.tensors:
            raise AdapterMismatchError(f"two tensors of the file stand for {key}; save one adapter alone.")
        self.tensors[key] = tensor


def rebuilt(
    modules: Mapping[str, nn.Module], config: LoRAConfig, entries: Sequence[Entry], same_class: bool
) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """Return the config and the tensors of a file whose tensors all have their place, by today's names.

    same_class: whether the model is what the adapter was made for, so that its list of modules to save holds for it.
    Raises AdapterMismatchError for tensors that cannot follow what became of their weight.
    """
    result = _Result()
    joined: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.today.steps in ((), ("split",)):
            for part, name in _apart(modules, entry):
                _carry(modules, config, part, name, result)
        else:
            joined[entry.today.names].append(entry)
    for group in joined.values():
        _join(modules, config, group, result)
    changed = _config(modules, config, result, same_class)
    for full, factors in result.raw.items():  # PEFT nests an owner's parameters, the first one innermost
        owner = full.rpartition(".")[0]
        names = match_names(changed.target_parameters or (), parameter_names({owner: modules[owner]}))
        depth = len(names) - 1 - names.index(full)
        for attribute, tensor in factors.items():
            result.put(PREFIX + full_name(owner, *[WRAP] * depth, f"{attribute}.weight"), tensor)
    return changed, result.tensors


def _apart(modules: Mapping[str, nn.Module], entry: Entry) -> Iterator[tuple[Entry, str]]:
    """Yield a tensor with its parameter's name; of a weight that was split, each part's rows (of A, all) with its name.

    Raises AdapterMismatchError where the parts have other rows in the model.
    """
    today = entry.today
    if not today.steps:
        yield entry, today.names[0]
        return
    rows = [parameter_at(modules, name).shape[0] for name in today.names]  # type: ignore[union-attr]
    whole = entry.attribute == "lora_A"
    if entry.tensor.ndim == 0 or (not whole and len(entry.tensor) != sum(rows)):
        raise AdapterMismatchError(
            f"{entry.key} is {tuple(entry.tensor.shape)}, its parts in the model have {rows} rows."
        )
    pieces = [entry.tensor] * len(rows) if whole else entry.tensor.split(rows)
    for name, piece in zip(today.names, pieces, strict=True):
        leaf = name.rpartition(".")[2] if entry.is_saved else entry.leaf
        yield replace(entry, leaf=leaf, tensor=piece.clone()), name


def _carry(modules: Mapping[str, nn.Module], config: LoRAConfig, entry: Entry, name: str, result: _Result) -> None:
    """Put one tensor at its parameter's new name."""
    path, _, leaf = name.rpartition(".")
    key, old = key_at(entry, path), entry.path
    if entry.is_saved:
        result.put(key if leaf == entry.leaf else PREFIX + name, entry.tensor)
        if not (entry.wraps or (config.bias != "none" and "bias" in leaf)):
            result.saved[path] = None
        return
    place = place_of(key, modules, config) if leaf == "weight" else None
    full = full_name(*place[:2]) if place is not None else name
    if entry.attribute == TOKENS.name:
        result.tables[old] = path
        result.put(key, entry.tensor)
    elif place is None or match_names(config.target_parameters or (), [full]):
        known_as = old if place is None else full_name(old, place[1])
        result.raw[full][entry.attribute] = entry.tensor
        result.sites[full] = config.rank_of(known_as), config.alpha_of(known_as)
    else:
        owner = path.rpartition(".")[0]
        if isinstance(modules.get(owner), nn.MultiheadAttention):  # a config knows its output projection by its name
            path, old = owner, old.rpartition(".")[0]
        result.sites[path] = config.rank_of(old), config.alpha_of(old)
        result.layers[path] = None
        result.put(key, entry.tensor)


def _join(modules: Mapping[str, nn.Module], config: LoRAConfig, group: Sequence[Entry], result: _Result) -> None:
    """Put the pairs of several old weights together, as their weights were."""
    today, attributes = group[0].today, {entry.attribute for entry in group}
    if attributes != {*FACTORS} or today.steps not in (_STACKED, _STACKED_PARTS, _BELOW):
        raise AdapterMismatchError(
            f"{group[0].key} belongs to a weight that Transformers made {', '.join(today.names)} of "
            f"({', '.join(today.steps)}), where its {', '.join(sorted(attributes))} cannot follow."
        )
    (name,) = today.names
    owner, shape = name.rpartition(".")[0], parameter_at(modules, name).shape  # type: ignore[union-attr]
    pairs = _pairs(config, group)
    if today.steps == _BELOW:
        own = [pairs.get((0, part)) for part in range(today.parts)]
        pair = _beside(name, own, _rows(name, own, shape[0]))
        result.layers[owner] = None
        result.sites[owner] = len(pair.a), alpha_for(config, pair.scaling, len(pair.a))
        for attribute, tensor in zip(FACTORS, (pair.a, pair.b), strict=True):
            result.put(f"{PREFIX}{owner}.{attribute}.weight", tensor)
        return
    if beyond := sorted({i for i, _ in pairs if i >= shape[0]}):
        raise AdapterMismatchError(f"the file adapts experts {beyond} of {name}, which has {shape[0]}.")
    parts = today.parts if today.steps == _STACKED_PARTS else 1
    rows = [shape[2 if getattr(modules[owner], "is_transposed", False) else 1] // parts] * parts
    items = [[pairs.get((i, part)) for part in range(parts)] for i in range(shape[0])]
    a, b, scaling = stacked([_beside(name, own, rows) if any(own) else None for own in items])
    result.raw[name] = {"lora_A": a.flatten(0, 1), "lora_B": b.permute(1, 2, 0).flatten(1)}
    result.sites[name] = a.shape[1], alpha_for(config, scaling, a.shape[1])


def _pairs(config: LoRAConfig, group: Iterable[Entry]) -> dict[tuple[int, int], Pair]:
    """Return the pairs of a group by (item, part)."""
    factors: dict[tuple[int, int], dict[str, Entry]] = defaultdict(dict)
    for entry in group:
        other = factors[entry.today.item, entry.today.part].setdefault(entry.attribute, entry)
        if other is not entry:
            raise AdapterMismatchError(f"{other.key} and {entry.key} are two tensors for one place.")
    pairs = {}
    for at, held in factors.items():
        if held.keys() != {*FACTORS} or any(entry.tensor.ndim != 2 for entry in held.values()):
            raise AdapterMismatchError(f"{next(iter(held.values())).key} has no lora_A and lora_B of two dimensions.")
        a, b = held["lora_A"], held["lora_B"]
        rank = config.rank_of(a.path)
        if a.tensor.shape[0] != rank or b.tensor.shape[1] != rank:
            found = f"{tuple(a.tensor.shape)} and {tuple(b.tensor.shape)}"
            raise AdapterMismatchError(f"{a.key} and {b.key} are {found}, but the config gives them rank {rank}.")
        pairs[at] = Pair(a.tensor, b.tensor, config.scaling_of(a.path))
    return pairs


def _beside(name: str, pairs: Sequence[Pair | None], rows: Sequence[int]) -> Pair:
    """Return the pair of a weight's parts. Raises AdapterMismatchError where they have other rows, or other inputs."""
    found = [count if pair is None else len(pair.b) for pair, count in zip(pairs, rows, strict=True)]
    if found != rows:
        raise AdapterMismatchError(f"the file's parts of {name} have {found} rows, the model's {list(rows)}.")
    if len({pair.a.shape[1] for pair in pairs if pair is not None}) > 1:
        raise AdapterMismatchError(f"the file's parts of {name} do not read inputs of one width.")
    return beside(pairs, rows)


def _rows(name: str, pairs: Sequence[Pair | None], total: int) -> list[int]:
    """Return how many rows each part of a weight has: a pair says so, and one part without gets what is left."""
    known = [len(pair.b) for pair in pairs if pair is not None]
    left, unknown = total - sum(known), len(pairs) - len(known)
    if left < 0 or unknown > 1 or bool(left) != bool(unknown):
        raise AdapterMismatchError(
            f"the file adapts {len(known)} of {len(pairs)} parts of {name}, of {known} rows; the model's weight has "
            f"{total}, and where they lie is not known."
        )
    return [left if pair is None else len(pair.b) for pair in pairs]


def _config(modules: Mapping[str, nn.Module], config: LoRAConfig, result: _Result, same_class: bool) -> LoRAConfig:
    """Return a config that means for the new names what the old one meant for the old."""
    whole = [
        e for e in config.modules_to_save or () if _holds(modules, saved_modules([e], modules), result, same_class)
    ]
    held = config.copy(modules_to_save=whole or None)
    more = [n for n in result.saved if n and not is_saved(held, n)]
    ends = as_endings(more, list(modules))
    ends = ends if set(saved_modules(ends, modules)) == set(more) else more
    changes: dict[str, Any] = {
        "modules_to_save": [*whole, *ends] or None,
        "auto_mapping": config.auto_mapping if same_class else None,  # saving names the class that it is for now
    }
    if result.sites:
        layers, raw = as_endings(result.layers, list(modules)), as_endings(result.raw, parameter_names(modules))
        changes |= {"target_modules": layers, "target_parameters": raw or None, "exclude_modules": None}
        changes |= {"layers_to_transform": None, "layers_pattern": None}
    tokens = config.trainable_token_indices
    if isinstance(tokens, Mapping):
        changes["trainable_token_indices"] = {
            result.tables.get(old, old): v for k, v in tokens.items() for old in match_names([k], result.tables) or [k]
        }
    return with_sizes(config.copy(**changes), result.sites)


def _holds(modules: Mapping[str, nn.Module], names: Sequence[str], result: _Result, same_class: bool) -> bool:
    """Return whether the model has modules to save, and the file, unless it was made for this class, all of them."""
    inside = [
        n
        for n, m in modules.items()
        if any(is_inside(n, name) for name in names) and any(v is not None for v in m._parameters.values())
    ]
    return bool(names) and (same_class or all(n in result.saved for n in inside))
