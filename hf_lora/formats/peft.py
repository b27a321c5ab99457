"""PEFT's layout: how an adapter's tensors are named and shaped in adapter_model.safetensors.

    base_model.model.<layer>.lora_A.weight              (r, in)          and lora_B.weight, lora_B.bias
    base_model.model.<embedding>.lora_embedding_A       (r, entries)     and lora_embedding_B
    base_model.model.<layer>.lora_magnitude_vector      (out,); (1, out, 1, ...) of a convolution
    base_model.model.<embedding>.token_adapter.trainable_tokens_delta
    base_model.model.<module>.<parameter>               saved whole

PEFT wraps modules, and its wrappers show in the names: `base_layer` stands behind a layer that has an adapter of its
own, once for each, when something further in is named (a bias, a child, another parameter of the same owner).
Several raw parameters of one owner are nested in the owner's order, the first innermost. Experts are flattened:
A is (experts * r, in) and B is (out, r * experts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..config import LoRAConfig
from ..errors import AdapterMismatchError
from ..kinds import KINDS, kind_of
from ..layer import LoRALayer, own_tensor
from ..plan import Site, lora_site, mha_sites, tied_sites
from ..targets import listed_modules, match_names, parameter_names
from ..variants import FORMULAS, Adapter, LoRA, Saved, Tokens

__all__ = ["PREFIX", "adapter_tensors", "read_sites"]

PREFIX = "base_model.model."
_WRAP = "base_layer"
_TOKENS = "token_adapter.trainable_tokens_delta"


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
        path = ".".join([_wrapped(module, wraps), *[_WRAP] * depth]).strip(".")
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
            path += [_WRAP] * wraps[".".join(words[: i + 1])]
    return ".".join(path)


def _leaves(adapter: Adapter, values: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Yield (PEFT's name below the layer, PEFT's tensor) for everything an adapter holds, by attribute."""
    if isinstance(adapter, Tokens):
        yield _TOKENS, values["value"]
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
    modules: Mapping[str, nn.Module], config: LoRAConfig, tensors: Mapping[str, Tensor]
) -> list[tuple[Site, dict[str, Tensor]]]:
    """Return every site that a file's tensors stand for, with the tensors of its adapter by attribute name.

    modules: the model's own by full name, the model itself under "".
    The file decides what is adapted; each tensor must find its place and each place its tensors.
    Raises AdapterMismatchError, listing what is missing, unexpected or of another shape.
    """
    parts, unexpected = _group(tensors, modules, config)
    found: list[tuple[Site, dict[str, Tensor]]] = []
    problems = [f"unexpected {key}" for key in unexpected]
    for (module, parameter, role), values in parts.items():
        site = _site(modules, config, module, parameter, role)
        values, trouble = _fit(site, values, modules[module])
        problems += trouble
        found.append((site, values))
    problems += _missing(config, modules, {s.module for s, _ in found})
    if problems:
        raise AdapterMismatchError(_mismatch(modules[""], problems, len(tensors)))
    saved_first = sorted(found, key=lambda item: item[0].role in FORMULAS)
    tied = [t for site, _ in saved_first if site.role == "tokens" for t in tied_sites(modules, site)]
    return [*saved_first, *((site, {}) for site in tied)]


def _group(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], config: LoRAConfig
) -> tuple[dict[tuple[str, str, str], dict[str, Tensor]], list[str]]:
    """Sort a file's tensors by (module, parameter, role), and name those that have no place."""
    parts: dict[tuple[str, str, str], dict[str, Tensor]] = {}
    unexpected = []
    for key, tensor in tensors.items():
        path, leaf, attribute = _split(key.removeprefix(PREFIX))
        words = path.split(".") if path else []
        module = ".".join(w for w in words if w != _WRAP)
        layer = modules.get(module)
        if layer is None:
            unexpected.append(key)
        elif attribute == "plain":
            own = own_tensor(layer, leaf)
            if own is None:
                unexpected.append(key)
            elif not (isinstance(layer, nn.Embedding) and _WRAP in words and _same(own, tensor)):
                parts.setdefault((module, leaf, "saved"), {})["value"] = tensor
        elif attribute == "tokens":
            parts.setdefault((module, "weight", "tokens"), {})["value"] = tensor
        else:
            parameter = _parameter(layer, module, _trailing(words), config)
            if parameter is None:
                unexpected.append(key)
            else:
                group = parts.setdefault((module, parameter, config.formula), {})
                if attribute in group:  # under its other name
                    unexpected.append(key)
                group[attribute] = tensor
    return parts, unexpected


