"""Tied weights: which names share one parameter, and what the config must say once merging has parted them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tied_groups(model: nn.Module, originals: Mapping[int, Tensor]) -> list[tuple[str, ...]]:
    """Return the groups of parameter names that share one parameter.

    originals: what a merged parameter was before, by its id.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(originals.get(id(parameter), parameter)), []).append(name)
    return [tuple(group) for group in names.values() if len(group) > 1]


def is_plain(tensor: object) -> bool:
    """Tell whether a tensor is torch's own kind: no subclass that holds its values in another way (packed, sharded)."""
    return type(tensor) in (Tensor, nn.Parameter)


def untie(model: nn.Module, tied: list[tuple[str, ...]]) -> None:
    """Where merging parted weights that were tied, part them wholly, so that a reloaded model is the same.

    Those that it left equal, such as a table and a head of which the same rows were trained, are tied again.

    The config says no longer that they are tied, and every name has a parameter of its own: what still shared one
    would be saved once and tied to the wrong one again. So would the model's other tied weights (BERT's table and head
    where their biases were parted), which the same setting ties.
    """
    _tie_equal(model, tied)
    now = dict(model.named_parameters(remove_duplicate=False))
    keys = getattr(model, "all_tied_weights_keys", None) or {}
    apart = [g for g in tied if len({id(now[n]) for n in g if n in now}) > 1]
    parted = [g for g in tied if g in apart or (apart and any({k, v} <= {*g} for k, v in keys.items()))]
    for group in parted:
        seen: set[int] = set()  # parameters, and the modules that hold them
        for name in group:
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            if id(module) in seen:  # one module of two names, as BART's tables are once they were resized
                module = _parted(model, owner, module)
            if id(now[name]) in seen:
                parameter = nn.Parameter(now[name].detach().clone(), requires_grad=now[name].requires_grad)
                module._parameters[leaf] = parameter
            seen |= {id(now[name]), id(module)}
    config = getattr(model, "config", None)
    if not parted or config is None:
        return
    for part in (config, getattr(config, "get_text_config", lambda: config)()):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
    if keys:
        gone = {n for g in parted for n in g}
        model.__dict__["all_tied_weights_keys"] = {k: v for k, v in keys.items() if not {k, v} <= gone}


def _tie_equal(model: nn.Module, tied: list[tuple[str, ...]]) -> None:
    now = dict(model.named_parameters(remove_duplicate=False))
    for first, *others in filter(None, ([n for n in group if n in now] for group in tied)):
        own = now[first]
        apart = [now[n] for n in others if now[n] is not own]
        if apart and all(not p.is_meta and p.dtype == own.dtype and torch.equal(p, own) for p in apart):
            for name in others:
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner)._parameters[leaf] = now[first]


def _parted(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module with the same parameters and hooks in the place of one that another name stands for as well."""
    own = copy.copy(module)
    own._parameters = dict(module._parameters)
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = own
    return own
