"""Which modules are linear layers, and the tree they stand in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..wording import full_name

_CONV1D = ("transformers.pytorch_utils", "Conv1D")  # known by name: a plain PyTorch model needs no Transformers
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Projection:
    """A linear map found below a module.

    label: the name of the module's child that holds it; target: what to adapt, its full dotted name;
    fan_in, fan_out: its widths, 0 where unknown; usable: whether an adapter can be put on it.
    """

    label: str
    target: str
    fan_in: int
    fan_out: int
    usable: bool = True


def is_linear(module: nn.Module) -> bool:
    """Tell whether the module is a linear layer: `nn.Linear`, a subclass, or Transformers' `Conv1D`."""
    return isinstance(module, nn.Linear) or _CONV1D in {(cls.__module__, cls.__name__) for cls in type(module).__mro__}


def is_convolution(module: nn.Module) -> bool:
    """Tell whether the module is a convolution of one to three dimensions."""
    return isinstance(module, _CONVOLUTIONS)


def is_stacked(module: nn.Module) -> bool:
    """Tell whether the module is a stack of matrices under one 3-D `weight`, as JetMoe's parallel experts are."""
    weight = module._parameters.get("weight")
    return (
        weight is not None and weight.dim() == 3 and not is_convolution(module) and not hasattr(module, "kernel_size")
    )


def is_opaque(module: nn.Module) -> bool:
    """Tell whether the module looks like a linear layer of its own making, which no adapter fits."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and hasattr(module, "in_features") and not is_linear(module)


def widths(module: nn.Module) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a linear layer, a convolution or a stack of matrices."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, _CONVOLUTIONS):
        return module.in_channels, module.out_channels
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() < 2:
        return 0, 0
    shape = tuple(weight.shape[-2:])
    return (shape[1], shape[0]) if is_stacked(module) or is_opaque(module) else (shape[0], shape[1])


class Tree:
    """A model's modules under the names `named_modules` gives them, without the adapters hf_lora put there."""

    def __init__(self, model: nn.Module) -> None:
        """Walk `model` once; modules used twice keep their first name."""
        self.root = model
        self.modules: dict[str, nn.Module] = {}
        self.names: dict[nn.Module, str] = {}
        self.parents: dict[nn.Module, nn.Module] = {}
        self._walk(model, "")

    def _walk(self, module: nn.Module, name: str) -> None:
        self.modules[name] = module
        self.names[module] = name
        for label, child in module.named_children():
            adapters = label == "adapters" and isinstance(child, nn.ModuleDict)
            if child not in self.names and not adapters:
                self.parents[child] = module
                self._walk(child, full_name(name, label))

    def children(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the module's own children and their labels, adapters left out."""
        for label, child in module.named_children():
            if child in self.names:
                yield label, child

    def below(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the module and everything below it, parents first."""
        yield module
        for _, child in self.children(module):
            yield from self.below(child)

    def projection(self, label: str, module: nn.Module) -> Projection | None:
        """Return the linear map a child stands for: itself, or the only one inside a wrapper; None if there is none."""
        if isinstance(module, nn.MultiheadAttention):
            return None
        leaf = module if self._is_map(module) else self._only_map(module)
        if leaf is None:
            return None
        fan_in, fan_out = widths(leaf)
        suffix = ".weight" if is_stacked(leaf) else ""
        return Projection(label, self.names[leaf] + suffix, fan_in, fan_out, usable=not is_opaque(leaf))

    def projections(self, module: nn.Module) -> list[Projection]:
        """Return the linear maps that the module's children stand for."""
        found = (self.projection(label, child) for label, child in self.children(module))
        return [projection for projection in found if projection is not None]

    def _only_map(self, wrapper: nn.Module) -> nn.Module | None:
        maps = []
        for module in self.below(wrapper):
            if isinstance(module, nn.MultiheadAttention):
                return None
            if self._is_map(module):
                maps.append(module)
                if len(maps) > 1:
                    return None
        return maps[0] if maps else None

    @staticmethod
    def _is_map(module: nn.Module) -> bool:
        return is_linear(module) or is_convolution(module) or is_stacked(module) or is_opaque(module)
