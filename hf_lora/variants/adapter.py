"""What every adapter of one parameter is: a module with factors, a formula, and the weight it stands for."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Adapter(nn.Module):
    """One named adapter's share of one parameter.

    parameter: the name of the adapted parameter in its layer.
    exclusive: whether a second active adapter on the same parameter would have no defined meaning.
    fuses: whether a plain linear layer and this adapter compute as one (`linear`).
    """

    exclusive: ClassVar[bool] = False
    fuses: ClassVar[bool] = False

    def __init__(self, parameter: str) -> None:
        super().__init__()
        self.parameter = parameter

    def initialise(self, layer: nn.Module) -> None:
        """Fill the factors of a fresh adapter in place; the layer is read, never written."""
        raise NotImplementedError

    def effective(self, weight: Tensor) -> Tensor:
        """Return the weight that this adapter makes of another.

        weight: the parameter in its own layout and dtype, left unchanged. Returns a new tensor of the same shape,
        dtype and device; differentiable with respect to the adapter.
        """
        raise NotImplementedError

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return the output of a layer whose forward is a plain linear one, with this adapter, in one step.

        x: the layer's input. Only adapters that say `fuses` have one.
        """
        raise NotImplementedError

    def add(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return a layer's output with what this adapter adds to it.

        x: the layer's input; y: its output without this adapter, which may be written. Returns a tensor of y's shape
        and dtype. Only adapters that sit behind a layer's forward have one.
        """
        raise NotImplementedError
