"""Finding the places of a file's tensors in today's model, by whatever names they were saved.

Tried one after the other, until every tensor has its place: the names as they are; without what wrappers and versions
of PEFT leave in them; by Transformers' own table of what version 5 renamed, fused and split; with one exact prefix
rewrite, which must be the only one that fits and is said. Nothing is guessed for single tensors.

A rewrite takes an adapter of a model's part to the whole, or of the whole to a part, `model` -> `model.language_model`:
    model.layers.0.mlp.fc1 -> model.language_model.layers.0.mlp.fc1
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..config.keys import PRESETS
from ..config.lora_config import LoRAConfig
from ..errors import AdapterMismatchError
from ..kinds.table import kind_of
from ..targets.names import is_inside, listed_modules, parameter_names
from .entries import Entry, entry_of, fits, has_place
from .keys import plain_keys
from .mismatch import lopsided, mismatch
from .moved import rebuilt
from .peft import Places, place_of
from .renames import Today, todays_names

Rewrite = tuple[str, str]  # (old prefix, new prefix), whole dotted words; either may be empty
_SAME_CLASS = (("module", ""), ("", "module"), ("", "_orig_mod"))  # DistributedDataParallel's, torch.compile's


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
    if None in places.values():
        tensors = _respelled(tensors)
        places = _places(modules, config, tensors)
    found = _placed(modules, config, tensors, places) if None in places.values() else None
    if found is None:
        return config, tensors, places
    entries, rewrite = found
    result = rebuilt(modules, _retold(config, rewrite), entries, same_class=rewrite is None)
    if missing := _missing(modules, config, entries, rewrite):
        raise mismatch(modules, [], [f"missing the tensors of {name}" for name in missing], len(tensors))
    if rewrite is not None and rewrite not in _SAME_CLASS:
        old, new = (f"{prefix}." if prefix else "no prefix" for prefix in rewrite)
        warnings.warn(
            f"the adapter was made for another class than {type(modules['']).__name__}: its names begin with {old!r}, "
            f"the model's with {new!r}. Every tensor found its place there, and in no other way.",
            stacklevel=3,
        )
    return *result, _places(modules, *result)


def rewritten(name: str, rewrite: Rewrite) -> str:
    """Return a name with its prefix changed, or as it is where it has another prefix.

    >>> rewritten("model.layers.0", ("model", "model.language_model"))
    'model.language_model.layers.0'
    """
    old, new = rewrite
    return f"{new}.{name[len(old) :].lstrip('.')}".strip(".") if is_inside(name, old) else name


def rewrites(name: str, names: Iterable[str]) -> list[Rewrite]:
    """Return every prefix rewrite that takes a name to one of the names, each in its shortest form.

    A layer's number belongs to no prefix: rewriting it would move an adapter to another layer.
    """
    words = name.split(".")
    found: dict[Rewrite, None] = {}
    for other in names:
        theirs = other.split(".")
        same = 0
        while same < min(len(words), len(theirs)) and words[-1 - same] == theirs[-1 - same]:
            same += 1
        old, new = words[: len(words) - same], theirs[: len(theirs) - same]
        if same and old != new and not any(word.isdigit() for word in (*old, *new)):
            found[".".join(old), ".".join(new)] = None
    return list(found)


def _places(modules: Mapping[str, nn.Module], config: LoRAConfig, tensors: Mapping[str, Tensor]) -> Places:
    return {key: place_of(key, modules, config) for key in tensors}


def _placed(
    modules: Mapping[str, nn.Module], config: LoRAConfig, tensors: Mapping[str, Tensor], places: Places
) -> tuple[list[Entry], Rewrite | None] | None:
    """Return where every tensor lies today, and the prefix rewrite it took."""
    entries = [entry_of(key, tensor) for key, tensor in tensors.items()]
    lost = [entry for entry in entries if places[entry.key] is None]
    table = todays_names(modules[""], [entry.today.names[0] for entry in lost])
    newer = {entry.key: table.get(entry.today.names[0], entry.today) for entry in lost}
    renamed = [replace(entry, today=newer.get(entry.key, entry.today)) for entry in entries]
    homeless = _homeless(modules, config, renamed)
    if not homeless:
        return renamed, None
    for moved in (entries, renamed):
        first = next(entry for entry in moved if entry.key == lost[0].key)
        if found := _rewrite(modules, config, moved, first):
            return found
    if len(homeless) < len(lost):
        raise mismatch(modules, homeless, [], len(entries))
    return None


def _respelled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their plain keys. Raises AdapterMismatchError where two keys are spellings of one."""
    # PEFT writes what it saves whole twice where biases or a resized vocabulary are saved as well: as `head.weight` and
    # as `head.modules_to_save.weight`, the same numbers.
    origin: dict[str, str] = {}
    for key, plain in plain_keys(tensors).items():
        other = origin.setdefault(plain, key)
        if other != key and not (
            (".modules_to_save." in key) != (".modules_to_save." in other)
            and tensors[key].dtype == tensors[other].dtype
            and torch.equal(tensors[key], tensors[other])
        ):
            raise AdapterMismatchError(
                f"{other} and {key} are two tensors for one place: the file holds several adapters, or one twice. "
                "Save one adapter alone."
            )
    return {plain: tensors[key] for plain, key in origin.items()}


