"""Finding the places of a file's tensors in today's model, by whatever names they were saved.

Tried one after the other, until every tensor has its place: the names as they are; without what wrappers and versions
of PEFT leave in them; by Transformers' own table of what version 5 renamed, fused and split; with one exact prefix
rewrite, which must be the only one that fits and is said. Nothing is guessed for single tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..config.keys import PRESETS
from ..config.lora_config import LoRAConfig
from ..errors import AdapterMismatchError
from ..kinds.table import kind_of
from ..targets.names import listed_modules, parameter_names
from .coverage import lopsided
from .doubled import warn_of_doubled_updates
from .entries import Entry, entry_of, fits, has_place
from .mismatch import mismatch
from .moved import Move, rebuilt
from .peft import Places, place_of
from .prefixes import Rewrite, mixes, rewrites, rewritten
from .renames import Today, todays_names
from .spelling import plain_keys

__all__ = ["fit_names"]

_SAME_CLASS = (("module", ""), ("", "module"), ("", "_orig_mod"))  # DistributedDataParallel's, torch.compile's
Found = tuple[list[Move], "Rewrite | None", LoRAConfig]


def fit_names(
    modules: Mapping[str, nn.Module], config: LoRAConfig, tensors: Mapping[str, Tensor]
) -> tuple[LoRAConfig, Mapping[str, Tensor], Places]:
    """Return a file's config and tensors by the names that this model has, and where each has its place.

    Where all fit as they are, config and tensors are the same objects.
    modules: the model's own by full name, the model itself under "". The new config means for the new names what the
    old one meant for the old: ranks, scalings, targets. Where a tensor has no place at all, both are returned as far
    as they are known, for `read_sites` to refuse.
    Raises AdapterMismatchError where names fit in several ways, or where tensors cannot follow what became of a weight.
    Warns of a prefix that was rewritten.
    """
    places = _places(modules, config, tensors)
    if None not in places.values():
        return config, tensors, places
    tensors = _respelled(tensors)
    places = _places(modules, config, tensors)
    entries = [entry_of(key, tensor) for key, tensor in tensors.items()]
    lost = [entry for entry in entries if places[entry.key] is None]
    if not lost:
        return config, tensors, places
    found = _moves(modules, config, entries, lost)
    if found is None:
        return config, tensors, places
    moves, rewrite, told = found
    result = rebuilt(modules, told, moves, same_class=rewrite is None)
    missing = _missing(modules, config, moves, rewrite)
    if missing:
        raise mismatch(modules, [], [f"missing the tensors of {name}" for name in missing], len(tensors))
    if rewrite is not None and rewrite not in _SAME_CLASS:
        _say(modules, rewrite)
    return *result, _places(modules, *result)


def _moves(
    modules: Mapping[str, nn.Module], config: LoRAConfig, entries: Sequence[Entry], lost: Sequence[Entry]
) -> Found | None:
    """Return where every tensor lies today, the prefix rewrite it took, and the config to read it by.

    None where no tensor without a place finds one; raises AdapterMismatchError where some do and some do not.
    """
    as_is = [Move(entry, Today((entry.weight,))) for entry in entries]
    table = todays_names(modules[""], [entry.weight for entry in lost])
    names = {entry.key: table.get(entry.weight) for entry in lost}
    renamed = [Move(m.entry, names.get(m.entry.key) or m.today) for m in as_is]
    homeless = _homeless(modules, config, renamed)
    if not homeless:
        return renamed, None, config
    found = _rewrite(modules, config, as_is, lost) or _rewrite(modules, config, renamed, lost)
    if found is None and len(homeless) < len(lost):
        raise mismatch(modules, [m.entry.key for m in homeless], [], len(entries))
    return found


def _places(modules: Mapping[str, nn.Module], config: LoRAConfig, tensors: Mapping[str, Tensor]) -> Places:
    """Return where each tensor has its place. Warns of what PEFT computes otherwise there."""
    places = {key: place_of(key, modules, config) for key in tensors}
    if None not in places.values():
        warn_of_doubled_updates(modules, config, [place[0] for place in places.values() if place is not None])
    return places


def _respelled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their plain keys. Raises AdapterMismatchError where two keys are spellings of one.

    PEFT writes what it saves whole twice where biases or a resized vocabulary are saved as well: as `head.weight` and
    as `head.modules_to_save.weight`, the same numbers.
    """
    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, plain in plain_keys(tensors).items():
        if plain in origin and _is_again(key, tensors[key], origin[plain], result[plain]):
            continue
        if plain in origin:
            raise AdapterMismatchError(
                f"{origin[plain]} and {key} are two tensors for one place: the file holds several adapters, or one "
                "twice. Save one adapter alone."
            )
        origin[plain], result[plain] = key, tensors[key]
    return result


