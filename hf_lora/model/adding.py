"""Adding adapters to any module: fresh ones, and those of a file.

Everything that can fail is done before the first layer is touched: sites are planned, adapters built and filled, and
only then attached. What another thread computes meanwhile stays as it is.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config.keys import PRESETS
from ..config.lora_config import LoRAConfig
from ..config.rules import is_int
from ..errors import TargetError, full_name, some
from ..formats.contents import Contents
from ..formats.keys import reads_back
from ..formats.names import fit_names
from ..formats.notes import BASE_NOTE, RECIPE_NOTE, SEED_NOTE
from ..formats.peft import read_sites
from ..kinds.table import KINDS
from ..layers.layer import base_modules
from ..layers.offload import brought_in
from ..layers.state import CHANGES, AdapterState, Origin, Record
from ..targets.idle import idle_keys
from ..targets.misfits import settle_saved
from ..targets.names import as_endings, is_left_out, match_names, parameter_names, saved_modules, settle_layers
from ..targets.plan import plan
from ..targets.site import Site
from ..targets.tables import token_sites
from ..targets.ties import check_products, named_copies, tied_copies
from ..variants.adapter import Adapter
from ..variants.filling import seed_of
from ..variants.initial import INITS
from . import from_data, provenance
from .attaching import (
    Groups,
    attach_groups,
    build,
    copied_modules,
    initialise,
    origin_of,
    own_modules,
    put_on,
    weights_of,
)
from .loading import check_dtypes
from .selecting import check_name
from .settings import SETTINGS_NOTE

_BARELY = 0.5  # of a scaling, which the default lora_alpha goes below where r is more than 16


def add(model: Any, state: AdapterState, config: LoRAConfig, name: str, data: Any = None) -> LoRAConfig:
    """Attach a fresh, trainable adapter and return its config with the targets written out.

    data: batches, for a start that learns of data (`from_data`).
    Raises TargetError, ConfigError or AdapterNameError with the model unchanged.
    """
    config.check_readable()
    from_data.check(config, data)
    with CHANGES:
        check_name(name, state.records)
        modules = own_modules(model, state)
        config = settle_saved(modules, settle_layers(model, config, modules))
        sites, targets, parameters = plan(model, config)
        seen: from_data.Shown = {}
        if data is not None:
            config, seen = from_data.look(model, modules, config, sites, data)
            sites, targets, parameters = plan(model, config)
        sites = tied_copies(modules, config, sites)
        _check_names(sites)
        config, sites = _seeded(config, sites)
        groups = build(state, modules, sites)
        initialise(modules, groups)
        from_data.learn(modules, config, groups, seen)
        resolved = _resolved(config, modules, sites, targets, parameters)
        attach_groups(state, modules, groups, name, Record(resolved, origin_of(model, modules, sites), trainable=True))
        if (alpha := config.lora_alpha) == LoRAConfig.lora_alpha and (scale := config.scaling_of("")) < _BARELY:
            warnings.warn(
                f"r={config.r} with lora_alpha={alpha:g}, the default, scales the update by {scale:.3g}: it trains far "
                "more slowly than with lora_alpha = r or 2 r. Set lora_alpha, or use_rslora=True.",
                stacklevel=2,
            )
        if config.inference_mode:
            warnings.warn("inference_mode=True has no effect here: a fresh adapter trains.", stacklevel=2)
        return resolved


def _seeded(config: LoRAConfig, sites: list[Site]) -> tuple[LoRAConfig, list[Site]]:
    """Return a config with a seed, if a start draws, and sites with one each, which their names alone tell apart."""
    if not any(site.row.low_rank and INITS[site.init].draws for site in sites):
        return config, sites
    seed = int(torch.randint(1 << 31, (), device="cpu")) if config.seed is None else config.seed
    return config.copy(seed=seed), [replace(s, seed=seed_of(seed, full_name(s.module, s.parameter))) for s in sites]


def extend(model: nn.Module, state: AdapterState, config: LoRAConfig, name: str) -> None:
    """Attach the trained token rows that a config has and the adapter of that name has not; nothing else changes."""
    record = state.records[name]
    if config.trainable_token_indices == record.config.trainable_token_indices:
        return
    with CHANGES:
        modules = dict(base_modules(model))
        groups = build(state, modules, token_sites(model, config, modules))
        initialise(modules, groups)
        attach_groups(state, modules, groups, name, Record(config, record.origin, trainable=True))


def load(
    model: nn.Module, state: AdapterState, files: Contents, name: str, trainable: bool, check_base: bool = True
) -> None:
    """Attach an adapter of a file. Raises what `read` raises, and AdapterNameError, with the model unchanged."""
    with CHANGES:
        check_name(name, state.records)
        put_on(model, state, name, *read(model, state, files, trainable, check_base))


def read(
    model: nn.Module, state: AdapterState, files: Contents, trainable: bool, check_base: bool = True
) -> tuple[Groups, Record]:
    """Return the adapters of a file by module and key, which take its tensors over, and their record.

    The model is left as it is. check_base: whether what the file says of its base is checked.
    Raises AdapterMismatchError, BaseMismatchError, ConfigError.
    """
    config, base = files.config, files.notes.get(BASE_NOTE)
    with CHANGES:
        modules = own_modules(model, state)
        config, tensors, places = fit_names(modules, config, files.tensors)
        # Dropout acts in training only: where it has no place, an adapter can be used all the same.
        found = read_sites(modules, config if trainable else config.copy(lora_dropout=0.0), tensors, places)
        sites = [site for site, _ in found]
        if trainable:
            check_products(modules, config, sites)
        _tell_idle_keys(modules, config, sites)
        if check_base:
            provenance.check(base, model, modules, weights_of(sites), copied_modules(sites))
        groups = build(state, modules, sites)
        check_dtypes([(site, groups[site.module][site.key][1], values) for site, values in found])
        is_seeded = provenance.knows_start(base)
        for site, values in found:
            adapter = groups[site.module][site.key][1]
            _take_over(modules[site.module], adapter, values, site.module, check_base, is_seeded)
        moves = trainable and (base is None or not check_base)  # it trains on this base from now on
        note = base if isinstance(base, Mapping) else {}
        origin = origin_of(model, modules, sites) if moves else Origin(note=note)
        settings, recipe = (
            n if isinstance(n := files.notes.get(k), dict) else None for k in (SETTINGS_NOTE, RECIPE_NOTE)
        )
        origin = replace(origin, settings=settings, recipe=recipe)
        config = config.copy(seed=seed) if is_int(seed := files.notes.get(SEED_NOTE), 0) else config
        return groups, Record(config, origin, trainable)


def _tell_idle_keys(modules: Mapping[str, nn.Module], config: LoRAConfig, sites: Iterable[Site]) -> None:
    """Warn of keys of a file's patterns that set nothing, and of layers that its config leaves out but it adapts."""
    if out := [s.module for s in sites if s.row.low_rank and s.parameter == "weight" and is_left_out(config, s.module)]:
        warnings.warn(
            f"the adapter's config: exclude_modules or layers_to_transform leave out {some(out, 1)}, which its file "
            "adapts. They act here, and PEFT would drop them; take the setting out of the file, or those tensors.",
            stacklevel=2,
        )
    if config.rank_pattern or config.alpha_pattern:
        low_rank = [(s.module, full_name(s.module, s.parameter)) for s in sites if s.row.low_rank]
        owners = [module.rpartition(".")[0] for module, _ in low_rank]  # an attention's packed projections are its own
        attentions = [name for name in owners if isinstance(modules.get(name), nn.MultiheadAttention)]
        adapted = [*(name for names in low_rank for name in names), *attentions]
        for told in idle_keys(config, adapted, [*modules, *parameter_names(modules)]):
            warnings.warn(f"the adapter's config: {told}", stacklevel=2)