def _homeless(modules: Mapping[str, nn.Module], config: LoRAConfig, entries: Sequence[Entry]) -> list[str]:
    """Return the keys of tensors without a place."""
    return [entry.key for entry in entries if not has_place(modules, config, entry)]


def _rewrite(
    modules: Mapping[str, nn.Module], config: LoRAConfig, entries: Sequence[Entry], first: Entry
) -> tuple[list[Entry], Rewrite] | None:
    """Return the tensors under the one prefix rewrite that places all, and the rewrite; None where there is none."""
    # first: a tensor without a place. A rewrite into a part where other names lie as they are is none: no class saves
    # that. Raises AdapterMismatchError where several place all and fit.
    found: dict[Rewrite, list[Entry]] = {}
    names = [name for entry in entries for name in entry.today.names]
    for rewrite in rewrites(first.today.names[0].rpartition(".")[0], modules):
        if any(is_inside(name, rewrite[1]) for name in names if rewritten(name, rewrite) == name):
            continue
        new = [replace(entry, today=_rewritten(entry.today, rewrite)) for entry in entries]
        if not _homeless(modules, _retold(config, rewrite), new):
            found[rewrite] = new
    if len(found) > 1:
        found = {r: new for r, new in found.items() if all(fits(modules, entry) for entry in new)} or found
    if len(found) > 1:
        ways = " or ".join(f"{old!r} to {new!r}" for old, new in found)
        raise AdapterMismatchError(
            f"the adapter fits {type(modules['']).__name__} in {len(found)} ways: its names could change from {ways}. "
            "Load it onto the part that is meant, or rename its tensors."
        )
    return next(((new, rewrite) for rewrite, new in found.items()), None)


def _rewritten(today: Today, rewrite: Rewrite) -> Today:
    return replace(today, names=tuple(rewritten(name, rewrite) for name in today.names))


def _retold(config: LoRAConfig, rewrite: Rewrite | None) -> LoRAConfig:
    """Return a config whose target_parameters have the new prefix where they begin with the old one or its end."""
    if rewrite is None or not rewrite[0] or not config.target_parameters:
        return config
    words = rewrite[0].split(".")
    ends = [".".join(words[i:]) for i in range(len(words))]
    told = {entry: next((end for end in ends if is_inside(entry, end)), "") for entry in config.target_parameters}
    named = [rewritten(entry, (end, rewrite[1])) if end else entry for entry, end in told.items()]
    return config.copy(target_parameters=named)


def _missing(
    modules: Mapping[str, nn.Module], old: LoRAConfig, entries: Sequence[Entry], rewrite: Rewrite | None
) -> list[str]:
    """Return what the file should hold besides: of a rewritten part what the list names, else layers like its own."""
    layers = [n for n, m in modules.items() if n and kind_of(m) is not None]
    if rewrite is None or old.target_modules is None or old.target_modules in PRESETS:
        adapted = [name.removesuffix(".weight") for e in entries if not e.is_saved for name in e.today.names]
        return lopsided(old, adapted, [*layers, *parameter_names(modules)])
    before, after = rewrite
    held = {name.rpartition(".")[0] for entry in entries for name in entry.today.names}
    inside = {rewritten(n, (after, before)): n for n in layers if is_inside(n, after)}
    return [inside[n] for n in listed_modules(old, inside) if inside[n] not in held]
