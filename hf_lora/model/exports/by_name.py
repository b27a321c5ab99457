"""The factors of a plain adapter by the names that checkpoints have, which engines know: fused experts one by one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import EngineError, full_name, numberless
from ...formats.engines.factors import MERGES, Factors
from ...formats.engines.facts import companions
from ...kinds.table import KINDS, kind_of
from ...layers.layer import base_modules
from ...layers.specialising import is_pretrained
from ...variants.adapter import own_tensor
from .plain import NAME


def factors_of(model: Any) -> dict[str, Factors]:
    """Return the factors of a model's plain adapter by the modules of its checkpoint, of experts one by one.

    Raises EngineError for what is no matrix (convolutions, packed attention), and for experts without such names.
    """
    found: dict[str, Factors] = {}
    for module, _, _, adapter in model._lora.carried(NAME):
        if not adapter.low_rank:
            continue
        kind, pairs = KINDS[adapter.kind], adapter.pairs()
        a, b = pairs.a.detach(), pairs.b.detach() * pairs.scaling
        name = full_name(module, adapter.parameter)
        if kind.stacked:
            found |= _by_expert(model, name, a, b)
        elif (kind.is_matrix or kind.embeds) and adapter.parameter == "weight":
            found[module] = Factors(a, b, kind.embeds)
        else:
            raise EngineError(f"{name} is a {adapter.kind}, of which no engine takes factors; {MERGES}.")
    return found


def _by_expert(model: Any, name: str, a: Tensor, b: Tensor) -> dict[str, Factors]:
    """Return the factors of each matrix of a stack by the names of its checkpoint; a: (experts, r, in)."""
    # Transformers' own table says them: B has the rows of the weight, and goes the way that the weight would go.
    if not is_pretrained(model):
        raise EngineError(f"{name}: nobody knows how the checkpoints of a {type(model).__name__} name its experts.")
    from transformers.core_model_loading import revert_weight_conversion

    parts = revert_weight_conversion(model, {name: b.contiguous()})
    numbers = {key: found for key in parts if (found := re.search(r"\.experts\.(\d+)\.", key))}
    if len(numbers) != len(parts) or not numbers:
        raise EngineError(
            f"{name}: the checkpoints of {model.config.model_type} hold their experts in one parameter, on which no "
            f"engine takes adapters; {MERGES}."
        )
    return {key.removesuffix(".weight"): Factors(a[int(found[1])], parts[key]) for key, found in numbers.items()}


def padding(
    model: Any, factors: dict[str, Factors], every_layer: bool, beside: Mapping[str, tuple[str, ...]]
) -> dict[str, Factors]:
    """Return factors of zeros for layers that an engine wants beside those that have some.

    every_layer: all layers of a kind of which some are adapted. beside: which others, by the last part of a name.
    """
    kinds = {numberless(name) for name in factors} if every_layer else set()
    others = {other for name in factors for other in companions(name, beside)}
    rank = max(len(each.a) for each in factors.values())
    return {
        name: Factors(torch.zeros(rank, in_), torch.zeros(out, rank))
        for name, (out, in_) in _sizes(model)
        if name not in factors and (numberless(name) in kinds or name in others)
    }


def widened(each: Factors, rank: int) -> Factors:
    """Return the factors of a matrix filled up with zeros to a rank."""
    more = rank - len(each.a)
    return Factors(F.pad(each.a, (0, 0, 0, more)), F.pad(each.b, (0, more)))


def _sizes(model: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (name, (out, in)) of every layer that is a matrix."""
    for name, layer in base_modules(model):
        kind = kind_of(layer)
        own = None if kind is None or not kind.is_matrix else own_tensor(layer, "weight")
        if kind is not None and own is not None:
            out, in_ = kind.matrix(own).shape
            yield name, (out, in_)
