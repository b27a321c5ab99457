"""Which layers' weights are read by code outside of the layer, past its forward, and which layers are called.

An adapter that adds to a layer's output is dead where somebody computes with `layer.weight` and never calls `layer`:
WavLM hands its projections to `F.multi_head_attention_forward`, language models multiply by their input table.
The code of every module above a layer is looked at, never run. Where it may read the layer, it counts as if it did.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from torch import nn

from .scanning import Path
from .source import flags_in, flags_of, modules_of, text_of

_MANY = 1000  # ways to a layer that are looked at
_TORCHS = frozenset(vars(nn.Module()))  # attributes of every module, which hold no other one but as its children


class Use(NamedTuple):
    """How a model uses a layer: whether code outside of it reads its weight, and whether the layer is called."""

    is_read: bool
    is_called: bool


class Uses:
    """How a model uses its layers, from the source of its modules.

    modules: the model's own, by full name.

    >>> attention = nn.MultiheadAttention(4, 1)
    >>> Uses({"": attention}).of(attention.out_proj)
    Use(is_read=True, is_called=False)
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules, self._above = modules, dict[int, list[tuple[nn.Module, Path, bool]]]()

    def of(self, layer: nn.Module) -> Use:
        """Return how the modules above a layer use it, under whatever names they have it.

        Where more ways lead to it than are looked at, it counts as called and read.
        """
        if not self._above:
            for module in self._modules.values():
                for path, child, is_link in _held(module):
                    self._above.setdefault(id(child), []).append((module, path, is_link))
        found: set[str] = set()
        for count, (module, path, is_parent) in enumerate(self._paths(layer)):
            if count == _MANY:
                return Use(True, True)
            cls: type = type(module)
            flags = flags_of(cls, path)
            if "forward" in vars(module):  # somebody gave the module itself a forward
                flags |= flags_in(vars(module)["forward"], path)
            found |= flags if is_parent else flags - {"asked"}
        is_called = not found.isdisjoint({"called", "handed"}) or not found
        return Use(not found.isdisjoint({"read", "handed"}), is_called)

    def _paths(self, layer: nn.Module) -> Iterator[tuple[nn.Module, Path, bool]]:
        """Yield every module that holds a layer, the path from it, and whether it does so itself, the nearest first."""
        # A path has one link at most: modules that all know each other have no end of them.
        waiting: list[tuple[nn.Module, Path, bool]] = [(layer, (), False)]
        seen: set[tuple[int, Path, bool]] = set()
        for module, below, linked in waiting:
            for holder, path, is_link in self._above.get(id(module), ()):
                step = (holder, path + below, linked or is_link)
                if not (linked and is_link) and (key := (id(holder), *step[1:])) not in seen:
                    seen.add(key)
                    waiting.append(step)
                    yield holder, step[1], not below


def _held(module: nn.Module) -> Iterator[tuple[Path, nn.Module, bool]]:
    """Yield the modules that one holds: its children, and by a link those in attributes and lists of its own."""
    for name, child in module._modules.items():
        if child is not None:
            yield ("0" if name.isdecimal() else name,), child, False
    for name, value in vars(module).items():
        if name in _TORCHS:
            continue
        for each in value if type(value) in (list, tuple) else (value,):
            if isinstance(each, nn.Module):
                yield (name, "*"), each, True


def weight_is_rescaled(parent: nn.Module, name: str) -> bool:
    """Tell whether the model's code multiplies or divides the weight of the layer of that full name in place.

    RWKV does so between training and evaluation: what an adapter adds beside such a weight keeps its old scale.
    """
    return any(name.endswith(f".{ending}") for base in type(parent).__mro__ for ending in _rescaled(base.__module__))


def is_named_in_a_call(parent: nn.Module, child: str) -> bool:
    """Tell whether any code beside that of `parent` calls something of the child's name: `self.child(...)`.

    True where the source cannot be had.
    """
    sources = [text_of(module) for module in modules_of(type(parent)) if module.startswith("transformers.models")]
    return not sources or any(re.search(rf"\.{re.escape(child)}\(", source or "") for source in sources)


@cache
def _rescaled(module: str) -> frozenset[str]:
    """Return the two-word endings of layers whose weights a Python module's code rescales in place."""
    if not module.startswith("transformers"):
        return frozenset()
    found = re.findall(r"\b(\w+\.\w+)\.weight(?:\.data)?\.(?:mul|div)_\(", text_of(module) or "")
    return frozenset(f for f in found if not f.startswith(("self.", "module.")))
