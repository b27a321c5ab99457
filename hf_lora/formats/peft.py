"""PEFT's layout: how an adapter's tensors are named and shaped in adapter_model.safetensors.

    base_model.model.<layer>.lora_A.weight              (r, in)          and lora_B.weight, lora_B.bias
    base_model.model.<embedding>.lora_embedding_A       (r, entries)     and lora_embedding_B
    base_model.model.<layer>.<key of its row>           what a formula has besides
    base_model.model.<embedding>.token_adapter.trainable_tokens_delta
    base_model.model.<embedding>.token_adapter.base_layer.weight    the base's own table, where it was resized
    base_model.model.<module>.<parameter>               saved whole
    base_model.<key of its row>                         one for all layers (`Stored.at_top`)

PEFT wraps modules, and its wrappers show in the names: `base_layer` stands behind a layer that has an adapter of its
own, once for each, when something further in is named (a bias, a child, another parameter of the same owner).
Several raw parameters of one owner are nested in the owner's order, the first innermost. Experts are flattened:
A is (experts * r, in) and B is (out, r * experts).
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import full_name, some
from ..kinds.table import KINDS, kind_of
from ..layers.layer import LoRALayer
from ..targets.names import match_names, parameter_names
from ..targets.plan import low_rank_sites
from ..targets.reads import Uses
from ..targets.sharing import grouped, spread
from ..targets.site import Site
from ..targets.tables import rows_of, tied_sites
from ..targets.ties import tied_names
from ..variants.adapter import own_tensor
from ..variants.table import ADAPTERS, COPIES, SAVED, TOKENS
from .keys import PREFIX, ROWS_KEY, TOP, TOP_KEYS, WRAP, split_key, unwrapped
from .mismatch import mismatch, missing_names, other_size

_TABLE = f".{ROWS_KEY.partition('.')[0]}.{WRAP}."

Place = tuple[str, str, str]  # module, parameter, the adapter's attribute (or the role of a copy)
Places = Mapping[str, "Place | None"]


def adapter_tensors(
    layers: Mapping[str, LoRALayer],
    name: str,
    state_dict: Mapping[str, Tensor] | None = None,
    converts: bool = False,
) -> dict[str, Tensor]:
    """Return an adapter's tensors under PEFT's names, in PEFT's shapes; views where the layout allows.

    state_dict: the whole model's, gathered, where the tensors in the layers are only shards of it. converts: with the
    product at birth of what took it out of the base, as factors of twice the rank.
    """
    adapters = {module: layer.carried(name) for module, layer in layers.items()}
    sites = [(module, key, a) for module, group in adapters.items() for key, a in group.items()]
    wraps = Counter(module for module, _, a in sites if a.low_rank)
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for module, key, adapter in sites:
        if id(adapter) in seen and not adapter.row.whole:  # rows of a tied table are saved once, its copy by each name
            continue
        seen.add(id(adapter))
        outer = [a.parameter for a in adapters[module].values() if a.low_rank]
        depth = len(outer) - 1 - outer.index(adapter.parameter) if adapter.low_rank else wraps[module]
        path = full_name(_wrapped(module, wraps), *[WRAP] * depth)
        path = path.removeprefix("_orig_mod.")  # of torch.compile: other tools know the plain model's names
        values = {attribute: tensor.detach() for attribute, tensor in adapter.tensors().items()}
        if state_dict is not None:
            at = full_name(module, "adapters", name, key)
            values = {attribute: state_dict[f"{at}.{attribute}"] for attribute in values}
        others = [] if adapter.leads else [adapter.row.stored[each] for each in adapter.shared()]
        held = {leaf for stored in others for leaf in stored.keys}  # below the first of the group
        if converts:
            values = {**adapter.at_birth(), **values}
        for leaf, tensor in adapter.to_file(values):
            if leaf not in held:
                full = TOP + leaf if leaf in TOP_KEYS else PREFIX + full_name(path, leaf)
                assert full not in result, f"two tensors of {name!r} are called {full}: one would be lost"
                result[full] = tensor
    return result


def _wrapped(module: str, wraps: Mapping[str, int]) -> str:
    """Return a module's path with PEFT's wrappers of the modules above it."""
    words, path = module.split("."), []
    for i, word in enumerate(words):
        path.append(word)
        if i + 1 < len(words):
            path += [WRAP] * wraps[".".join(words[: i + 1])]
    return ".".join(path)


def read_sites(
    modules: Mapping[str, nn.Module], config: LoRAConfig, tensors: Mapping[str, Tensor], places: Places
) -> list[tuple[Site, dict[str, Tensor]]]:
    """Return every site that a file's tensors stand for, with the tensors of its adapter by attribute name.

    modules: the model's own by full name, the model itself under "". places: what `place_of` says of each key.
    The file decides what is adapted; each tensor must find its place and each place its tensors.
    Raises AdapterMismatchError, listing what is missing, unexpected or of another shape.
    """
    parts, unexpected, problems = _group(tensors, modules, config, places)
    found: list[tuple[Site, dict[str, Tensor]]] = []
    uses = Uses(modules)
    sites = grouped([_site(modules, uses, config, *place) for place in parts])
    held, twice = spread(list(zip(sites, parts.values(), strict=True)))
    problems += twice
    for site, values in held:
        values, trouble = _fit(site, values, modules, config)
        problems += trouble
        found.append((site, values))
    problems += [f"missing the tensors of {name}" for name in missing_names(config, modules, parts)]
    if problems or unexpected:
        raise mismatch(modules, unexpected, problems, len(tensors))
    _warn_of_other_forwards(modules, config, [site for site, _ in found])
    saved_first = sorted(found, key=lambda item: _rank(modules, item[0]))
    if config.ensure_weight_tying:
        saved_first = _as_one(modules, saved_first)
    tied = [t for site, _ in saved_first if site.row.of_rows for t in tied_sites(modules, site, config)]
    return [*saved_first, *((site, {}) for site in tied)]


def _as_one(
    modules: Mapping[str, nn.Module], found: list[tuple[Site, dict[str, Tensor]]]
) -> list[tuple[Site, dict[str, Tensor]]]:
    """Return a file's sites in which the same copy under several names of a tied weight is one."""
    copies = {site.module: values["value"] for site, values in found if site.row.whole and site.parameter == "weight"}
    result = []
    for site, values in found:
        names = [n for n in tied_names(modules, site) if n in copies] if site.row.whole else []
        if names and names[0] != site.module and torch.equal(copies[names[0]], copies[site.module]):
            site, values = replace(site, shares=names[0]), {}
        result.append((site, values))
    return sorted(result, key=lambda item: bool(item[0].shares))


