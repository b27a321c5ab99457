"""An adapter as a module: which tensors it holds, which of them train, and how another's take their place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .row import Row
from .spec import Spec
from .table import ADAPTERS


class Tensors(nn.Module):
    """The tensors of an adapter.

    role: the name of its row in `ADAPTERS`. parameter: the name of the adapted parameter in its layer.
    settings: the attributes beside its tensors that are another's where it becomes it.
    group, leads: see `Spec`.
    """

    role: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    parameter: str
    group: str
    leads: bool
    _sizes: dict[str, tuple[int, ...]]
    _written: dict[str, int]
    _steps: int

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        # A module's own __setattr__ takes microseconds, and a model may have a thousand adapters of one name.
        self.__dict__.update(parameter=spec.parameter, group=spec.group, leads=spec.leads)
        self.__dict__.update(_sizes={}, _written={}, _steps=0)

    @property
    def row(self) -> Row:
        """What is known of such adapters."""
        return ADAPTERS[self.role]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved, by attribute: the adapter's own tensors, not copies."""
        own = {**self._parameters, **self._buffers}
        return {k: v for k, v in own.items() if v is not None and k not in self._non_persistent_buffers_set}

    def trained(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that training may write: floating-point ones that their row does not keep."""
        for name, parameter in self.named_parameters(recurse=False):
            if parameter.is_floating_point() and self._trains(name):
                yield parameter

    def _trains(self, attribute: str) -> bool:
        """Return whether training may write a tensor of its own."""
        stored = self.row.stored
        return attribute not in stored or stored[attribute].trains

    def shared(self) -> tuple[str, ...]:
        """Return the attributes of the tensors that are those of its group."""
        return tuple(name for name, stored in self.row.stored.items() if stored.shared) if self.group else ()

    def share(self, other: Tensors) -> None:
        """Hold the shared tensors of another adapter of its group in the place of its own."""
        for name in self.shared():
            self._parameters[name] = other._parameters[name]

    def begin(self) -> None:
        """Note the tensors' shapes, before anything can shard them, and that no training has written them yet."""
        self.__dict__["_sizes"] = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        self.restart()

    def restart(self) -> None:
        """Take the tensors' present values for the start: what was written so far was no training."""
        self.__dict__.update(_written={n: version(tensor) for n, tensor in self.tensors().items()}, _steps=0)

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
        own = {k: t for k, t in self.tensors().items() if k not in self.shared()}  # others' steps write shared ones
        asked = {k: t for k, t in own.items() if attributes is None or k in attributes}
        seen = [version(t) - self._written.get(name, 0) for name, t in asked.items()]
        return max(self._steps, *seen, 0)

    # --- becoming another one in place ------------------------------------------------------------------------------

    def unlike(self, other: Tensors) -> str:
        """Return in what another adapter, a file's, is one that it cannot become; "" where it can."""
        found, own = ({k: tuple(t.shape) for k, t in adapter.held().items()} for adapter in (other, self))
        if type(self) is type(other) and found == own:
            return ""
        return f"is {other.role} {found} in the file, {self.role} {own} on the model"

    def refuses_room(self, max_r: int) -> str:
        """Return why its tensors cannot be made large enough for any rank up to one, "" where they can."""
        return ""

    def make_room(self, max_r: int) -> None:
        """Make its tensors large enough for any rank up to one, in place; what it computes stays the same."""

    def fit_into(self, other: Tensors) -> None:
        """Take the shapes and the scaling of another adapter, which is about to become this one."""

    def become(self, other: Tensors) -> None:
        """Take over what another adapter is, which was fitted into this one; its tensors stay the same objects."""
        for name, tensor in self.held().items():
            put(tensor, other.held()[name])
            tensor.grad = None  # that of other numbers
        for name in self.settings:
            setattr(self, name, getattr(other, name))
        self.begin()

    def at_birth(self) -> dict[str, Tensor]:
        """Return the factors of the product that it took out of the weight at birth, by attribute."""
        return {}

    def held(self) -> dict[str, Tensor]:
        """Return its tensors by attribute, those that no file holds among them."""
        return {name: t for name, t in {**self._parameters, **self._buffers}.items() if t is not None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.restart()


def put(tensor: Tensor, values: Tensor) -> None:
    """Write values into a tensor, which takes their shape; a backward pass that needs the old ones raises an error."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():  # it stays what it is
        if tensor.shape != values.shape:
            tensor.data, tensor.grad = tensor.new_empty(values.shape), None
        tensor.copy_(values)


def version(tensor: Tensor) -> int:
    """Return how often a tensor was written in place; one made in inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version
