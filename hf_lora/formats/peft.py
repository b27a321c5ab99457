"""PEFT's layout: how an adapter's tensors are named and shaped in adapter_model.safetensors.

    base_model.model.<layer>.lora_A.weight              (r, in)          and lora_B.weight, lora_B.bias
    base_model.model.<embedding>.lora_embedding_A       (r, entries)     and lora_embedding_B
    base_model.model.<layer>.lora_magnitude_vector      (out,); (1, out, 1, ...) of a convolution
    base_model.model.<embedding>.token_adapter.trainable_tokens_delta
    base_model.model.<embedding>.token_adapter.base_layer.weight    the base's own table, where it was resized
    base_model.model.<module>.<parameter>               saved whole

PEFT wraps modules, and its wrappers show in the names: `base_layer` stands behind a layer that has an adapter of its
own, once for each, when something further in is named (a bias, a child, another parameter of the same owner).
Several raw parameters of one owner are nested in the owner's order, the first innermost. Experts are flattened:
A is (experts * r, in) and B is (out, r * experts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..kinds.table import KINDS, kind_of
from ..layers.layer import LoRALayer, own_tensor
from ..targets.names import match_names, parameter_names
from ..targets.plan import Site, lora_site, mha_sites, tied_sites
from ..variants.adapter import Adapter
from ..variants.copies import Saved, Tokens
from ..variants.lora import LoRA
from ..variants.table import FORMULAS
from .coverage import missing_names
from .keys import PREFIX, TOKENS, WRAP, split_key, unwrapped
from .mismatch import mismatch, other_labels

__all__ = ["PREFIX", "Places", "adapter_tensors", "place_of", "read_sites"]

_TABLE = f".{TOKENS.partition('.')[0]}.{WRAP}."

Place = tuple[str, str, str]  # module, parameter, the adapter's attribute (or "saved", "tokens")
Places = Mapping[str, "Place | None"]


def adapter_tensors(
    layers: Mapping[str, LoRALayer], name: str, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return an adapter's tensors under PEFT's names, in PEFT's shapes; views where the layout allows.

    state_dict: the whole model's, gathered, where the tensors in the layers are only shards of it.
    """
    adapters = {module: layer.carried(name) for module, layer in layers.items()}
    sites = [(module, key, a) for module, group in adapters.items() for key, a in group.items()]
    wraps = Counter(module for module, _, a in sites if isinstance(a, LoRA))
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for module, key, adapter in sites:
        if id(adapter) in seen:  # a tied table's adapter is saved once
            continue
        seen.add(id(adapter))
        outer = [a.parameter for a in adapters[module].values() if isinstance(a, LoRA)]
        depth = len(outer) - 1 - outer.index(adapter.parameter) if isinstance(adapter, LoRA) else wraps[module]
        path = ".".join([_wrapped(module, wraps), *[WRAP] * depth]).strip(".")
        path = path.removeprefix("_orig_mod.")  # of torch.compile: other tools know the plain model's names
        values = {attribute: tensor.detach() for attribute, tensor in _own_tensors(adapter)}
        if state_dict is not None:
            at = f"{module}.adapters.{name}.{key}".lstrip(".")
            values = {attribute: state_dict[f"{at}.{attribute}"] for attribute in values}
        for leaf, tensor in _leaves(adapter, values):
            result[f"{PREFIX}{path}.{leaf}" if path else PREFIX + leaf] = tensor
    return result


def _wrapped(module: str, wraps: Mapping[str, int]) -> str:
    """Return a module's path with PEFT's wrappers of the modules above it."""
    words, path = module.split("."), []
    for i, word in enumerate(words):
        path.append(word)
        if i + 1 < len(words):
            path += [WRAP] * wraps[".".join(words[: i + 1])]
    return ".".join(path)