def _is_again(key: str, tensor: Tensor, other: str, held: Tensor) -> bool:
    """Return whether one of two spellings is PEFT's second copy of what is saved whole."""
    spelled = [".modules_to_save." in name for name in (key, other)]
    same = tensor.shape == held.shape and tensor.dtype == held.dtype
    return spelled[0] != spelled[1] and same and torch.equal(tensor, held)


def _homeless(modules: Mapping[str, nn.Module], config: LoRAConfig, moves: Sequence[Move]) -> list[Move]:
    return [m for m in moves if not has_place(modules, config, m.entry, m.today)]


def _rewrite(
    modules: Mapping[str, nn.Module], config: LoRAConfig, moves: Sequence[Move], lost: Sequence[Entry]
) -> Found | None:
    """Return the moves under the one prefix rewrite that places all, the rewrite, and the config that goes with it.

    None where there is no such rewrite.

    Raises AdapterMismatchError where several place all and fit.
    """
    first = next(m for m in moves if m.entry is lost[0]).today.names[0].rpartition(".")[0]
    found: dict[Rewrite, list[Move]] = {}
    for rewrite in rewrites(first, modules):
        if mixes([n for m in moves for n in m.today.names], rewrite):
            continue
        new = [Move(m.entry, m.today.renamed(rewritten(n, rewrite) for n in m.today.names)) for m in moves]
        if not _homeless(modules, _retold(config, rewrite), new):
            found[rewrite] = new
    if len(found) > 1:
        fitting = {r: new for r, new in found.items() if all(fits(modules, m.entry, m.today) for m in new)}
        found = fitting or found
    if len(found) > 1:
        ways = " or ".join(f"{old!r} to {new!r}" for old, new in found)
        raise AdapterMismatchError(
            f"the adapter fits {type(modules['']).__name__} in {len(found)} ways: its names could change from {ways}. "
            "Load it onto the part that is meant, or rename its tensors."
        )
    return next(((new, rewrite, _retold(config, rewrite)) for rewrite, new in found.items()), None)


def _retold(config: LoRAConfig, rewrite: Rewrite) -> LoRAConfig:
    """Return a config whose target_parameters have the new prefix where they are full names; endings fit as ever."""
    named = [rewritten(entry, rewrite) for entry in config.target_parameters or ()] if rewrite[0] else None
    return config.copy(target_parameters=named) if named else config


def _missing(
    modules: Mapping[str, nn.Module], old: LoRAConfig, moves: Sequence[Move], rewrite: Rewrite | None
) -> list[str]:
    """Return what the file should hold besides: of a rewritten part what the list names, else layers like its own."""
    layers = [n for n, m in modules.items() if n and kind_of(m) is not None]
    held = {today_name.rpartition(".")[0] for m in moves for today_name in m.today.names}
    adapted = [n for m in moves if not m.entry.is_saved for n in _adapted(m)]
    if rewrite is None or old.target_modules is None or old.target_modules in PRESETS:
        return lopsided(old, adapted, [*layers, *parameter_names(modules)])
    before, after = rewrite
    inside = {rewritten(n, (after, before)): n for n in layers if not after or n.startswith(after + ".")}
    return [inside[n] for n in listed_modules(old, inside) if inside[n] not in held]


def _adapted(move: Move) -> list[str]:
    """Return what a move adapts: layers by their own name, other parameters by theirs."""
    return [name.removesuffix(".weight") for name in move.today.names]


def _say(modules: Mapping[str, nn.Module], rewrite: Rewrite) -> None:
    old, new = (f"{prefix}." if prefix else "no prefix" for prefix in rewrite)
    warnings.warn(
        f"the adapter was made for another class than {type(modules['']).__name__}: its names begin with {old!r}, the "
        f"model's with {new!r}. Every tensor found its place there, and in no other way.",
        stacklevel=4,
    )
