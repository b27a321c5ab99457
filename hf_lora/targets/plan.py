"""Where each adapter of a config goes: one Site per adapted parameter, settled before any layer is touched."""

from collections.abc import Mapping
from itertools import chain

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import TargetError, full_name, some
from ..kinds.kind import Kind
from ..kinds.probe import forward_factor
from ..kinds.table import KINDS, kind_of, name_of, parameter_kind
from ..layers.layer import base_modules
from ..layers.specialising import base_of
from ..variants.initial import INITS, InitName
from ..variants.table import FORMULAS, SAVED
from .idle import idle_settings, idle_tables, warn_of_no_biases, warn_of_saved_targets
from .misfits import misfits
from .names import find_targets, saved_modules
from .reads import Use, Uses, weight_is_rescaled
from .sharing import grouped
from .site import Site
from .tables import token_sites


def plan(model: nn.Module, config: LoRAConfig) -> tuple[list[Site], list[str], list[str]]:
    """Return every site of a config on a model, saved parameters first, and what its targets are: modules, parameters.

    Raises TargetError or ConfigError, listing every problem; the model is left as it was.
    """
    modules = dict(base_modules(model))
    sites: list[Site] = []
    problems: list[str] = []
    saved = saved_modules(config.modules_to_save or (), modules)
    if missing := [n for n in config.modules_to_save or () if not saved_modules([n], saved)]:
        problems.append(f"modules_to_save={missing!r} match no module.")
    held = {name: saved_sites(modules[name], name) for name in saved}
    filled = [name for name, each in held.items() if each]
    if empty := [n for n in config.modules_to_save or () if n not in missing and not saved_modules([n], filled)]:
        problems.append(f"modules_to_save={empty!r} match modules without parameters: nothing there would train.")
    sites += chain.from_iterable(held.values())
    sites += token_sites(model, config, modules)
    problems += _packed_copies(modules, sites)
    targets, parameters = find_targets(model, config, modules)
    uses = Uses(modules)
    warn_of_saved_targets(config, modules)
    adapted: list[Site] = []
    for name in (*targets, *parameters):
        try:
            adapted += low_rank_sites(modules, uses, config, name)
        except TargetError as error:
            problems.append(str(error))
    problems += misfits(modules, config, sites, adapted, parameters)
    sites += adapted
    taken, biases = {(s.module, s.parameter) for s in sites}, _biases(modules, config, sites)
    sites += [Site(p, SAVED.name, module=n) for n, p in biases if (n, p) not in taken]
    warn_of_no_biases(model, config, biases)
    problems += idle_settings(model, config, modules, [*targets, *parameters])
    alone = [s for s in sites if not (s.row.of_rows or (s.row.whole and config.ensure_weight_tying))]
    weights = dict.fromkeys(s.module for s in alone if s.parameter == "weight")
    problems += idle_tables(modules, weights)
    if not sites:
        problems.append("nothing to train: no target, no module to save.")
    if problems:
        raise TargetError(f"{type(model).__name__}: {some(problems, 6, ' ')}")
    return grouped(list({(s.module, s.key): s for s in sites}.values())), targets, parameters


def low_rank_sites(modules: Mapping[str, nn.Module], uses: Uses, config: LoRAConfig, target: str) -> list[Site]:
    """Return the sites of a target, a layer's or a raw parameter's full name.

    An `nn.MultiheadAttention` has two: its packed input projection and its output projection.
    Raises TargetError where the layer cannot carry an adapter.
    """
    attention = modules.get(target)
    if attention is None:
        owner, _, parameter = target.rpartition(".")
        return [_low_rank_site(modules, uses, config, owner, parameter)]
    if not isinstance(attention, nn.MultiheadAttention):
        return [_low_rank_site(modules, uses, config, target)]
    if attention.in_proj_weight is None:
        raise TargetError(
            f"{target} is an nn.MultiheadAttention with separate key and value sizes, for which no published layout "
            "exists. Name it in exclude_modules."
        )
    places = ((target, "in_proj_weight"), (f"{target}.out_proj", ""))
    return [_low_rank_site(modules, uses, config, *place, target) for place in places]


def _low_rank_site(
    modules: Mapping[str, nn.Module], uses: Uses, config: LoRAConfig, name: str, parameter: str = "", target: str = ""
) -> Site:
    """Return the site of a low-rank adapter on a layer's weight, or on a raw parameter of a module."""
    layer = modules[name]
    kind, behind, shown, factor = _raw(layer, name, parameter) if parameter else _layer(modules, uses, name)
    full = full_name(name, parameter)
    rank = config.rank_of(target or full)
    kind.check(layer, full, rank)
    start = INITS[config.init_lora_weights]
    init: InitName = True if kind.embeds and start.of_matrix and not start.tables else config.init_lora_weights
    site = Site(
        module=name,
        parameter=parameter or "weight",
        role=config.formula,
        kind=name_of(kind),
        shape=tuple(layer._parameters[parameter].shape) if parameter else kind.weight_shape(layer),  # type: ignore[union-attr]
        r=rank,
        scaling=config.scaling_of(target or full),
        dropout=0.0 if kind.embeds else config.lora_dropout,  # indices have no features to drop
        factor=factor,
        bias=config.lora_bias,
        init=init,
        settings={key: getattr(config, key) for key in FORMULAS[config.formula].settings},
        behind=behind,
        shown=shown,
    )
    _check(site, full, raw=bool(parameter))
    return site


