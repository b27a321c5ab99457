"""Adapters made of others that are on the model: a frozen copy, and a weighted combination.

A combination is plain LoRA with a scaling of 1, whatever it was made of: each adapter is asked for the pairs of factors
that are all it adds to a weight (`Adapter.pairs`), and `maths/combining.py` makes one pair of them.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError, ConfigError, full_name, some
from ..formats.pairs import with_sizes
from ..kinds.table import KINDS
from ..layers.offload import brought_in
from ..layers.state import CHANGES, AdapterState, Record
from ..maths import combining as maths
from ..maths.low_rank import product
from ..maths.subspaces import Decomposed
from ..targets.names import as_endings, match_names, parameter_names
from ..targets.site import Site
from ..variants.adapter import NO_SUM, Adapter
from ..variants.spec import Product
from ..variants.table import switches
from .attaching import Groups, origin_of, own_modules, put_on
from .recipes import Request
from .selecting import check_known, check_name, check_together


class Term(NamedTuple):
    """One adapter's share of a parameter: its weight, its pairs of factors, and what it adds to the bias."""

    weight: float
    pairs: Product
    bias: Tensor | None


class Place(NamedTuple):
    """One parameter of the combination: its site but for the rank, and the adapters' shares."""

    site: Site
    terms: list[Term]

    def rank(self, parts: int) -> int:
        """Return the rank that a config says, of pairs of that rank."""
        return KINDS[self.site.kind].whole_rank(parts, self.site.shape)


def copy_frozen(model: nn.Module, state: AdapterState, name: str, new: str) -> None:
    """Attach a copy of an adapter under a new name, which never trains; what is active stays so."""
    with CHANGES:
        record = state.records[name]
        put_on(model, state, new, _copies(state, name), Record(record.config.copy(), record.origin))


def _copies(state: AdapterState, name: str, low_rank: bool = True) -> Groups:
    """Return copies of an adapter's parts, of all or of those that are no products."""
    memo: dict[int, Any] = {}  # an adapter that two tied layers share is one in the copy as well
    groups: Groups = {}
    for module, layer, key, adapter in state.carried(name):
        if low_rank or not adapter.low_rank:
            behind, shown = key in layer.behind(name), layer._steps.shown
            site = Site(adapter.parameter, adapter.role, module=module, behind=behind, shown=shown)
            groups.setdefault(module, {})[key] = (site, copy.deepcopy(adapter, memo))
    return groups


def combine(model: nn.Module, state: AdapterState, asked: Request, new: str) -> None:
    """Attach the weighted combination of adapters under a new name; what is active stays so.

    It trains when it is selected if all of them do. Raises AdapterNameError, AdapterStateError, ConfigError and
    TargetError with the model unchanged.
    """
    with CHANGES:
        check_name(new, state.records)
        groups, record = combined(model, state, asked)
        put_on(model, state, new, groups, replace(record, origin=replace(record.origin, recipe=asked.recipe())))


def combined(
    model: nn.Module, state: AdapterState, asked: Request, chosen: Callable[[Place], int] | None = None
) -> tuple[Groups, Record]:
    """Return a combination beside the model, by module and key, and its record.

    chosen: the rank of a parameter's pairs; the same for all of them, as `asked` says, unless given.
    """
    check_known(state, asked.adapters)
    modules = own_modules(model, state)
    keeper = _check(state, asked)
    groups = {} if keeper is None else _copies(state, keeper, low_rank=False)
    places = _places(state, asked)
    names = _names(state, asked, places, modules)
    config = _config(state, asked, keeper, places, names, modules)
    if chosen is None:
        rank = _rank(asked, places)
        config = config.copy(r=rank, lora_alpha=rank)
    else:
        ranks: dict[str, int] = {}
        for name, place in zip(names, places, strict=True):
            ranks[name] = max(ranks.get(name, 1), place.rank(chosen(place)))
        config = with_sizes(config, {name: (rank, rank) for name, rank in ranks.items()})
    draw = None if asked.seed is None else torch.Generator("cpu").manual_seed(asked.seed)
    for name, place in zip(names, places, strict=True):
        KINDS[place.site.kind].check(modules[place.site.module], place.site.module, config.rank_of(name))
    for name, place in zip(names, places, strict=True):
        made = _made(asked, place, config, config.rank_of(name), modules[place.site.module], draw)
        groups.setdefault(place.site.module, {})[place.site.key] = made
    origin = origin_of(model, modules, [site for group in groups.values() for site, _ in group.values()])
    return groups, Record(config, origin, all(state.records[name].trainable for name in asked.adapters))