def _rank(modules: Mapping[str, nn.Module], site: Site) -> tuple[bool, int]:
    """Return what sites are sorted by: saved ones first, then an owner's parameters in its own order, as PEFT nests."""
    owned = list(modules[site.module]._parameters)
    return site.row.low_rank, owned.index(site.parameter) if site.parameter in owned else 0


def _group(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], config: LoRAConfig, places: Places
) -> tuple[dict[tuple[str, str, str], dict[str, Tensor]], list[str], list[str]]:
    """Sort a file's tensors by (module, parameter, role); name those without a place, and pairs of one place."""
    parts: dict[tuple[str, str, str], dict[str, Tensor]] = {}
    keys: dict[tuple[str, str, str], str] = {}
    formula = config.formula
    unexpected, problems = [], []
    for key, tensor in tensors.items():
        place = places[key]
        if place is None:
            unexpected.append(key)
            continue
        module, parameter, attribute = place
        if attribute == SAVED.name and _is_copy(modules[module], parameter, key, tensor, config):
            continue
        if _TABLE in key:  # another base's rows, which nothing here would take
            unexpected.append(key)
            continue
        if keys.setdefault(place, key) != key:
            problems.append(f"{keys[place]} and {key} are two tensors for one place")
        role = attribute if attribute in COPIES else formula
        own = ADAPTERS[role].tensors[0].attribute if role == attribute else attribute
        parts.setdefault((module, parameter, role), {})[own] = tensor
    return parts, unexpected, problems


def place_of(key: str, modules: Mapping[str, nn.Module], config: LoRAConfig) -> Place | None:
    """Return (module, parameter, the adapter's attribute, or a copy's role) of a key, None without a place."""
    path, leaf, attribute = split_key(key.replace(_TABLE, f".{WRAP}."))
    module, depth = unwrapped(path)
    layer = modules.get(module)
    if layer is None:
        return None
    if attribute == SAVED.name:
        return (module, leaf, attribute) if own_tensor(layer, leaf) is not None else None
    if attribute == TOKENS.name:
        return module, "weight", attribute
    own = ADAPTERS[config.formula].stored.get(attribute)
    if own is not None and leaf not in own.keys:  # another formula's name of such a tensor
        return None
    parameter = _parameter(layer, module, depth, config)
    return None if parameter is None else (module, parameter, attribute)


def _is_copy(layer: nn.Module, parameter: str, key: str, tensor: Tensor, config: LoRAConfig) -> bool:
    """Return whether a tensor is the base's own table, of which PEFT adds a copy where the table is a target."""
    # Beside trained rows the copy holds what these were before: they may differ.
    own = own_tensor(layer, parameter)
    if not (isinstance(layer, nn.Embedding) or _TABLE in key) or f".{WRAP}." not in key or own is None or own.is_meta:
        return False
    if own.shape != tensor.shape:
        return False
    differ = (own.cpu() != tensor.to(own.dtype)).flatten(1).any(1).nonzero().flatten().tolist()
    return not differ or (_TABLE in key and {*differ} <= trained_rows(config))


def trained_rows(config: LoRAConfig) -> set[int]:
    """Return the token rows that a config trains, of any table."""
    wanted = config.trainable_token_indices
    return {row for rows in (wanted.values() if isinstance(wanted, Mapping) else [wanted or ()]) for row in rows}


