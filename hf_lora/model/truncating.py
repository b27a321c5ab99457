"""An adapter of a lower rank: of each update B A the best approximation, by its largest singular values.

Trained at twice the rank and truncated, an adapter is often better than one that was trained at that rank.
"""

import os

from ..errors import AdapterStateError, ArgumentError, full_name
from ..layers.state import CHANGES
from ..maths.subspaces import Decomposed
from .approximating import Approximated, Approximation, Kept, lost
from .attaching import put_on
from .combining import Place, combined
from .lora_model import LoRAModel
from .recipes import Request
from .selecting import check_name, remove, select


def truncate(
    adapter: LoRAModel | str | os.PathLike[str],
    rank: int | None = None,
    energy: float | None = None,
    *,
    adapter_name: str | None = None,
    into: str | None = None,
) -> Approximation:
    """Give an adapter a lower rank, and return what each layer loses by it.

    adapter: a LoRAModel, or the folder or Hub id of an adapter, which is then loaded onto its base (`.model` of the
    result). rank: the new rank; energy: instead of it, the share of each update's squared singular values to keep, by
    which each layer gets a rank of its own (`rank_pattern`). adapter_name: of several, which one. into: the name of a
    new adapter beside it, which is not selected; it is replaced unless given.

    The result is plain LoRA with a scaling of 1, whatever it was made of; heads and other parts in full stay. An
    optimizer that holds the old tensors does not train the new ones. Raises ArgumentError, AdapterNameError, and
    AdapterStateError for a formula that is no sum of a weight and a product, with the model unchanged.

    >>> import torch
    >>> from hf_lora import LoRAConfig, add_lora
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    >>> model = add_lora(net, LoRAConfig(r=3, target_modules=["0"], init_lora_weights=False))
    >>> print(truncate(model, rank=3))
    layer  layers  rank  of  error   before  after
    0      1       3     3   0.0000  24         24
    all    1       3     3   0.0000  24         24
    """
    kept, rows = Kept(rank, energy), list[Approximated]()
    model = _model_of(adapter)
    with CHANGES:
        state = model._lora
        name = adapter_name or _only(state.selected, [*state.records])
        if into is not None:
            check_name(into, state.records)

        def chosen(place: Place) -> int:
            ((_, pairs, _),) = place.terms
            values = Decomposed.of(*pairs).values
            k = kept.of(values)
            layer = full_name(place.site.module, place.site.parameter).removesuffix(".weight")
            sizes = [pairs.a.numel() + pairs.b.numel(), (pairs.a.numel() + pairs.b.numel()) // pairs.a.shape[-2] * k]
            rows.append(Approximated(layer, pairs.a.shape[-2], k, *lost(values, k), *sizes))
            return k

        groups, record = combined(model, state, Request.of([name], [1.0]), chosen)
        route = state.selected
        if into is None:
            if name in state.merged:
                state.refuse_while_merged("truncate")
            state.refuse_inside("truncate", name)
            remove(state, name)
        put_on(model, state, into or name, groups, record)
        if into is None and name in route:
            select(state, route)
    return Approximation(model, tuple(rows))


def _model_of(adapter: object) -> LoRAModel:
    if isinstance(adapter, str | os.PathLike):
        return LoRAModel.from_pretrained(os.fspath(adapter), is_trainable=True)
    if not isinstance(adapter, LoRAModel):
        raise ArgumentError(
            f"truncate({type(adapter).__name__}): it takes a LoRAModel, or an adapter's folder or Hub id."
        )
    return adapter


def _only(selected: tuple[str, ...], there: list[str]) -> str:
    names = list(selected) or there
    if len(names) != 1:
        raise AdapterStateError(
            f"truncate: the model has the adapters {names}; say which one, adapter_name={names[:1]}."
        )
    return names[0]
