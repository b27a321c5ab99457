"""What every adapter of one parameter is: a module with tensors, a formula, and the weight it stands for.

Whoever meets an adapter asks it; nobody outside this room looks at its class. The answers here are those of an adapter
of which nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError
from ..kinds.kind import Shape, computed
from ..kinds.quantised import QuantisedKind
from .initial import InitName
from .row import Part, Row
from .table import ADAPTERS

Result = TypeVar("Result")
NO_SUM = "which is no sum of a weight and a product"  # said of an adapter without `pairs`


@dataclass(frozen=True)
class Spec:
    """An adapter before it is built.

    parameter: the name of what it adapts in its layer. role: its row in `ADAPTERS`. kind: a key of `KINDS`.
    shape: the weight's. dropout: the probability with which each input feature is dropped in training. factor: what
    the layer's own forward multiplies its result by. seed: of the numbers that its start draws. rows: of a table, those
    that train. settings: the formula's own. group: the name of those that it shares tensors with; leads: whether it is
    the first of them; widest: the most outputs and the most inputs in the group.
    """

    parameter: str
    role: str
    kind: str = ""
    shape: Shape = ()
    r: int = 0
    scaling: float = 1.0
    dropout: float = 0.0
    factor: float = 1.0
    bias: bool = False
    init: InitName = True
    seed: int = 0
    rows: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    group: str = ""
    leads: bool = True
    widest: Shape = ()

    @property
    def row(self) -> Row:
        """What is known of such an adapter."""
        return ADAPTERS[self.role]

    @property
    def key(self) -> str:
        """The adapter's key in its layer."""
        return str(self.row.adapter.key_for(self.parameter))


class Product(NamedTuple):
    """What is added to a (..., out, in) matrix: scaling * b @ a, a (..., r, in) and b (..., out, r)."""

    a: Tensor
    b: Tensor
    scaling: float