def _names(state: AdapterState, asked: Request, places: list[Place], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the name by which a config knows each place: a raw parameter's, a module's, or that of its attention."""
    raw = [name for adapter in asked.adapters for name in state.configs[adapter].target_parameters or ()]
    names = []
    for place in places:
        module, full = place.site.module, full_name(place.site.module, place.site.parameter)
        owner = module.rpartition(".")[0]
        is_part = isinstance(modules.get(owner), nn.MultiheadAttention)  # its output projection
        is_raw = not place.site.behind and bool(match_names(raw, [full]))
        names.append(full if is_raw else owner if is_part else module)
    return names


def _check(state: AdapterState, asked: Request) -> str | None:
    """Return the adapter whose whole copies and token rows the combination takes over, None where there are none."""
    held = {name: [each.adapter for each in state.carried(name)] for name in asked.adapters}
    others = {name: a.row.title for name, each in held.items() for a in each if a.low_rank and a.pairs() is None}
    if others:
        raise AdapterStateError(
            f"{', '.join(f'{name!r} is {title}' for name, title in others.items())}, {NO_SUM}: it has no lower rank "
            "and no weighted combination. Name other adapters, or merge it (merge_and_unload) and train or load the "
            "others on the result."
        )
    keepers = {name: each for name, each in held.items() if not all(a.low_rank for a in each)}
    if len(keepers) > 1:
        raise AdapterStateError(
            f"{', '.join(map(repr, keepers))} each hold parts in full (modules_to_save, biases or token rows), of "
            "which there is no combination. Name one such adapter at most."
        )
    keeper = next(iter(keepers), None)
    if keeper is not None and (weight := asked.weights[asked.adapters.index(keeper)]) <= 0:
        raise AdapterStateError(
            f"{keeper!r} with the weight {weight:g} holds parts in full (modules_to_save, biases or token rows), which "
            "are taken over as they are and cannot be taken off. Give it a positive weight."
        )
    biased = {name for name in asked.adapters if state.configs[name].lora_bias}
    if biased and (len(biased) < len(asked.adapters) or not asked.method.is_linear):
        raise ConfigError(
            f"lora_bias of {some(sorted(biased))}: biases of B are combined by 'svd', 'linear' and 'cat', and where "
            "all of the adapters have them."
        )
    check_together(state, asked.adapters)
    return keeper


@torch.no_grad()
def _places(state: AdapterState, asked: Request) -> list[Place]:
    """Return every parameter that one of the adapters adds a product to, by name, so that draws come in one order."""
    places = []
    for module, layer in sorted(state.layers.items()):
        for key in dict.fromkeys(key for name in asked.adapters for key in layer.carried(name)):
            there = {name: a for name in asked.adapters if (a := layer.carried(name).get(key)) and a.low_rank}
            if not there:
                continue
            (first, adapter), *_ = there.items()
            weights, terms = dict(zip(asked.adapters, asked.weights, strict=True)), []
            for name, each in there.items():
                with brought_in(each):
                    pairs = each.pairs()
                    assert pairs is not None
                    bias = each.effective_bias(None) if each.changes_bias else None
                    terms.append(Term(weights[name], _wide(pairs), bias))
            behind, shown = key in layer.behind(first), layer._steps.shown
            places.append(Place(Site(**vars(adapter.plain()), module=module, behind=behind, shown=shown), terms))
    if not places:
        raise AdapterStateError(f"{list(asked.adapters)} add no product to any weight: there is nothing to combine.")
    return places


def _wide(pairs: Product) -> Product:
    dtype = torch.promote_types(torch.promote_types(pairs.a.dtype, pairs.b.dtype), torch.float32)
    return Product(pairs.a.to(dtype), pairs.b.to(dtype), pairs.scaling)


def _rank(asked: Request, places: list[Place]) -> int:
    """Return the rank of the combination, the same for every parameter. Raises ConfigError where it has none."""
    ranks = [[place.rank(term.pairs.a.shape[-2]) for term in place.terms] for place in places]
    if asked.method.acts_on == "pairs":
        return max(map(sum, ranks))
    if asked.method.acts_on == "factors" and (odd := [i for i, each in enumerate(ranks) if len({*each}) > 1]):
        raise ConfigError(
            f"combination_type={asked.combination_type!r} adds factors up, which have the ranks "
            f"{', '.join(map(str, ranks[odd[0]]))} at {places[odd[0]].site.module}. Use 'svd' or 'cat', or one that "
            "ends in '_svd', which take any ranks."
        )
    return asked.svd_rank or max(max(each) for each in ranks)


def _config(
    state: AdapterState,
    asked: Request,
    keeper: str | None,
    places: list[Place],
    names: list[str],
    modules: Mapping[str, nn.Module],
) -> LoRAConfig:
    """Return the combination's config but for its rank: plain LoRA with its targets written out."""
    configs = [state.configs[name] for name in asked.adapters]
    targets = {name for name in names if name in modules}
    parameters = {*names} - targets
    kept = LoRAConfig() if keeper is None else state.configs[keeper]
    whole = ("modules_to_save", "bias", "trainable_token_indices", "ensure_weight_tying")
    dropouts = {config.lora_dropout for config in configs}
    return configs[0].copy(
        **{switch: False for switch in switches() if hasattr(configs[0], switch)},
        **{key: getattr(kept, key) for key in whole},
        target_modules=as_endings(targets, list(modules)),
        target_parameters=as_endings(parameters, parameter_names(modules)) or None,
        lora_dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        fan_in_fan_out=any(KINDS[place.site.kind].fan_in_fan_out for place in places),
        task_type=configs[0].task_type if keeper is None else kept.task_type,
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
        init_lora_weights=True,
        rank_pattern={},
        alpha_pattern={},
        inference_mode=False,
        other={},
    )


def _made(
    asked: Request, place: Place, config: LoRAConfig, rank: int, layer: nn.Module, draw: torch.Generator | None
) -> tuple[Site, Adapter]:
    """Return the combination of one parameter, with its site."""
    site = replace(place.site, r=rank, dropout=place.site.dropout and config.lora_dropout)
    adapter, parts = site.build(layer), rank // place.rank(1)
    with torch.no_grad():
        biases = [term.weight * term.bias for term in place.terms if term.bias is not None]
        bias = torch.stack(biases).sum(dim=0) if biases else None
        adapter.hold(*_combined(asked, [(t.weight, t.pairs) for t in place.terms], parts, draw), bias)
    return site, adapter


def _combined(
    asked: Request, terms: list[tuple[float, Product]], r: int, draw: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return A (..., k, in) and B (..., out, k), k at most r, of one parameter's combination."""
    method, density, sign = asked.method, asked.density or 1.0, asked.majority_sign_method
    if method.acts_on == "factors":
        roots = [
            math.copysign(math.sqrt(abs(weight * pairs.scaling)), weight * pairs.scaling) for weight, pairs in terms
        ]
        a = maths.combined([pairs.a for _, pairs in terms], roots, method, density, sign, draw)
        b = maths.combined([pairs.b for _, pairs in terms], [*map(abs, roots)], method, density, sign, draw)
        return a, b
    if method.acts_on == "update" and not (method.is_linear and asked.svd_clamp is None and asked.svd_driver is None):
        deltas = [pairs.scaling * product(pairs.a, pairs.b) for _, pairs in terms]
        whole = maths.combined(deltas, [weight for weight, _ in terms], method, density, sign, draw)
        return maths.truncated(whole, r, asked.svd_clamp, asked.svd_driver)
    a = torch.cat([weight * pairs.scaling * pairs.a for weight, pairs in terms], dim=-2)
    b = torch.cat([pairs.b for _, pairs in terms], dim=-1)
    if method.acts_on == "pairs":
        return a, b
    found = Decomposed.of(a, b)
    return found.right.mT[..., :r, :], (found.left * found.values[..., None, :])[..., :r]
