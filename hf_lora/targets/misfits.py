"""What PEFT's files have no place for: a weight under two adapters, and saves that its names cannot say.

PEFT puts one wrapper around a module: a low-rank layer, a copy or trained rows, around a raw parameter's owner another
kind. It saves no list or dict of modules whole, only modules that are called.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import chain

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import TargetError, full_name, some
from ..kinds.table import KINDS
from ..variants.table import FORMULAS, LORA
from .names import is_inside, listed_modules, match_names, saved_modules
from .site import Site

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# The modules inside PEFT's low-rank layers, which its modules_to_save matches as well: by any ending of a name.
_INSIDE = ("base_layer", "default", "lora_dropout")


def settle_saved(modules: Mapping[str, nn.Module], config: LoRAConfig) -> LoRAConfig:
    """Return a config whose modules_to_save name what PEFT saves: modules that are called, none inside another.

    modules: the model's own, by full name. A list or dict of modules is named by what is in it, and a target that an
    entry names by the end of a word by its full name: PEFT would adapt it as well. Raises TargetError where full names
    would name other modules as well.
    """
    wanted = config.modules_to_save or []
    found = saved_modules(wanted, modules)
    opened = dict.fromkeys(name for each in found for name in _opened(modules, each))
    names = [n for n in opened if not any(n != other and is_inside(n, other) for other in opened)]
    filled = [n for n in names if _holds(modules[n])]
    halves = [n for n in found if n not in match_names(wanted, found)]  # named by the end of a word
    targets = listed_modules(config.copy(modules_to_save=None), modules) if halves and config.target_modules else ()
    clash = any(map(is_part_of_peft, wanted)) or any(is_inside(target, n) for target in targets for n in halves)
    if not filled or (names == found and not clash):
        return config
    more = [n for n in saved_modules(filled, modules) if n not in names and not any(is_inside(n, m) for m in names)]
    if more:
        raise TargetError(
            f"modules_to_save: {some(filled)} would name {some(more)} as well, because any ending of a name counts "
            "there. Name both, or rename the module."
        )
    idle = [
        e for e in wanted if not any(_holds(modules[n]) for n in saved_modules([e], modules))
    ]  # `plan` refuses them
    return config.copy(modules_to_save=[*filled, *idle])


def misfits(
    modules: Mapping[str, nn.Module],
    config: LoRAConfig,
    sites: Collection[Site],
    adapted: Collection[Site],
    parameters: Collection[str],
) -> Iterator[str]:
    """Yield a sentence for everything that no file of PEFT's can hold.

    sites: of what is saved whole, and of rows. adapted: of low-rank adapters, one for each time that a weight is named.
    parameters: the full names of raw parameters among these.
    """
    for name in saved_modules(config.modules_to_save or (), modules):
        if isinstance(modules[name], _CONTAINERS):
            yield f"modules_to_save: {name} is a {type(modules[name]).__name__}, which is never called; name a module."
    layers = {s.module for s in adapted if full_name(s.module, s.parameter) not in parameters}
    counts = Counter(full_name(s.module, s.parameter) for s in adapted)
    twice = [n for n, count in counts.items() if count > 1 or (n in parameters and n.rpartition(".")[0] in layers)]
    if twice:
        yield (
            f"{some(twice)}: named twice, as a layer (target_modules) and as a parameter (target_parameters) or with "
            "the attention that it is a part of; one layer takes one of them."
        )
    if both := [s.module for s in adapted if _has_rows(modules[s.module], s, sites)]:
        yield (
            f"{some(both)}: a low-rank adapter and trainable_token_indices on one table; choose one, or save the table "
            "whole (modules_to_save)."
        )
    if own := [s.parameter for s in adapted if not s.module]:
        yield f"{some(own)}: a parameter of the model itself; put it into a module of its own to adapt it."
    if parameters and (turned := [s.module for s in adapted if KINDS[s.kind].fan_in_fan_out]):
        yield f"{some(turned)}: a Conv1D layer beside target_parameters; give each an adapter of its own."


def _holds(module: nn.Module) -> bool:
    return any(True for _ in chain(module.parameters(), module.buffers()))


def _has_rows(layer: nn.Module, site: Site, sites: Collection[Site]) -> bool:
    """Return whether a layer that gets an adapter has trained rows; PEFT takes both in an output layer tied to them."""
    rows = next((s for s in sites if s.row.of_rows and s.module == site.module), None)
    return rows is not None and not (rows.shares and isinstance(layer, nn.Linear) and site.role == LORA.name)


def _opened(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """Return the modules that a list or dict of modules holds, those of lists in it included; else the name itself."""
    module = modules[name]
    if not isinstance(module, _CONTAINERS) or module._parameters or module._buffers or not module._modules:
        return [name]
    names = {id(m): n for n, m in modules.items()}  # a module of two names has its first one there
    inside = [names[id(child)] for child in module._modules.values() if child is not None]
    return [each for child in inside for each in _opened(modules, child)]


def is_part_of_peft(ending: str) -> bool:
    """Return whether a modules_to_save entry of PEFT's matches something inside of its own low-rank layers."""
    keys = (key.partition(".")[0] for row in FORMULAS.values() for stored in row.tensors for key in stored.keys)
    return any(name.endswith(ending) for name in (*_INSIDE, *keys))