class Adapter(nn.Module):
    """One named adapter's share of one parameter.

    role: the name of its row in `ADAPTERS`. parameter: the name of the adapted parameter in its layer.
    exclusive: whether a second active adapter on the same parameter would have no defined meaning.
    fuses: whether a plain linear layer and this adapter compute as one (`linear`).
    moves_base: whether it started as a part of the weight, so that the product at birth is subtracted.
    transposed: whether the weight is stored as (..., in, out).
    vanishing: the tensors each of which, all zero, makes it change nothing; the one that training writes first, first.
    settings: the attributes beside its tensors that are another's where it becomes it.
    group, leads: see `Spec`. is_kept: whether somebody keeps its row's budget.
    """

    role: ClassVar[str]
    exclusive: ClassVar[bool] = False
    fuses: ClassVar[bool] = False
    vanishing: ClassVar[tuple[str, ...]] = ()
    moves_base: bool = False
    is_kept: bool = False
    settings: ClassVar[tuple[str, ...]] = ()
    transposed: bool = False
    parameter: str
    group: str
    leads: bool
    _sizes: dict[str, tuple[int, ...]]
    _written: dict[str, int]
    _steps: int

    def __init__(self, spec: Spec, own: Tensor | None, *, buffer: bool, device: torch.device | None) -> None:
        """Make an empty adapter, for `initialise` or a file to fill.

        own: the parameter itself, None where the layer shows none; buffer: whether it is a buffer.
        """
        super().__init__()
        # A module's own __setattr__ takes microseconds, and a model may have a thousand adapters of one name.
        self.__dict__.update(parameter=spec.parameter, group=spec.group, leads=spec.leads)
        self.__dict__.update(_sizes={}, _written={}, _steps=0)

    def forward(self, step: Callable[[], Result]) -> Result:
        """Return what a step gives that computes with this adapter's tensors; see `run`."""
        return step()

    def run(self, compute: Callable[..., Result], *args: Any) -> Result:
        """Return compute(*args), which computes with this adapter's tensors.

        Whoever computes with an adapter does it so: what others hook to a module (offloading, gathering of shards)
        then acts on an adapter as on any other. What a hook sees is no tensor and no module, which it would move.
        """
        if "forward" in self.__dict__ or self._forward_pre_hooks or self._forward_hooks:
            return self(partial(compute, *args))
        return compute(*args)

    @property
    def is_computed_again(self) -> bool:
        """Whether it holds what it took out of the weight, and no file does."""
        return False

    # --- the row: every class of adapters has these -----------------------------------------------------------------

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        """Return the shape of everything that such an adapter saves, by attribute."""
        raise NotImplementedError

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield (key below the layer, tensor) of this adapter as PEFT's files hold it; values: by attribute."""
        raise NotImplementedError

    def described(self) -> tuple[str, str]:
        """Return (what it is, the shape of what it stands for), for a report."""
        raise NotImplementedError

    def initialise(self, layer: nn.Module) -> None:
        """Fill the factors of a fresh adapter in place; the layer is read, never written."""
        raise NotImplementedError

    def redrawn(self, layer: nn.Module) -> float:
        """Return the share by which other random numbers would change what it took out of the weight at birth.

        Writes factors that a file then overwrites. 0 for an adapter that takes nothing, or draws nothing for it.
        """
        return 0.0

    def effective(self, weight: Tensor) -> Tensor:
        """Return the weight that this adapter makes of another.

        weight: the parameter in its own layout and dtype, left unchanged. Returns a new tensor of the same shape,
        dtype and device; differentiable with respect to the adapter.
        """
        raise NotImplementedError

    def numbers(self, layer: nn.Module, own: Tensor) -> Tensor:
        """Return its parameter of a layer as `effective` takes it: the tensor itself, unless that is packed."""
        return own

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return the output of a plain linear layer for its input x, with this adapter, in one step; if it `fuses`."""
        raise NotImplementedError

    def add(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return a layer's output with what this adapter adds to it, for adapters that sit behind a layer's forward.

        x: the layer's input; y: its output without this adapter, which may be written. Returns a tensor of y's shape
        and dtype.
        """
        raise NotImplementedError

    # --- what most classes leave as it is ---------------------------------------------------------------------------

    @classmethod
    def key_for(cls, parameter: str) -> str:
        """Return the key of such an adapter in its layer: a part of the names in state dicts and checkpoints."""
        return f"{cls.role}_{parameter}"

    @classmethod
    def refusal(cls, spec: Spec, raw: bool) -> str:
        """Return what a place is that such an adapter has no meaning at, "" where it has one.

        raw: whether it is a parameter of a module that is no layer.
        """
        return ""

    @classmethod
    def from_file(cls, spec: Spec, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a file's tensors, by attribute, in the shapes of such an adapter; as they are where they can't be."""
        return dict(values)

    @classmethod
    def group_of(cls, spec: Spec, module: str) -> str:
        """Return what names the adapters, of those added at once, that share its row's shared tensors; "" for none."""
        return ""

    @classmethod
    def left_out(cls, spec: Spec) -> tuple[str, ...]:
        """Return the attributes that no file of such an adapter holds, since `draw` makes them again."""
        return ()

    def draw(self) -> None:
        """Fill in place what its files leave out."""

    @property
    def row(self) -> Row:
        """What is known of such adapters."""
        return ADAPTERS[self.role]

    @property
    def quantised_kind(self) -> QuantisedKind | None:
        """The kind of the parameter where that is packed, and can be read and packed again."""
        return None

    @property
    def low_rank(self) -> bool:
        """Whether it is a low-rank product on a weight."""
        return self.row.low_rank

    def conflicts(self, spec: Spec) -> Iterator[str]:
        """Yield in what a file's adapter differs from this one, besides shapes and numbers; the subject is left out."""
        yield from ()

    def part_of(self, attribute: str) -> Part:
        """Return what a tensor is to LoRA+'s learning rates."""
        return self.row.stored[attribute].part

    def decays(self, attribute: str) -> bool | None:
        """Return whether weight decay falls on a tensor; None where that is as of the parameter it copies."""
        return self.row.stored[attribute].decays

    def product_of_factors(self) -> Product | None:
        """Return the low-rank product that it adds to the weight, None where it is none."""
        return None

    def pairs(self) -> Product | None:
        """Return the low-rank products that are all it adds to the weight, a stack of them; None where it is no sum."""
        return None

    def plain(self) -> Spec:
        """Return what plain LoRA in this one's place is, with the scaling 1. Only where `pairs` returns some."""
        raise NotImplementedError

    def hold(self, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
        """Write pairs of at most its rank into plain LoRA; a, b: as `pairs` returns them; bias: what a layer's gets."""
        raise NotImplementedError

    def plain_product(self) -> Product | None:
        """Return the product with which it adds scaling * x A^T B^T to a product with its weight, and does no more."""
        return None

    def weighted(self, weight: float) -> Adapter:
        """Return this adapter, its tensors and all, with its update multiplied. Raises AdapterStateError."""
        raise AdapterStateError(
            f"a weight of {weight:g}: {self.role!r} adapters replace what the base has, which cannot be multiplied. "
            "Name this adapter without a weight."
        )

    def row_lengths(self, weight: Tensor) -> Tensor | None:
        """Return the length of each row of a weight's (..., out, in) matrix of numbers; None where it has none."""
        return None

    def measured(self, row_lengths: Tensor) -> dict[str, Tensor]:
        """Return what else of it is worth following in training; row_lengths: those of the base's weight."""
        return {}

    def settle_on(self, layer: nn.Module) -> None:
        """Take up the kind of another layer, of the same shape, that stands in the place of its own."""

    def drop_nothing(self) -> None:
        """Switch its dropout off for good."""

    @property
    def changes_bias(self) -> bool:
        """Whether it changes the layer's bias along with its parameter."""
        return False

    def effective_bias(self, bias: Tensor | None) -> Tensor | None:
        """Return the bias that this adapter makes of the layer's, of the same dtype; of none, its own."""
        return bias

    def acts_beside(self, other: Adapter) -> bool:
        """Tell whether this adapter and another's on the same parameter, both active, have a defined meaning."""
        return not (self.exclusive or other.exclusive)

    def is_idle(self) -> bool:
        """Return whether its tensors alone tell that it changes nothing."""
        return False

    def largest_change(self) -> float:
        """Return what no entry of a weight changes by more than, infinity where that is not known."""
        return math.inf

    # --- its tensors ------------------------------------------------------------------------------------------------

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

    def share(self, other: Adapter) -> None:
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

    def unlike(self, other: Adapter) -> str:
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

    def fit_into(self, other: Adapter) -> None:
        """Take the shapes and the scaling of another adapter, which is about to become this one."""

    def become(self, other: Adapter) -> None:
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


def base_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """Return a module's own parameter or buffer, or what it computes in the place of one."""
    own = own_tensor(layer, name)
    return computed(layer, name) if own is None else own


def own_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """Return a module's own parameter or buffer, without adapters; a replica's (nn.DataParallel) as well."""
    found = layer._parameters.get(name)
    if found is None:
        found = layer._buffers.get(name)
    return layer.__dict__.get("_former_parameters", {}).get(name) if found is None else found
