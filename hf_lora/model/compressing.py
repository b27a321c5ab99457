"""A pretrained model whose weights are held by their best low-rank factors, W = B A, to be tuned and saved like any.

Eckart and Young 1936: no other factors of that rank are nearer to W in the Frobenius norm.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..config.keys import PRESETS
from ..errors import ArgumentError, ModelError, TargetError, full_name, some
from ..layers.layer import LoRALayer
from ..layers.tying import is_plain, tied_groups
from ..maths.low_rank import is_finite, product
from ..targets.names import resolve_targets
from .approximating import Approximated, Approximation, Kept, lost
from .bases import load_base
from .low_rank_layers import RANKS, LowRankLinear, put

_LINEAR = (nn.Linear, Conv1D)


def compress(
    model: nn.Module,
    rank: int | None = None,
    energy: float | None = None,
    *,
    target_modules: str | Sequence[str] = "all-linear",
) -> Approximation:
    """Hold chosen weights of a model by their best low-rank factors, in place, and return what each layer loses.

    rank: that of every layer; energy: instead of it, the share of each weight's squared singular values to keep.
    target_modules: as in a LoRAConfig. Layers whose factors would be no smaller than the weight are left as they are
    (`.left` of the result), and so is what "all-linear" and its like reach besides linear layers in float (fused
    experts, packed attention). The factors train where the weight did. `save_pretrained` writes them, and notes the
    ranks in the model's config; `LoRAModel.from_pretrained` and `load_compressed` read that. Once they were tuned,
    `compression_error(original, model)` compares them with the original anew.

    Raises ArgumentError, and TargetError where a target that is named is no linear layer with a weight of its own;
    ModelError for a LoRAModel (merge_and_unload() or unload() first) and for weights that are not finite. The model is
    then unchanged.

    >>> net = nn.Sequential(nn.Linear(64, 64))
    >>> report = compress(net, rank=4, target_modules=["0"])
    >>> net[0].down.weight.shape, report.layers[0].after
    (torch.Size([4, 64]), 512)
    """
    kept, rows, left, made = Kept(rank, energy), list[Approximated](), list[str](), {}
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"compress({type(model).__name__}): it takes a model, an nn.Module.")
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        raise ModelError("the model carries adapters; merge_and_unload() them or unload() them before compress().")
    refused = _refused(model, names := resolve_targets(model, target_modules))
    if refused and (target_modules not in PRESETS or len(refused) == len(names)):
        raise TargetError(some(refused.values(), 6, " "))
    left += refused
    for name in [name for name in names if name not in refused]:
        layer = model.get_submodule(name)
        matrix = _matrix(layer)
        if not is_finite(matrix):
            raise ModelError(f"compress: the weight of {name} has values that are not finite.")
        a, b, values = kept.split(matrix)
        k, before, after = len(a), matrix.numel(), a.numel() + b.numel()
        if after >= before:
            left.append(name)
            continue
        rows.append(Approximated(name, len(values), k, *lost(values, k), before, after))
        made[name] = _factored(layer, a, b)
    if not made:
        raise ArgumentError(
            f"compress(rank={rank}, energy={energy}): none of {some(names)} would be smaller; ask for less of it."
        )
    for name, layer in made.items():
        put(model, name, layer)
    if (config := getattr(model, "config", None)) is not None:
        ranks = {row.layer: row.rank for row in rows}
        setattr(config, RANKS, {**(getattr(config, RANKS, None) or {}), **ranks})
    return Approximation(model, tuple(rows), tuple(left))


def compression_error(original: nn.Module, model: nn.Module) -> Approximation:
    """Return how far a compressed model's weights are from those of the original, also after they were tuned.

    original: the model as it was, in float. Raises ArgumentError where the two have no such layers, ModelError where
    either carries adapters: they are no part of the weights before they are merged.
    """
    if any(isinstance(module, LoRALayer) for each in (original, model) for module in each.modules()):
        raise ModelError("compression_error: a model carries adapters; merge_and_unload() or unload() them first.")
    there, rows = dict(original.named_modules()), []
    for name, layer in model.named_modules():
        if not isinstance(layer, LowRankLinear):
            continue
        own = product(layer.down.weight.detach(), layer.up.weight.detach())
        before = there.get(name)
        is_matrix = type(before) in _LINEAR and is_plain(before.weight)  # type: ignore[union-attr]
        if before is None or not is_matrix or (matrix := _matrix(before)).shape != own.shape:
            found = "none there" if before is None else f"a {type(before).__name__} there"
            raise ArgumentError(
                f"compression_error: {name} holds a {tuple(own.shape)} weight by factors, and the original has {found} "
                "in float of that shape; give the model as it was before compress(), of the same class."
            )
        norm = float(torch.linalg.vector_norm(matrix))
        error = float(torch.linalg.vector_norm(own.to(matrix.device) - matrix)) / norm if norm else 0.0
        rank, after = len(layer.down.weight), layer.down.weight.numel() + layer.up.weight.numel()
        rows.append(Approximated(name, min(matrix.shape), rank, error, norm, matrix.numel(), after))
    if not rows:
        raise ArgumentError(f"compression_error: the {type(model).__name__} has no compressed layers.")
    return Approximation(model, tuple(rows))


def load_compressed(folder: str | os.PathLike[str], **kwargs: Any) -> nn.Module:
    """Return a compressed model that was saved, as the plain Transformers model that it was saved as.

    kwargs: those of `from_pretrained`. Raises BaseLoadError, and ModelError for what is no compressed model.
    """
    auto_class = kwargs.pop("auto_class", None)
    model = load_base(os.fspath(folder), None, auto_class, (), kwargs)
    if not getattr(model.config, RANKS, None):
        raise ModelError(f"{os.fspath(folder)} is no compressed model: its config has no {RANKS!r}.")
    return model


def _refused(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return the targets that have no plain weight of their own -> why not."""
    tied = {name for group in tied_groups(model, {}) for name in group}
    modules, found = dict(model.named_modules()), {}
    for name in names:
        layer = modules.get(name)
        weight = None if layer is None else layer._parameters.get("weight")
        if type(layer) not in _LINEAR or weight is None or not is_plain(weight) or weight.is_meta:
            what = "raw parameter" if layer is None else type(layer).__name__
            found[name] = f"{name} is a {what}: only linear layers in float can be compressed."
        elif full_name(name, "weight") in tied:
            found[name] = f"{name} shares its weight with another layer; leave it out of target_modules."
    return found


def _matrix(layer: nn.Module) -> Tensor:
    """Return a layer's weight as its (out, in) matrix in float32, or wider."""
    weight: Any = layer.weight
    weight = weight.detach()
    matrix: Tensor = weight.mT if isinstance(layer, Conv1D) else weight
    return matrix.to(torch.promote_types(weight.dtype, torch.float32))


def _factored(layer: nn.Module, a: Tensor, b: Tensor) -> LowRankLinear:
    root = torch.linalg.vector_norm(b, dim=0).sqrt().clamp_min(1e-30)  # the singular values, split evenly
    weight: Any = layer.weight
    bias: Any = layer.bias
    own = {"device": weight.device, "dtype": weight.dtype}
    made = LowRankLinear(a.shape[1], len(b), len(a), bias is not None, **own)
    with torch.no_grad():
        made.down.weight.copy_(root[:, None] * a)
        made.up.weight.copy_(b / root)
        if bias is not None:
            made.up.bias.copy_(bias)
    return made.requires_grad_(weight.requires_grad).train(layer.training)