def _leaves(adapter: Adapter, values: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Yield (PEFT's name below the layer, PEFT's tensor) for everything an adapter holds, by attribute."""
    if isinstance(adapter, Tokens):
        yield TOKENS, values["value"]
    elif isinstance(adapter, Saved):
        yield adapter.parameter, values["value"]
    elif isinstance(adapter, LoRA):
        a, b = values["lora_A"], values["lora_B"]
        if adapter.kind.startswith("experts"):
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        embeds = KINDS[adapter.kind].embeds
        yield ("lora_embedding_A" if embeds else "lora_A.weight"), a
        yield ("lora_embedding_B" if embeds else "lora_B.weight"), b
        if "lora_bias" in values:
            yield "lora_B.bias", values["lora_bias"]
        if "magnitude" in values:
            m = values["magnitude"]
            yield "lora_magnitude_vector", m.reshape(1, -1, *(1 for _ in b.shape[2:])) if b.ndim > 2 else m


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
    for (module, parameter, role), values in parts.items():
        site = _site(modules, config, module, parameter, role)
        values, trouble = _fit(site, values, modules)
        problems += trouble
        found.append((site, values))
    problems += [f"missing the tensors of {name}" for name in missing_names(config, modules, parts)]
    if problems or unexpected:
        raise mismatch(modules, unexpected, problems, len(tensors))
    saved_first = sorted(found, key=lambda item: _rank(modules, item[0]))
    tied = [t for site, _ in saved_first if site.role == "tokens" for t in tied_sites(modules, site)]
    return [*saved_first, *((site, {}) for site in tied)]


def _rank(modules: Mapping[str, nn.Module], site: Site) -> tuple[bool, int]:
    """Return what sites are sorted by: saved ones first, then an owner's parameters in its own order, as PEFT nests."""
    owned = list(modules[site.module]._parameters)
    return site.role in FORMULAS, owned.index(site.parameter) if site.parameter in owned else 0


def _group(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], config: LoRAConfig, places: Places
) -> tuple[dict[tuple[str, str, str], dict[str, Tensor]], list[str], list[str]]:
    """Sort a file's tensors by (module, parameter, role); name those without a place, and pairs of one place."""
    parts: dict[tuple[str, str, str], dict[str, Tensor]] = {}
    keys: dict[tuple[str, str, str], str] = {}
    unexpected, problems = [], []
    for key, tensor in tensors.items():
        place = places[key]
        if place is None:
            unexpected.append(key)
            continue
        module, parameter, attribute = place
        if attribute == "saved" and _is_copy(modules[module], parameter, key, tensor, config):
            continue
        if _TABLE in key:  # another base's rows, which nothing here would take
            unexpected.append(key)
            continue
        if keys.setdefault(place, key) != key:
            problems.append(f"{keys[place]} and {key} are two tensors for one place")
        role = attribute if attribute in ("saved", "tokens") else config.formula
        parts.setdefault((module, parameter, role), {})["value" if role == attribute else attribute] = tensor
    return parts, unexpected, problems


def place_of(key: str, modules: Mapping[str, nn.Module], config: LoRAConfig) -> Place | None:
    """Return (module, parameter, the adapter's attribute, "saved" or "tokens") of a key, None without a place."""
    path, leaf, attribute = split_key(key.replace(_TABLE, f".{WRAP}."))
    module, depth = unwrapped(path)
    layer = modules.get(module)
    if layer is None:
        return None
    if attribute == "saved":
        return (module, leaf, attribute) if own_tensor(layer, leaf) is not None else None
    if attribute == "tokens":
        return module, "weight", attribute
    parameter = _parameter(layer, module, depth, config)
    return None if parameter is None else (module, parameter, attribute)


def _is_copy(layer: nn.Module, parameter: str, key: str, tensor: Tensor, config: LoRAConfig) -> bool:
    """Return whether a tensor is the base's own table, of which PEFT adds a copy where the table is a target.

    Beside trained rows the copy holds what these were before: they may differ.
    """
    own = own_tensor(layer, parameter)
    if not (isinstance(layer, nn.Embedding) or _TABLE in key) or f".{WRAP}." not in key or own is None or own.is_meta:
        return False
    if own.shape != tensor.shape:
        return False
    differ = (own.cpu() != tensor.to(own.dtype)).flatten(1).any(1).nonzero().flatten().tolist()
    return not differ or (_TABLE in key and {*differ} <= _trained_rows(config))


def _trained_rows(config: LoRAConfig) -> set[int]:
    """Return the token rows that a config trains, of any table."""
    wanted = config.trainable_token_indices
    return {row for rows in (wanted.values() if isinstance(wanted, Mapping) else [wanted or ()]) for row in rows}


