"""What the kinds of quantising libraries share: a packed weight is read as a float matrix, and packed again.

W_ij = levels[index_ij] * scale_ij + shift_ij          (every library's formats are such a grid)
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import TargetError
from .kind import Kind, Shape


class Grid(NamedTuple):
    """The values that a packed weight can hold, and which of them it holds.

    levels: (n,), ascending, float32. scale, shift: float32, they broadcast to (out, in). index: (out, in), int64.
    """

    levels: Tensor
    scale: Tensor
    shift: Tensor | float
    index: Tensor


class QuantisedKind(Kind):
    """A linear layer whose packed weight can be read and packed again, with the settings that it was packed with.

    added: the attributes and buffers of the library's layer that a plain one does not have. package: the library's, as
    it is imported. A subclass says how its weight is read (`numbers`), packed (`packed`), and what grid its values lie
    on (`grid`, `on_grid`).
    """

    is_quantised = True
    is_readable = True
    is_matrix = True
    added: ClassVar[frozenset[str]] = frozenset()
    package: ClassVar[str]

    def claims(self, module: nn.Module) -> bool:
        weight = module._parameters.get("weight")
        return isinstance(module, nn.Linear) and weight is not None and self.holds(module, weight)

    def holds(self, layer: nn.Linear, weight: Tensor) -> bool:
        """Return whether a linear layer's weight is one that this kind can read and pack."""
        raise NotImplementedError

    def knows_forward(self, cls: type[nn.Module]) -> bool:
        return True

    def weight_shape(self, module: nn.Module) -> Shape:
        return int(module.out_features), int(module.in_features)

    def numbers(self, layer: nn.Module, weight: Tensor) -> Tensor:
        if weight.is_meta:
            raise TargetError(
                "its quantised weight is offloaded, and can be read only where the model is loaded whole."
            )
        with torch.no_grad():
            return self.read(layer, weight)

    def read(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """Return what a packed weight stands for, as the library itself reads it: (out, in), a new plain tensor."""
        raise NotImplementedError

    def packed(self, layer: nn.Module, like: Tensor, values: Tensor) -> Tensor:
        """Return a float matrix packed by the library, with the settings of a packed weight of the layer.

        values: (out, in), float32. Rounded to the nearest, with scales of its own.
        """
        raise NotImplementedError

    def grid(self, layer: nn.Module, weight: Tensor) -> Grid:
        """Return the grid that a packed weight's values lie on, with its own scales."""
        raise NotImplementedError

    def on_grid(self, layer: nn.Module, like: Tensor, index: Tensor) -> Tensor:
        """Return a packed weight with the scales of another and other levels of its grid; index: (out, in), int64."""
        raise NotImplementedError

    def plain_class(self, cls: type[nn.Module]) -> type[nn.Module]:
        """Return the class of a layer whose weight is plain again: the first that is not the library's."""
        outside = (c for c in cls.__mro__ if c.__module__.partition(".")[0] != self.package)
        return next(c for c in outside if issubclass(c, nn.Linear))

    def replaced(self, layer: nn.Module, old: Tensor, new: Tensor) -> None:
        """Put right what a layer holds beside its weight, where another weight is about to take the place of one."""


def of_library(value: object, package: str, *names: str) -> bool:
    """Return whether a value is of a class of a package, which is not imported for that."""
    return any(c.__name__ in names and c.__module__.partition(".")[0] == package for c in type(value).__mro__)


def count(parameter: Tensor) -> int:
    """Return how many numbers a parameter stands for: bitsandbytes keeps several of four bits in one of its own."""
    state = getattr(parameter, "quant_state", None) if of_library(parameter, "bitsandbytes", "Params4bit") else None
    return parameter.numel() if state is None else int(state.shape.numel())


def rebuilt(tensor: Any, **inner: Tensor) -> Any:
    """Return a library's tensor with other inner tensors, by the protocol that torch.compile takes it apart by."""
    names, context = tensor.__tensor_flatten__()
    parts = {**{name: getattr(tensor, name) for name in names}, **inner}
    return type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())


def float_levels(dtype: torch.dtype) -> Tensor:
    """Return every finite value of an 8-bit floating-point dtype once, ascending, float32."""
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return every[every.isfinite()].unique()
