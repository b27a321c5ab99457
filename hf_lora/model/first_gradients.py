"""The gradients of whole weights over a few batches, by their leading singular directions (LoRA-GA).

Wang et al. 2024, arXiv:2407.05000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, TargetError, full_name, some
from ..kinds.table import KINDS
from ..maths import low_rank
from ..targets.site import Site
from ..variants.adapter import own_tensor
from .batches import Place, Shown, run

_CHUNK = 1 << 30  # bytes of gradients that are held at a time
_EXACT = 512  # rows or columns up to which a gradient's decomposition is exact


def of_gradients(model: Any, modules: Mapping[str, nn.Module], sites: list[Site], batches: list[Any]) -> Shown:
    """Return the singular directions of the weights' gradients over all batches.

    Weights are looked at in parts whose gradients need no more than `_CHUNK` bytes, each part with all batches.
    """
    if not batches:
        raise ConfigError("data= holds no batch.")
    weights = {(s.module, s.parameter): own_tensor(modules[s.module], s.parameter) for s in sites}
    packed = {(s.module, s.parameter) for s in sites if KINDS[s.kind].is_quantised}
    if odd := [full_name(*p) for p, w in weights.items() if p in packed or w is None or w.is_meta]:
        raise TargetError(f"{some(odd)}: quantised or offloaded, so that it has no gradient to start from.")
    ranks, seen = {(s.module, s.parameter): (s.r, s) for s in sites}, Shown()
    for part in _parts(weights):  # type: ignore[arg-type]
        for place, gradient in _gradients(model, part, batches).items():
            rank, site = ranks[place]
            matrix = KINDS[site.kind].matrix(gradient)
            n_iter = None if min(matrix.shape) <= _EXACT else 4
            u, _, vh = low_rank.top_singular(matrix, min(2 * rank, *matrix.shape), n_iter, width=4 * rank)
            seen[place] = (u, vh)
    return seen


def _parts(weights: Mapping[Place, Tensor]) -> Iterator[dict[Place, Tensor]]:
    part: dict[Place, Tensor] = {}
    for place, weight in weights.items():
        if part and 4 * sum(w.numel() for w in (*part.values(), weight)) > _CHUNK:
            yield part
            part = {}
        part[place] = weight
    if part:
        yield part


def _gradients(model: Any, weights: Mapping[Place, Tensor], batches: Iterable[Any]) -> dict[Place, Tensor]:
    """Return the mean gradient of some weights, float32 or wider. Raises ConfigError where there is none."""
    sums: dict[Place, Tensor] = {}
    count, flags = 0, {id(w): w.requires_grad for w in weights.values()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            with torch.inference_mode(False), torch.enable_grad():
                loss = _loss(run(model, batch))
                found = torch.autograd.grad(loss, [*weights.values()], allow_unused=True)
            count += 1
            for place, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                    sums[place] = wide if place not in sums else sums[place].add_(wide)
    finally:
        for weight in weights.values():
            weight.requires_grad_(flags[id(weight)])
    if lacking := [full_name(*p) for p in weights if p not in sums or not sums[p].any()]:
        raise ConfigError(
            f"the data gives {some(lacking)} no gradient; name it in exclude_modules, or give other data."
        )
    if odd := [full_name(*p) for p in weights if not sums[p].isfinite().all()]:
        raise ConfigError(f"the data gives {some(odd)} a gradient that is not finite: give data of a finite loss.")
    return {place: each / count for place, each in sums.items()}


def _loss(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("loss")
    if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
        raise ConfigError(
            "a start from gradients needs a loss that has a gradient: give batches with labels, or functions of the "
            "model that return it."
        )
    return found
