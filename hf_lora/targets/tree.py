"""Which modules are linear layers, and the tree they stand in."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..layers.layer import base_modules
from .reads import Uses

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
    return isinstance(module, (nn.Linear, Conv1D))


def is_convolution(module: nn.Module) -> bool:
    """Tell whether the module is a convolution of one to three dimensions."""
    return isinstance(module, _CONVOLUTIONS)


def is_stacked(module: nn.Module) -> bool:
    """Tell whether the module is a stack of matrices under one 3-D `weight`, as JetMoe's parallel experts are."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 3 and not hasattr(module, "kernel_size")


def is_opaque(module: nn.Module) -> bool:
    """Tell whether the module looks like a linear layer of its own making, which no adapter fits."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and hasattr(module, "in_features") and not is_linear(module)


def is_map(module: nn.Module) -> bool:
    """Tell whether the module is any of these."""
    return is_linear(module) or is_convolution(module) or is_stacked(module) or is_opaque(module)


def widths(module: nn.Module) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a linear layer, a convolution or a stack of matrices."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, _CONVOLUTIONS):
        return module.in_channels, module.out_channels
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() < 2:
        return 0, 0
    rows, columns = weight.shape[-2:]
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


class Tree:
    """A model's modules under the names `named_modules` gives them, without the adapters hf_lora put there."""

    def __init__(self, model: nn.Module) -> None:
        """Walk `model` once; modules used twice keep their first name."""
        self.root = model
        self.modules = dict(base_modules(model))
        self.names = {module: name for name, module in self.modules.items()}
        self.uses = Uses(self.modules)
        self.parents = {m: self.modules[name.rpartition(".")[0]] for name, m in self.modules.items() if name}

    def children(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the module's own children and their labels, adapters left out."""
        return ((label, child) for label, child in module.named_children() if child in self.names)

    def below(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the module and everything below it, parents first."""
        yield module
        for _, child in self.children(module):
            yield from self.below(child)

    def above(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the module and everything that it is in."""
        yield module
        while (parent := self.parents.get(module)) is not None:
            yield (module := parent)

    def projections(self, module: nn.Module) -> list[Projection]:
        """Return the linear maps that the module's children stand for: themselves, or the only one inside a wrapper."""
        found = ((label, self._map_in(child)) for label, child in self.children(module))
        return [
            Projection(label, self.names[m] + (".weight" if is_stacked(m) else ""), *widths(m), not is_opaque(m))
            for label, m in found
            if m is not None
        ]

    def _map_in(self, module: nn.Module) -> nn.Module | None:
        """Return the module itself or the only linear map below it; None where there is an attention of PyTorch's."""
        if is_map(module):
            return module
        maps, whole = list[nn.Module](), list[nn.Module]()
        for inner in self.below(module):
            maps += [inner] if is_map(inner) else []
            whole += [inner] if is_map(inner) and getattr(inner, "groups", 1) == 1 else []
            if isinstance(inner, nn.MultiheadAttention) or len(whole) > 1:
                return None
        # timm's attention samples down before it projects, a channel at a time
        maps = whole if len(maps) > 1 else maps
        return maps[0] if len(maps) == 1 else None