def _parameter(layer: nn.Module, module: str, depth: int, config: LoRAConfig) -> str | None:
    """Return which parameter of a layer a low-rank pair belongs to, from how deep PEFT nested it."""
    if isinstance(layer, nn.MultiheadAttention):
        return "in_proj_weight" if depth == 0 else None
    raw = [n.rpartition(".")[2] for n in match_names(config.target_parameters or (), parameter_names({module: layer}))]
    if raw:
        return raw[len(raw) - 1 - depth] if depth < len(raw) else None
    return "weight" if depth == 0 and kind_of(layer) is not None else None


def _site(modules: Mapping[str, nn.Module], config: LoRAConfig, module: str, parameter: str, role: str) -> Site:
    if role == "saved":
        return Site(module, parameter, "saved")
    if role == "tokens":
        wanted = config.trainable_token_indices
        rows = (
            wanted
            if not isinstance(wanted, Mapping)
            else next((v for k, v in wanted.items() if match_names([k], [module])), ())
        )
        return Site(module, "weight", "tokens", rows=tuple(rows or ()))
    owner = module.rpartition(".")[0]
    if isinstance(modules.get(owner), nn.MultiheadAttention):
        return next(s for s in mha_sites(modules, owner, config) if s.module == module)
    if isinstance(modules[module], nn.MultiheadAttention):
        return next(s for s in mha_sites(modules, module, config) if s.parameter == parameter)
    raw = bool(match_names(config.target_parameters or (), [f"{module}.{parameter}"]))
    return lora_site(modules, config, module, parameter if raw else "")


def _fit(
    site: Site, values: dict[str, Tensor], modules: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a file's tensors in the shapes of the site's adapter, and what does not fit."""
    layer = modules[site.module]
    if site.kind.startswith("experts") and {"lora_A", "lora_B"} <= values.keys():
        experts, a, b = site.shape[0], values["lora_A"], values["lora_B"]
        if a.ndim == 2 and b.ndim == 2 and a.shape[0] % experts == 0 and b.shape[1] % experts == 0:
            b = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
            values = {**values, "lora_A": a.reshape(experts, -1, a.shape[1]), "lora_B": b}
    if "magnitude" in values:
        values = {**values, "magnitude": values["magnitude"].reshape(-1)}
    wanted = site.shapes(layer)
    where = f"{site.module}.{site.parameter}"
    trouble = [f"missing {k} of {where}" for k in wanted if k not in values]
    trouble += [f"unexpected {k} of {where}" for k in values if k not in wanted]
    trouble += [
        f"{where}: {k} is {tuple(values[k].shape)} in the file, {shape} in the model"
        + (_resize(site, modules, k, values[k]) or other_labels(modules[""], site.role, shape, values[k].shape))
        for k, shape in wanted.items()
        if k in values and tuple(values[k].shape) != shape
    ]
    table = own_tensor(layer, site.parameter)
    if site.role == "tokens" and not all(0 <= row < len(table) for row in site.rows):  # type: ignore[arg-type]
        count = max(site.rows) + 1
        trouble.append(f"{where} has no rows {count - 1}; call model.resize_token_embeddings({count}) first")
    return values, trouble


def _own_tensors(adapter: Adapter) -> Iterable[tuple[str, Tensor]]:
    yield from [(k, v) for k, v in adapter._parameters.items() if v is not None]
    yield from [(k, v) for k, v in adapter._buffers.items() if v is not None and k == "value"]


def _resize(site: Site, modules: Mapping[str, nn.Module], attribute: str, tensor: Tensor) -> str:
    """Say how to make room for the rows of another vocabulary."""
    layer, model = modules[site.module], modules[""]
    table, embeds = layer._parameters.get("weight"), isinstance(layer, nn.Embedding)
    is_head = layer is getattr(model, "get_output_embeddings", lambda: None)()
    of_rows = {"value", "lora_A"} if embeds else {"value", "lora_B", "lora_bias", "magnitude"}
    if table is None or not (embeds or is_head) or site.role == "tokens" or attribute not in of_rows or not tensor.ndim:
        return ""
    rows, own = tensor.shape[-1 if attribute == "lora_A" else 0], table.shape[0]
    if rows == own:
        return ""
    return f" (another vocabulary: the model has {own} rows; call model.resize_token_embeddings({rows}) first)"
