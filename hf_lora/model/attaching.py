"""Attaching adapters that were made beside a model: all of them, or none where one layer refuses."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ..errors import AdapterStateError, TargetError
from ..layers.distributed import refuse_spread
from ..layers.layer import TAKEN, LoRALayer, attach, base_modules
from ..layers.offload import brought_in
from ..layers.state import BLOCKS, CHANGES, AdapterState, Origin, Record
from ..targets.site import Site
from ..variants.adapter import Adapter
from ..variants.initial import INITS
from ..variants.table import SAVED
from . import provenance
from .selecting import check_name, remove

Groups = dict[str, dict[str, tuple[Site, Adapter]]]


def put_on(model: nn.Module, state: AdapterState, name: str, groups: Groups, record: Record) -> None:
    """Attach adapters that were made beside the model; what is active stays so."""
    with CHANGES:
        check_name(name, state.records)
        state.refuse_while_merged("adding an adapter")
        attach_groups(state, {module: model.get_submodule(module) for module in groups}, groups, name, record)


def build(state: AdapterState, modules: Mapping[str, nn.Module], sites: Iterable[Site]) -> Groups:
    """Return the empty adapters of sites. Raises AdapterStateError and TargetError where a layer cannot take one."""
    groups: Groups = {}
    firsts: dict[str, Adapter] = {}
    for site in sites:
        _check_own(state, modules[site.module], site.module)
        adapter = groups[site.shares][site.key][1] if site.shares else site.build(modules[site.module])
        if site.group:
            adapter.share(firsts.setdefault(site.group, adapter))
        groups.setdefault(site.module, {})[site.key] = (site, adapter)
    return groups


def initialise(modules: Mapping[str, nn.Module], groups: Groups) -> None:
    """Give fresh adapters the tensors that they start with, in place."""
    for module, group in groups.items():
        with brought_in(modules[module]):
            for site, adapter in group.values():
                if not site.shares:
                    adapter.initialise(modules[module])


def _check_own(state: AdapterState, layer: nn.Module, name: str) -> None:
    """Raise AdapterStateError where a layer has adapters of another LoRAModel, whose state it would go on following."""
    if isinstance(layer, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise TargetError(
            f"{name or 'the model'} is a {type(layer).__name__} with a parameter of its own, whose code goes over its "
            "modules and would meet its adapters. Put the parameter into a module of its own, or leave it out."
        )
    if layer.__dict__.get("_lora") is state:  # a layer with adapters, or a model that is a layer itself
        return
    if isinstance(layer, LoRALayer):
        raise AdapterStateError(
            f"{name} carries an adapter of another LoRAModel, which goes on choosing what acts there; leave it "
            "out of target_modules (exclude_modules), or unload() the other one first."
        )
    if taken := [each for each in TAKEN if hasattr(layer, each)]:
        raise TargetError(
            f"{name or type(layer).__name__} has a {taken[0]!r} of its own, a name that its adapters need; leave "
            "it out of target_modules and target_parameters."
        )


def attach_groups(
    state: AdapterState, modules: Mapping[str, nn.Module], groups: Groups, name: str, record: Record
) -> None:
    """Attach adapters to their layers and note their record: all of them, or none where a layer raises."""
    before, layers = state.records.get(name), dict(state.layers)  # others may walk over the present ones
    try:
        for module, group in groups.items():
            for _, adapter in group.values():
                adapter.begin()
                adapter.requires_grad_(False)
            behind = {key for key, (site, _) in group.items() if site.behind}
            adapters = {key: adapter for key, (_, adapter) in group.items()}
            shown = any(site.shown for site, _ in group.values())
            layers[module] = attach(modules[module], state, name, adapters, behind, shown)
    except BaseException:
        with BLOCKS:
            state.layers = layers
            if before is None:
                remove(state, name)
        raise
    state.layers = layers
    state.records = {**state.records, name: record}


def own_modules(model: nn.Module, state: AdapterState) -> dict[str, nn.Module]:
    """Return a model's own modules by name. Raises an error where it can take no adapter now."""
    state.refuse_while_merged("adding an adapter")
    modules = dict(base_modules(model))
    refuse_spread(model, modules)
    return modules


def origin_of(model: nn.Module, modules: Mapping[str, nn.Module], sites: Sequence[Site]) -> Origin:
    """Return what is known of the base that is here, for an adapter that trains on it."""
    took = any(INITS[s.init].computed_again or s.row.reads_base for s in sites if s.row.low_rank)
    seen = provenance.observe(modules, weights_of(sites), took)
    is_whole = seen.read == len(seen.grids)
    return Origin(seen=seen, floats=None if is_whole else provenance.observe_floats(model, copied_modules(sites)))


def weights_of(sites: Iterable[Site]) -> list[tuple[str, str]]:
    """Return (module, parameter) of every weight that a product is added to."""
    return [(site.module, site.parameter) for site in sites if site.row.low_rank]


def copied_modules(sites: Iterable[Site]) -> set[str]:
    """Return the modules of which an adapter holds a copy."""
    return {site.module for site in sites if site.role == SAVED.name}
