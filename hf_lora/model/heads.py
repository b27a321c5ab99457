"""New parts of a base: what no checkpoint filled trains in full and is saved along, or it is told that it does not.

Which parameters are new is noted where a checkpoint is loaded (`hooks.note_new`). In a module that only contains
pretrained models, what stands beside them is new.
"""

import copy
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..config.lora_config import LoRAConfig
from ..config.tasks import TASK_TYPES
from ..errors import beginnings, full_name, some
from ..layers.layer import base_modules
from ..layers.specialising import is_pretrained
from ..targets.names import (
    as_endings,
    find_targets,
    is_excluded,
    is_inside,
    match_names,
    parameter_names,
    saved_modules,
)
from .hooks import NEW


def with_heads(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """Return a config whose modules_to_save have the model's new parts and the heads of its task.

    Each new parameter is covered by the largest module that is new as a whole, or by the module that owns it. What
    exclude_modules names stays frozen, and so does what carries a target of the config's own. A UserWarning tells of
    parts beside pretrained models, which nobody named, and of new parameters in no module that could be saved for them.
    """
    modules = dict(base_modules(model))
    heads = TASK_TYPES[config.task_type].heads if config.task_type else ()
    names = [n for n in match_names(heads, modules) if "." not in n]
    new, beside = _new_parameters(modules)
    given = list(config.modules_to_save or ())
    outside = _outside(model, modules, config, beside)
    loose = [*(n for n in (*new, *beside) if "." not in n), *_in_adapted(model, modules, config, new)]
    covered = [*_covering(modules, [n for n in new if n not in loose]), *outside]
    names = [n for n in dict.fromkeys([*names, *covered]) if any(True for _ in modules[n].parameters())]
    extra = [n for n in names if n not in saved_modules(given, modules) and not is_excluded(config, n)]
    if told := [n for n in extra if n in outside]:
        warnings.warn(
            f"{some(told)}: beside the pretrained models in {type(model).__name__}, so taken to be new; trained in "
            "full and saved along. Name such modules in modules_to_save to say so, or in exclude_modules to leave "
            "them as they are.",
            stacklevel=4,
        )
    if loose:
        warnings.warn(
            f"{some(loose)}: new parameters of a {type(model).__name__} beside what it knows or what is adapted, which "
            "stay as they are and are in no adapter's file. Put them into a module of their own, or name theirs in "
            "modules_to_save, to have them trained and saved.",
            stacklevel=4,
        )
    return config.copy(modules_to_save=[*given, *as_endings(extra, list(modules))] or None)


def left_at_random(model: nn.Module, held: Collection[str]) -> list[str]:
    """Return the parameters that neither a checkpoint filled nor an adapter holds, sorted; held: those it holds."""
    new, _ = _new_parameters(dict(base_modules(model)))
    return sorted({*new} - {*held})


def label_layers(auto_class: Any, config: Any) -> list[str]:
    """Return the names of the modules whose size the number of labels decides; no weight is made to find them.

    auto_class: of Transformers; config: of a base that it loads, left unchanged.
    """
    shapes = []
    for labels in (2, 3):
        other = copy.deepcopy(config)
        other.num_labels = labels
        with torch.device("meta"):
            shapes.append({name: p.shape for name, p in auto_class.from_config(other).named_parameters()})
    two, three = shapes
    return sorted({name.rpartition(".")[0] for name, shape in two.items() if three.get(name) != shape})


def _new_parameters(modules: Mapping[str, nn.Module]) -> tuple[list[str], list[str]]:
    """Return the names of the parameters that are new in pretrained models, and of those beside all of these."""
    parts = list(_pretrained(modules))
    new = [full_name(name, each) for name in parts for each in sorted(modules[name].__dict__.get(NEW, ()))]
    if not parts or "" in parts:
        return new, []
    inside = {id(p) for name in parts for p in modules[name].parameters()}  # an output layer may be tied to a table
    own = ((full_name(n, key), p) for n, m in modules.items() for key, p in m._parameters.items() if p is not None)
    return new, [name for name, p in own if id(p) not in inside]


def _pretrained(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yield the names of the outermost models that a checkpoint filled; in a plain module, of any of Transformers'."""
    models = {n: m for n, m in modules.items() if is_pretrained(m)}
    filled = {n for n, m in models.items() if NEW in m.__dict__ or bool(getattr(m, "name_or_path", None))}
    found = filled or (set() if "" in models else set(models))
    yield from (n for n in modules if n in found and not any(n != o and is_inside(n, o) for o in found))


def _covering(modules: Mapping[str, nn.Module], new: Iterable[str]) -> list[str]:
    """Return the modules that cover new parameters, each the largest that is new as a whole."""
    wanted = set(new)
    others = {above for name in parameter_names(modules) if name not in wanted for above in beginnings(name)}
    owned = ((name.rpartition(".")[0], beginnings(name)[:-1]) for name in sorted(wanted))
    largest = [next((each for each in above if each not in others), owner) for owner, above in owned]
    return [name for name in dict.fromkeys(largest) if name]


def _outside(model: nn.Module, modules: Mapping[str, nn.Module], config: LoRAConfig, beside: list[str]) -> list[str]:
    """Return the modules that cover the parameters beside pretrained models and carry no target of the config."""
    covering = _covering(modules, beside)
    targets = _targets(model, modules, config) if covering else []
    return [name for name in covering if not any(is_inside(target, name) for target in targets)]


def _in_adapted(model: nn.Module, modules: Mapping[str, nn.Module], config: LoRAConfig, new: list[str]) -> list[str]:
    """Return the new parameters of modules that are old otherwise and carry targets: of a trunk, of an adapted layer.

    To save such a module whole would leave nothing to adapt.
    """
    wanted, kept = set(new), saved_modules(config.modules_to_save or (), modules)
    old = {name.rpartition(".")[0] for name in parameter_names(modules) if name not in wanted}
    owners = {name: owner for name in new if (owner := name.rpartition(".")[0]) and owner not in kept}
    part = {n: o for n, o in owners.items() if any(is_inside(each, o) for each in old)}
    targets = _targets(model, modules, config) if part else []
    return [name for name, owner in part.items() if any(is_inside(target, owner) for target in targets)]


def _targets(model: nn.Module, modules: Mapping[str, nn.Module], config: LoRAConfig) -> list[str]:
    """Return the modules that a config adapts, or a parameter of."""
    targets, parameters = find_targets(model, config.copy(modules_to_save=None), modules)
    return [*targets, *(name.rpartition(".")[0] for name in parameters)]
