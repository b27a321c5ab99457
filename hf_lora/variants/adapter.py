"""What every adapter of one parameter is: a module with factors, a formula, and the weight it stands for."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, ClassVar

from torch import Tensor, nn


class Adapter(nn.Module):
    """One named adapter's share of one parameter.

    parameter: the name of the adapted parameter in its layer.
    exclusive: whether a second active adapter on the same parameter would have no defined meaning.
    fuses: whether a plain linear layer and this adapter compute as one (`linear`).
    """

    low_rank: ClassVar[bool] = False  # a product of factors is added to the parameter
    exclusive: ClassVar[bool] = False
    fuses: ClassVar[bool] = False

    @property
    def changes_bias(self) -> bool:
        """Whether the layer's bias changes as well (`effective_bias`)."""
        return False

    moves_base: bool = False  # its factors start as a part of the weight, whose product at birth is subtracted

    def __init__(self, parameter: str) -> None:
        super().__init__()
        self.parameter = parameter
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._written: dict[str, int] = {}
        self._steps = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return what is trained and saved, by attribute: the adapter's own tensors, not copies."""
        own = {**self._parameters, **self._buffers}
        return {k: v for k, v in own.items() if v is not None and k not in self._non_persistent_buffers_set}

    def begin(self) -> None:
        """Note the tensors' shapes, before anything can shard them, and that no training has written them yet."""
        tensors = self.tensors()
        self._sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._written = {name: _version(tensor) for name, tensor in tensors.items()}

    def restart(self) -> None:
        """Take the tensors' present values for the start: what was written so far was no training."""
        self._written = {name: _version(tensor) for name, tensor in self.tensors().items()}
        self._steps = 0

    def note_steps(self, steps: int) -> None:
        """Note how many steps an optimizer that holds the tensors has taken, where somebody knows."""
        self._steps = steps

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor as it was attached, whole, by attribute."""
        return dict(self._sizes)

    def writes(self, attributes: Collection[str] | None = None) -> int:
        """Return how often the tensor that was written most was written since the start: at least this is known.

        attributes: the tensors to ask, all of them unless given.
        Every optimizer writes once or twice a step, but a fused one does so unseen. A copy's tensors count anew.
        """
        asked = {k: t for k, t in self.tensors().items() if attributes is None or k in attributes}
        seen = [_version(t) - self._written.get(name, 0) for name, t in asked.items()]
        return max(self._steps, *seen, 0)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.restart()

    def initialise(self, layer: nn.Module) -> None:
        """Fill the factors of a fresh adapter in place; the layer is read, never written."""
        raise NotImplementedError

    def effective(self, weight: Tensor) -> Tensor:
        """Return the weight that this adapter makes of another.

        weight: the parameter in its own layout and dtype, left unchanged. Returns a new tensor of the same shape,
        dtype and device; differentiable with respect to the adapter.
        """
        raise NotImplementedError

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias that this adapter makes of the layer's, new, of the same dtype."""
        raise NotImplementedError

    def acts_beside(self, other: Adapter) -> bool:
        """Tell whether this adapter and another's on the same parameter, both active, have a defined meaning."""
        return not (self.exclusive or other.exclusive)

    def largest_change(self) -> float:
        """Return what no entry of a weight changes by more than, infinity where that is not known."""
        return math.inf

    def adds_to(self, weight: Tensor) -> bool:
        """Tell whether `add_to` can make a weight the one this adapter stands for, in place."""
        return False

    def add_to(self, weight: Tensor) -> None:
        """Make a weight the one that this adapter stands for, in place."""
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


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written in place; one made in inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version


def own_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """Return a module's own parameter or buffer, without adapters."""
    found = layer._parameters.get(name)
    return found if found is not None else layer._buffers.get(name)