def _take_over(
    layer: nn.Module, adapter: Adapter, values: Mapping[str, Tensor], name: str, check_base: bool, is_seeded: bool
) -> None:
    """Give an adapter the tensors of a file: they become its own, copied only to be moved or converted.

    name: the layer's. is_seeded: whether what the file's took out of the base is the same whenever it is drawn.
    """
    if adapter.is_computed_again:
        with brought_in(layer):  # what it took out of the base is found again
            adapter.initialise(layer)
            if check_base and not is_seeded:
                provenance.check_start(adapter.redrawn(layer), name)
        values = provenance.check_taken(adapter, values, name, check_base)
    if adapter.leads and not adapter.tensors().keys() <= values.keys():
        adapter.draw()
    for attribute, tensor in values.items():
        own = getattr(adapter, attribute)
        own.data = tensor.to(device=own.device, dtype=own.dtype).contiguous()


def _check_names(sites: Iterable[Site]) -> None:
    """Raise TargetError for modules whose names a file's keys use for something else: it would not be read again."""
    leaves = [(s.module, s.parameter if s.row.whole else s.row.tensors[0].key) for s in sites]
    if bad := dict.fromkeys(module for module, leaf in leaves if not reads_back(module, leaf)):
        raise TargetError(f"{some([*bad])}: the files of adapters have such a name for a part of their own; rename it.")


def _resolved(
    config: LoRAConfig,
    modules: Mapping[str, nn.Module],
    sites: list[Site],
    targets: Collection[str],
    parameters: Collection[str],
) -> LoRAConfig:
    """Return a copy of a config that names its targets, so that it means the same on disk, in any tool."""
    fan_in_fan_out = any(s.row.low_rank and KINDS[s.kind].fan_in_fan_out for s in sites)
    changes: dict[str, object] = {"fan_in_fan_out": fan_in_fan_out}
    if config.ensure_weight_tying and config.modules_to_save:
        changes["modules_to_save"] = named_copies(config, sites)
    rows = config.trainable_token_indices
    if isinstance(rows, Mapping):
        changes["trainable_token_indices"] = _rows_by_table(rows, modules, sites)
    elif rows is not None:  # a row that is named twice has one place, in the file as well
        changes["trainable_token_indices"] = list(dict.fromkeys(rows)) or None
    if config.target_parameters:  # as the layers' numbers, exclusions and modules_to_save leave them
        names = parameter_names(modules)
        if match_names(config.target_parameters, names) != [n for n in names if n in parameters]:
            changes["target_parameters"] = match_names(config.target_parameters, parameters) or None
            changes["target_modules"] = config.target_modules or []
    if config.target_modules in PRESETS:
        endings = as_endings(targets, list(modules))
        changes |= {"target_modules": endings, "layers_to_transform": None, "layers_pattern": None}
        if parameters:
            changes["target_parameters"] = as_endings(parameters, parameter_names(modules))
    return config.copy(**changes)


def _rows_by_table(
    rows: Mapping[str, Sequence[int]], modules: Mapping[str, nn.Module], sites: Iterable[Site]
) -> dict[str, list[int]] | None:
    """Return trainable_token_indices by names that PEFT takes, for the tables alone, each row and table once."""
    tables = {s.module: list(s.rows) for s in sites if s.row.of_rows and not s.shares}
    kept = {name: list(dict.fromkeys(each)) for name, each in rows.items() if each}
    plain = all({*saved_modules([name], modules)} == {*match_names([name], tables)} for name in kept)
    return (kept if plain else tables) or None