def saved_sites(module: nn.Module, name: str) -> list[Site]:
    """Return a site for every parameter and persistent buffer of a module and its children."""
    found = []
    for child_name, child in base_modules(module):
        buffers = {k: value for k, value in child._buffers.items() if k not in child._non_persistent_buffers_set}
        held = [key for key, value in {**child._parameters, **buffers}.items() if value is not None]
        found += [Site(key, SAVED.name, module=full_name(name, child_name)) for key in held]
    return found


def _layer(modules: Mapping[str, nn.Module], uses: Uses, name: str) -> tuple[Kind, bool, bool, float]:
    """Return (kind, whether adapters can sit behind the forward, whether others read it, its factor) of a layer."""
    layer = modules[name]
    kind = kind_of(layer)
    if kind is None:
        inside = [n.removeprefix(name + ".") for n, m in modules.items() if n.startswith(name + ".") and kind_of(m)]
        hint = f"name the layers inside it: {some(inside, 6)}" if inside else "leave it out"
        raise TargetError(f"{name} is a {type(layer).__name__}, which cannot carry an adapter; {hint}.")
    owner = modules.get(name.rpartition(".")[0])
    if owner is not None and weight_is_rescaled(owner, name):
        raise TargetError(
            f"{name}: the model rescales this weight in place between training and evaluation, which an adapter "
            "would not follow. Name it in exclude_modules."
        )
    use = Use(False, True) if kind.is_quantised else uses.of(layer)
    factor = forward_factor(kind, layer, base_of(type(layer))) if use.is_called else None
    return kind, factor is not None, use.is_read, 1.0 if factor is None else factor


def _raw(owner: nn.Module, name: str, parameter: str) -> tuple[Kind, bool, bool, float]:
    value = owner._parameters.get(parameter)
    if value is None:
        raise TargetError(f"{name} has no parameter {parameter!r}; it has {', '.join(owner._parameters) or 'none'}.")
    return parameter_kind(owner, value, f"{name}.{parameter}"), False, False, 1.0


def _check(site: Site, name: str, raw: bool) -> None:
    """Raise TargetError where a setting has no meaning at a site: settings are never ignored."""
    if not site.behind and site.dropout:
        raise TargetError(
            f"{name}: lora_dropout={site.dropout} cannot act here, because the model reads this weight instead of "
            "calling the layer. Set lora_dropout=0 or name the layer in exclude_modules."
        )
    if not site.behind and site.bias:
        raise TargetError(f"{name}: lora_bias=True cannot act on a weight that is read; set lora_bias=False.")
    if not site.behind and not KINDS[site.kind].within_weight:
        raise TargetError(
            f"{name} is a convolution in groups that computes by a forward of its own or is read: its weight has no "
            "place for an adapter. Name it in exclude_modules."
        )
    if site.bias and KINDS[site.kind].embeds:
        raise TargetError(f"{name} is an embedding, which has no bias; set lora_bias=False or exclude it.")
    if what := site.row.adapter.refusal(site, raw):
        way = "leave it out of target_modules" if "exclude_modules" in site.row.lacks else "name it in exclude_modules"
        raise TargetError(f"{name} is {what}; set {site.row.switch}=False or {way}.")
    _check_start(site, name)


def _check_start(site: Site, name: str) -> None:
    """Raise TargetError where a start has no meaning at a site."""
    start, kind = INITS[site.init], KINDS[site.kind]
    if start.of_matrix and not (kind.is_matrix or (start.tables and kind.embeds)):
        raise TargetError(
            f"{name}: init_lora_weights={site.init!r} is made for a plain matrix, which a layer of kind {site.kind!r} "
            "does not have. Use init_lora_weights=True or name the layer in exclude_modules."
        )
    if start.even and site.r % 2:
        raise TargetError(
            f"{name}: init_lora_weights={site.init!r} needs an even rank, and r={site.r}. Set r={site.r + 1}, for this "
            f"layer alone by rank_pattern={{{name!r}: {site.r + 1}}}."
        )
    if start.takes_directions and site.r > min(site.shape):
        raise TargetError(
            f"{name}: init_lora_weights={site.init!r} takes r={site.r} directions out of a matrix that has "
            f"{min(site.shape)}. Lower r, for this layer by rank_pattern={{{name!r}: {min(site.shape)}}}, use "
            "init_lora_weights=True or name the layer in exclude_modules."
        )


def _packed_copies(modules: Mapping[str, nn.Module], sites: list[Site]) -> list[str]:
    """Say which of the layers that would train as a copy of themselves are packed, so that no copy can."""
    names = dict.fromkeys(s.module for s in sites)
    packed = [n for n in names if (kind := kind_of(modules[n])) and kind.is_quantised]
    if not packed:
        return []
    return [
        f"{some(packed)}: packed (quantised), which cannot be trained as a copy (modules_to_save, "
        "trainable_token_indices). Target it with LoRA, or load the base in float."
    ]


def _biases(modules: Mapping[str, nn.Module], config: LoRAConfig, sites: list[Site]) -> list[tuple[str, str]]:
    """Return (module, parameter) of the biases that a config trains."""
    if config.bias == "all":
        return [(n, p) for n, m in modules.items() for p, v in m._parameters.items() if v is not None and "bias" in p]
    layers = dict.fromkeys(s.module for s in sites if s.row.low_rank and s.parameter == "weight")
    return [(n, "bias") for n in layers if config.bias != "none" and modules[n]._parameters.get("bias") is not None]
