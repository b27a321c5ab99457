"""One tensor of a file: where its name says it belongs, and whether a model has such a place."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import full_name
from ..kinds.table import kind_of
from ..variants.adapter import own_tensor
from ..variants.table import SAVED
from .keys import PREFIX, WRAP, split_key, unwrapped
from .peft import place_of
from .renames import Today

FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor of a file, and where it lies today.

    path: its module's full name; wraps: PEFT's wrappers after it; attribute: see `split_key`.
    """

    key: str
    path: str
    wraps: int
    leaf: str
    attribute: str
    tensor: Tensor
    today: Today

    @property
    def is_saved(self) -> bool:
        """Whether it is a whole parameter."""
        return self.attribute == SAVED.name


def entry_of(key: str, tensor: Tensor) -> Entry:
    """Return a file's tensor with its key taken apart, at the place that its key says."""
    path, leaf, attribute = split_key(key)
    module, wraps = unwrapped(path)
    weight = full_name(module, leaf if attribute == SAVED.name else "weight")
    return Entry(key, module, wraps, leaf, attribute, tensor, Today((weight,)))


def key_at(entry: Entry, path: str) -> str:
    """Return PEFT's key of the same tensor at another module."""
    return PREFIX + full_name(path, *[WRAP] * entry.wraps, entry.leaf)


def parameter_at(modules: Mapping[str, nn.Module], name: str) -> Tensor | None:
    """Return the parameter of a full name, None where there is none."""
    owner, _, leaf = name.rpartition(".")
    return modules[owner]._parameters.get(leaf) if owner in modules else None


def has_place(modules: Mapping[str, nn.Module], config: LoRAConfig, entry: Entry) -> bool:
    """Return whether the model has a place for a tensor at today's name."""
    if entry.today.steps:
        return all(parameter_at(modules, name) is not None for name in entry.today.names)
    path, _, leaf = entry.today.names[0].rpartition(".")
    if entry.is_saved:
        return path in modules and own_tensor(modules[path], leaf) is not None
    if leaf == "weight" and place_of(key_at(entry, path), modules, config) is not None:
        return True
    return raw_owner(modules, entry) != ""


def raw_owner(modules: Mapping[str, nn.Module], entry: Entry) -> str:
    """Return the owner of a parameter that a pair now belongs to and that is no layer's (a router's), else ""."""
    owner, _, _ = entry.today.names[0].rpartition(".")
    parameter = parameter_at(modules, entry.today.names[0])
    is_pair = entry.attribute in FACTORS and not entry.leaf.startswith("lora_embedding")
    return owner if is_pair and parameter is not None and parameter.ndim == 2 and not kind_of(modules[owner]) else ""


def fits(modules: Mapping[str, nn.Module], entry: Entry) -> bool:
    """Return whether a tensor has the shape that its place at today's name asks for, as far as one layer tells."""
    path, _, leaf = entry.today.names[0].rpartition(".")
    layer = modules.get(path)
    if layer is None or entry.today.steps:
        return True
    if entry.is_saved:
        own = own_tensor(layer, leaf)
        return own is None or own.shape == entry.tensor.shape
    kind = kind_of(layer)
    if kind is None or entry.attribute not in FACTORS or entry.tensor.ndim < 2:
        return True
    which = FACTORS.index(entry.attribute)
    found, wanted = tuple(entry.tensor.shape), kind.factor_shapes(kind.weight_shape(layer), 1)[which]
    return (*found[:which], *found[which + 1 :]) == (*wanted[:which], *wanted[which + 1 :])  # whatever the rank