_LEAVES = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_B.bias": "lora_bias",
    "lora_embedding_A": "lora_A",
    "lora_embedding_B": "lora_B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    _TOKENS: "tokens",
}


def _split(key: str) -> tuple[str, str, str]:
    """Return (path, leaf, the adapter's attribute or "plain") of a key without its prefix."""
    for leaf, attribute in _LEAVES.items():
        if key == leaf or key.endswith("." + leaf):
            return key[: -len(leaf)].rstrip("."), leaf, attribute
    path, _, leaf = key.rpartition(".")
    return path, leaf, "plain"


def _trailing(words: list[str]) -> int:
    return next((i for i, word in enumerate(reversed(words)) if word != _WRAP), len(words))


def _parameter(layer: nn.Module, module: str, depth: int, config: LoRAConfig) -> str | None:
    """Return which parameter of a layer a low-rank pair belongs to, from how deep PEFT nested it."""
    if isinstance(layer, nn.MultiheadAttention):
        return "in_proj_weight" if depth == 0 else None
    raw = [n.rpartition(".")[2] for n in match_names(config.target_parameters or (), parameter_names({module: layer}))]
    if raw:
        return raw[len(raw) - 1 - depth] if depth < len(raw) else None
    return "weight" if depth == 0 and kind_of(layer) is not None else None


def _same(own: Tensor, tensor: Tensor) -> bool:
    return not own.is_meta and own.shape == tensor.shape and torch.equal(own.cpu(), tensor.to(own.dtype))


def _site(modules: Mapping[str, nn.Module], config: LoRAConfig, module: str, parameter: str, role: str) -> Site:
    if role == "saved":
        return Site(module, parameter, "saved")
    if role == "tokens":
        wanted = config.trainable_token_indices
        rows = (
            wanted
            if not isinstance(wanted, Mapping)
            else next(v for k, v in wanted.items() if match_names([k], [module]))
        )
        return Site(module, "weight", "tokens", rows=tuple(rows or ()))
    owner = module.rpartition(".")[0]
    if isinstance(modules.get(owner), nn.MultiheadAttention):
        return next(s for s in mha_sites(modules, owner, config) if s.module == module)
    if isinstance(modules[module], nn.MultiheadAttention):
        return next(s for s in mha_sites(modules, module, config) if s.parameter == parameter)
    raw = bool(match_names(config.target_parameters or (), [f"{module}.{parameter}"]))
    return lora_site(modules, config, module, parameter if raw else "")


def _fit(site: Site, values: dict[str, Tensor], layer: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Return a file's tensors in the shapes of the site's adapter, and what does not fit."""
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
        for k, shape in wanted.items()
        if k in values and tuple(values[k].shape) != shape
    ]
    return values, trouble


def _own_tensors(adapter: Adapter) -> Iterable[tuple[str, Tensor]]:
    yield from [(k, v) for k, v in adapter._parameters.items() if v is not None]
    yield from [(k, v) for k, v in adapter._buffers.items() if v is not None and k == "value"]


def _missing(config: LoRAConfig, modules: Mapping[str, nn.Module], found: set[str]) -> list[str]:
    """Return what the config's own list names in the model and the file does not hold."""
    wanted = [n for n in listed_modules(config, modules) if kind_of(modules[n]) is not None]
    return [f"missing the tensors of {n}" for n in wanted if n not in found]


def _mismatch(model: nn.Module, problems: list[str], count: int) -> str:
    shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
    return (
        f"the adapter does not fit {type(model).__name__}: {shown}. Its file holds {count} tensors. Load it onto the "
        "base it was trained on (base_model_name_or_path in its adapter_config.json), of the same class."
    )
