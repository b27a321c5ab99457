"""Norms and effective ranks of the adapters' updates, which a Trainer's trackers get beside the loss.

Per adapter and group of layers, the means over the group (and over the experts of a fused stack):

    lora/<adapter>/norm/<group>             |scaling B A|, the Frobenius norm of what is added to a weight
    lora/<adapter>/relative_norm/<group>    the same over |W|, the weight's own
    lora/<adapter>/effective_rank/<group>   of B A: how many directions it uses, between 1 and r; 0 while it is zero
    lora/<adapter>/.../<group>              what a formula has besides: its class says it (`measured`)

A group is a row of `targets_report`, with N for its "*", which some trackers refuse in a name. Where an initialisation
takes its factors out of the weight (PiSSA), B A is what has been added since; of a formula that scales the sum, what is
added before. The effective rank is Roy and Vetterli's (2007).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import full_name, numberless
from ..kinds.table import KINDS
from ..layers.layer import LoRALayer
from ..layers.tying import is_plain
from ..maths import low_rank
from ..variants.adapter import Adapter, own_tensor
from ..variants.spec import Product

_Place = tuple[str, str, LoRALayer, Adapter, Product]  # adapter name, group, the layer, its adapter, what it adds
# adapter -> the shape of the weight it adapts, and the length of each of its rows, (..., out); the base stays as it is
# while it has adapters
_BASE_ROWS: WeakKeyDictionary[Adapter, tuple[torch.Size, Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def lora_scalars(model: Any) -> dict[str, float]:
    """Return the scalars of a LoRAModel's adapters that are active and train, by name, in the order of the layers.

    Nothing of the model is changed and nothing drawn at random. Adapters whose tensors are not whole in this process
    (FSDP, ZeRO-3) are left out: gathering them would take every process.

    >>> from hf_lora import LoRAConfig, add_lora
    >>> net = add_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoRAConfig(r=2, target_modules=["0"]))
    >>> lora_scalars(net)["lora/default/norm/N"]
    0.0
    """
    places = list(_places(model._lora))
    stackable: dict[Any, list[_Place]] = defaultdict(list)  # places whose factors have one shape
    for place in places:
        a, b, _ = place[-1]
        stackable[a.shape, b.shape, a.dtype, a.device].append(place)
    measured: dict[int, dict[str, float]] = {}
    for alike in stackable.values():
        measured |= zip((id(place[3]) for place in alike), _measured(alike), strict=True)
    found: dict[str, list[float]] = defaultdict(list)
    for name, group, _, adapter, _ in places:
        for quantity, value in measured[id(adapter)].items():
            found[f"lora/{name}/{quantity}/{group}"].append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _places(state: Any) -> Iterator[_Place]:
    """Yield where LoRA factors are that train now and lie whole in this process."""
    for name in [name for name in state.route if name in state.trainable]:
        for module, layer, _, adapter in state.carried(name):
            if adapter.low_rank and _is_whole(adapter) and (product := adapter.product_of_factors()):
                group = numberless(full_name(module, adapter.parameter)).removesuffix(".weight").replace("*", "N")
                yield name, group, layer, adapter, product


def _is_whole(adapter: Adapter) -> bool:
    sizes = adapter.sizes()
    return all(is_plain(t) and not t.is_meta and tuple(t.shape) == sizes[n] for n, t in adapter.tensors().items())


def _measured(places: list[_Place]) -> Iterator[dict[str, float]]:
    """Yield what is measured of each place; their factors have one shape."""
    a, b = (torch.stack(factors) for factors in zip(*(place[-1][:2] for place in places), strict=True))
    values = low_rank.singular_values(a, b)
    ranks, norms = low_rank.effective_rank(values), torch.linalg.vector_norm(values, dim=-1)
    for (_, _, layer, adapter, product), rank, norm in zip(places, ranks, norms, strict=True):
        norm = abs(product.scaling) * norm
        found = {"norm": norm, "effective_rank": rank}
        if (rows := _base_rows(layer, adapter)) is not None:
            found["relative_norm"] = norm / torch.linalg.vector_norm(rows, dim=-1)
            found |= adapter.measured(rows)
        yield {quantity: float(value.mean()) for quantity, value in found.items()}


def _base_rows(layer: LoRALayer, adapter: Adapter) -> Tensor | None:
    """Return the length of each row of the adapted weight, computed once a shape; None where it cannot be read."""
    weight = own_tensor(layer, adapter.parameter)
    kind: Any = adapter.kind
    if weight is None or weight.is_meta or KINDS[kind].is_opaque:
        return None
    if not is_plain(weight) and adapter.quantised_kind is None:
        return None
    shape, rows = _BASE_ROWS.get(adapter, (None, None))
    if shape != weight.shape:  # or a table was resized since
        found = adapter.row_lengths(adapter.numbers(layer, weight))
        if found is not None:
            rows = found.to("cpu", torch.float64)
            _BASE_ROWS[adapter] = weight.shape, rows
    return rows
