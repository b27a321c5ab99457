"""What does not fit between a file and a model: layers that the file lacks, and the error that lists all.

An adapter with a layer dropped must not load as if it were whole. A list of targets names modules, and the file must
hold each that the model has; names that match nothing mean nothing. Where there is no list, layers that are alike but
for their numbers must be held all or none. A module saved in full is there with all of its parameters.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import nn

from ..config.keys import PRESETS
from ..config.lora_config import LoRAConfig
from ..errors import AdapterMismatchError, full_name, numberless, some
from ..kinds.table import kind_of
from ..targets.names import input_table, is_inside, listed_modules, match_names, parameter_names, saved_modules
from ..variants.table import ADAPTERS, SAVED
from .keys import split_key, unwrapped

_MOST = 6  # problems that an error tells
Held = Collection[tuple[str, str, str]]  # (module, parameter, role) of what a file holds


def missing_names(config: LoRAConfig, modules: Mapping[str, nn.Module], held: Held) -> list[str]:
    """Return what a config targets in a model and a file does not hold, by full name."""
    names = {name for module, parameter, _ in held for name in (module, full_name(module, parameter))}
    wanted = [n for n in listed_modules(config, modules) if kind_of(modules[n]) is not None]
    wanted += _not_excluded(config, match_names(config.target_parameters or (), parameter_names(modules)))
    if config.target_modules is None or config.target_modules in PRESETS:
        adapted = [module for module, _, role in held if ADAPTERS[role].low_rank]
        wanted += lopsided(config, adapted, [n for n, m in modules.items() if kind_of(m) is not None])
    missing = [name for name in wanted if name not in names]
    return missing + _tokenless(config, modules, held) + _unsaved(config, modules, held)


def _tokenless(config: LoRAConfig, modules: Mapping[str, nn.Module], held: Held) -> list[str]:
    """Return the tables whose rows a config trains and a file does not hold; one of several tied ones is enough."""
    tables = [module for module, _, role in held if ADAPTERS[role].of_rows]
    wanted = config.trainable_token_indices or ()
    if not isinstance(wanted, Mapping):
        return ["the rows in trainable_token_indices"] if wanted and not tables else []
    weights = {id(modules[n]._parameters.get("weight")) for n in tables}
    listed = match_names([name for name, rows in wanted.items() if rows], modules)
    return [f"the token rows of {n}" for n in listed if id(modules[n]._parameters.get("weight")) not in weights]


def _unsaved(config: LoRAConfig, modules: Mapping[str, nn.Module], held: Held) -> list[str]:
    """Return the parameters that a file lacks of what it saves in full."""
    saved = {(module, parameter) for module, parameter, role in held if ADAPTERS[role].whole}
    listed = saved_modules(config.modules_to_save or (), modules)
    inside = [n for n in modules if any(is_inside(n, name) for name in listed)]
    owners = dict.fromkeys([*inside, *(module for module, parameter in saved if parameter == "weight")])
    wanted = [(n, p) for n in owners for p, value in modules[n]._parameters.items() if value is not None]
    if config.bias != "none":
        biased = [n for n, m in modules.items() if m._parameters.get("bias") is not None]
        wanted += [(n, "bias") for n in lopsided(config, [m for m, p in saved if p == "bias"], biased)]
    return [full_name(*place) for place in dict.fromkeys(wanted) if place not in saved]


def lopsided(config: LoRAConfig, adapted: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names that differ from an adapted one in numbers only and are not adapted, unless the config chose."""
    spec = config.target_modules
    chosen = isinstance(spec, str) and spec not in PRESETS
    entries = () if spec is None or isinstance(spec, str) else spec
    if chosen or config.layers_to_transform not in (None, []) or any(numberless(e) != e for e in entries):
        return []
    held = set(adapted)
    shapes = {numberless(name) for name in held}
    return _not_excluded(config, [n for n in names if n not in held and numberless(n) in shapes])


def _not_excluded(config: LoRAConfig, names: list[str]) -> list[str]:
    if not names:
        return []
    return listed_modules(config.copy(target_modules=names, layers_to_transform=None, layers_pattern=None), names)


def mismatch(
    modules: Mapping[str, nn.Module], unexpected: Sequence[str], problems: Sequence[str], count: int
) -> AdapterMismatchError:
    """Return the error that lists what does not fit, with the nearest names for each key without a place."""
    said = [f"unexpected {key}{_nearest(key, modules) if i < _MOST else ''}" for i, key in enumerate(unexpected)]
    shown = some([*said, *problems], _MOST, "; ")
    return AdapterMismatchError(
        f"the adapter does not fit {type(modules['']).__name__}: {shown}. Its file holds {count} tensors. Load it onto "
        "the base it was trained on (base_model_name_or_path in its adapter_config.json), of the same class."
    )


def other_size(model: nn.Module, own: Sequence[int], found: Sequence[int], is_whole: bool) -> str:
    """Say what to do where a tensor is for another vocabulary or number of labels; nothing where it is for neither.

    own, found: its shapes in the model and in the file. is_whole: whether it is all of a parameter, as a head's is.
    """
    differing = [(n, m) for n, m in zip(own, found, strict=False) if n != m]
    if len(own) != len(found) or len(differing) != 1:
        return ""
    ((have, held),) = differing
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    if is_whole and own[0] == have == labels:
        return (
            f" (a head for {held} labels, where the model has num_labels={labels}: load the base with "
            f"num_labels={held}, which LoRAModel.from_pretrained does by itself where neither num_labels nor a loaded "
            f"base_model is given; for {labels} labels, train a new adapter)"
        )
    table = input_table(model)
    if not isinstance(table, nn.Embedding) or table.num_embeddings != have:
        return ""
    return f" (another vocabulary: the model has {have} rows; call model.resize_token_embeddings({held}) first)"


def _nearest(key: str, modules: Mapping[str, nn.Module]) -> str:
    path, leaf, attribute = split_key(key)
    path, _ = unwrapped(path)
    if path in modules:
        return f" ({path or type(modules['']).__name__} has no {leaf})" if attribute == SAVED.name else ""
    near = difflib.get_close_matches(path, [n for n in modules if n], n=2, cutoff=0.6)
    return f" (nearest: {', '.join(near)})" if near else ""