def _parameter(layer: nn.Module, module: str, depth: int, config: LoRAConfig) -> str | None:
    """Return which parameter of a layer a low-rank pair belongs to, from how deep PEFT nested it."""
    if isinstance(layer, nn.MultiheadAttention):
        return "in_proj_weight" if depth == 0 else None
    if wanted := config.target_parameters:
        raw = [n.rpartition(".")[2] for n in match_names(wanted, parameter_names({module: layer}))]
        if raw:
            return raw[len(raw) - 1 - depth] if depth < len(raw) else None
    return "weight" if depth == 0 and kind_of(layer) is not None else None


def _site(
    modules: Mapping[str, nn.Module], uses: Uses, config: LoRAConfig, module: str, parameter: str, role: str
) -> Site:
    row = ADAPTERS[role]
    if row.whole:
        return Site(parameter, role, module=module)
    if row.of_rows:
        wanted = config.trainable_token_indices or ()
        wanted = rows_of(wanted, module) if isinstance(wanted, Mapping) else tuple(wanted)
        return Site("weight", role, module=module, rows=wanted)
    attentions = [n for n in (module, module.rpartition(".")[0]) if isinstance(modules.get(n), nn.MultiheadAttention)]
    raw = match_names(config.target_parameters or (), [full_name(module, parameter)])
    (target, *_) = (*attentions, *raw, module)
    return next(s for s in low_rank_sites(modules, uses, config, target) if s.module == module)


def _fit(
    site: Site, values: dict[str, Tensor], modules: Mapping[str, nn.Module], config: LoRAConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a file's tensors in the shapes of the site's adapter, and what does not fit."""
    layer = modules[site.module]
    if site.row.low_rank:
        values = _of_experts(site, values, config)
    values = site.row.adapter.from_file(site, values)
    left_out = site.row.adapter.left_out(site)
    wanted = {name: shape for name, shape in site.shapes(layer).items() if name not in left_out}
    where = f"{site.module}.{site.parameter}"
    trouble = [f"missing {k} of {where}" for k in wanted if k not in values]
    trouble += [f"unexpected {k} of {where}" for k in values if k not in wanted]
    trouble += [
        f"{where}: {k} is {tuple(values[k].shape)} in the file, {shape} in the model"
        + other_size(modules[""], shape, values[k].shape, site.row.whole)
        for k, shape in wanted.items()
        if k in values and tuple(values[k].shape) != shape
    ]
    table = own_tensor(layer, site.parameter)
    if site.row.of_rows and not all(0 <= row < len(table) for row in site.rows):  # type: ignore[arg-type]
        count = max(site.rows) + 1
        trouble.append(f"{where} has no rows {count - 1}; call model.resize_token_embeddings({count}) first")
    return values, trouble


def _of_experts(site: Site, values: dict[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """Return the factors of a stack of experts as PEFT writes them since 0.19; before, A took a matrix's outputs."""
    kind = KINDS[site.kind]
    if not kind.stacked or kind.transposed or not {"lora_A", "lora_B"} <= values.keys():
        return values
    (experts, outputs, inputs), a, b = site.shape, values["lora_A"], values["lora_B"]
    if a.ndim != 2 or b.ndim != 2 or (a.shape[1], b.shape[0]) != (outputs, inputs) or a.shape[0] % experts:
        return values
    if outputs == inputs and not config.has_old_experts:
        return values
    new_a = b.reshape(inputs, -1, experts).permute(2, 1, 0).flatten(0, 1)
    new_b = a.reshape(experts, -1, outputs).permute(2, 1, 0).flatten(1)
    return {**values, "lora_A": new_a, "lora_B": new_b}


def _warn_of_other_forwards(modules: Mapping[str, nn.Module], config: LoRAConfig, sites: Iterable[Site]) -> None:
    """Warn where the forward of PEFT, which wrote an adapter, computes otherwise than its merged weight and hf_lora."""
    # 0.21.2, tuners/lora/layer.py: the update of an attention's output projection is merged by hand, and again by
    # `out_proj.merge`; a convolution's A has the strides and the padding of its layer, and neither dilation nor mode.
    version = config.other.get("peft_version")  # hf_lora writes none
    adapted = [site for site in sites if site.row.low_rank] if version else []
    owners = {site.module: modules.get(site.module.rpartition(".")[0]) for site in adapted}
    doubled = [n for n, m in owners.items() if n.endswith("out_proj") and isinstance(m, nn.MultiheadAttention)]
    layers = {site.module: modules[site.module] for site in adapted if KINDS[site.kind].convolves}
    undilated = [n for n, m in layers.items() if m.padding_mode != "zeros" or {*m.dilation} != {1}]  # type: ignore
    if doubled:
        warnings.warn(
            f"this adapter comes from PEFT {version}, whose forward adds the update of {some(doubled, 1)} twice (the "
            "output projection of an nn.MultiheadAttention); here it is added once, as the formula says. Double that "
            "lora_B to get the outputs that PEFT's forward gave.",
            stacklevel=3,
        )
    if undilated:
        warnings.warn(
            f"this adapter comes from PEFT {version}, whose forward leaves the dilation and the padding mode of "
            f"{some(undilated, 1)} out of the update; here they are in it, as in the weight that PEFT merges.",
            stacklevel=3,
        )
