"""Tied weights: which names share one parameter, and what the config must say once merging has parted them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection

from torch import Tensor, nn

__all__ = ["is_alone", "is_plain", "shared_memory", "tied_groups", "untie"]


def tied_groups(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the groups of parameter names that share one parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [tuple(group) for group in names.values() if len(group) > 1]


def shared_memory(model: nn.Module) -> set[int]:
    """Return the addresses of the storages that more than one parameter or buffer of a model, by name, lies in."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    counts = Counter(t.untyped_storage().data_ptr() for _, t in named if is_plain(t))
    return {address for address, count in counts.items() if count > 1}


def is_alone(tensor: Tensor, shared: Collection[int]) -> bool:
    """Tell whether a tensor may be written in place: torch allocated its memory, for it alone, all of it.

    shared: what `shared_memory` returned. The memory of a file or of numpy cannot be resized.
    """
    if not is_plain(tensor) or tensor.is_inference() or not tensor.is_contiguous():
        return False
    storage = tensor.untyped_storage()
    if storage.device.type == "cpu" and storage.is_shared():  # with another process; on CUDA it is always true
        return False
    return storage.resizable() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in shared


def is_plain(tensor: object) -> bool:
    """Tell whether a tensor is torch's own kind: no subclass that holds its values in another way (packed, sharded)."""
    return type(tensor) in (Tensor, nn.Parameter)


def untie(model: nn.Module, tied: list[tuple[str, ...]]) -> None:
    """Where merging parted weights that were tied, part them wholly, so that a reloaded model is the same.

    The config says no longer that they are tied, and every name has a parameter of its own: what still shared one
    would be saved once and tied to the wrong one again.
    """
    now = dict(model.named_parameters(remove_duplicate=False))
    parted = [g for g in tied if len({id(now[n]) for n in g if n in now}) > 1]
    for group in parted:
        seen: set[int] = set()
        owners: set[int] = set()
        for name in group:
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            if id(module) in owners:  # one module of two names, as BART's tables are once they were resized
                module = _parted(model, owner, module)
            if id(now[name]) in seen:
                parameter = nn.Parameter(now[name].detach().clone(), requires_grad=now[name].requires_grad)
                module._parameters[leaf] = parameter
            seen.add(id(now[name]))
            owners.add(id(module))
    config = getattr(model, "config", None)
    if not parted or config is None:
        return
    for part in {id(c): c for c in (config, getattr(config, "get_text_config", lambda: config)())}.values():
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
    keys = getattr(model, "all_tied_weights_keys", None)
    if keys is not None:
        gone = {n for g in parted for n in g}
        model.__dict__["all_tied_weights_keys"] = {k: v for k, v in keys.items() if not {k, v} <= gone}


def _parted(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module with the same parameters and hooks in the place of one that another name stands for as well."""
    own = copy.copy(module)
    own._parameters = dict(module._parameters)
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = own
    return own
