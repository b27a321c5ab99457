"""What every adapter of one parameter is: a module with tensors, a formula, and the weight it stands for.

Whoever meets an adapter asks it; nobody outside this room looks at its class. The answers here are those of an adapter
of which nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError
from ..kinds.kind import Shape, computed
from ..kinds.quantised import QuantisedKind
from .row import Part
from .spec import Product, Spec
from .tensors import Tensors

Result = TypeVar("Result")
NO_SUM = "which is no sum of a weight and a product"  # said of an adapter without `pairs`


class Adapter(Tensors):
    """One named adapter's share of one parameter.

    exclusive: whether a second active adapter on the same parameter would have no defined meaning.
    fuses: whether a plain linear layer and this adapter compute as one (`linear`).
    moves_base: whether it started as a part of the weight, so that the product at birth is subtracted.
    transposed: whether the weight is stored as (..., in, out).
    vanishing: the tensors each of which, all zero, makes it change nothing; the one that training writes first, first.
    is_kept: whether somebody keeps its row's budget.
    """

    exclusive: ClassVar[bool] = False
    fuses: ClassVar[bool] = False
    vanishing: ClassVar[tuple[str, ...]] = ()
    moves_base: bool = False
    is_kept: bool = False
    transposed: bool = False

    def __init__(self, spec: Spec, own: Tensor | None, *, buffer: bool, device: torch.device | None) -> None:
        """Make an empty adapter, for `initialise` or a file to fill.

        own: the parameter itself, None where the layer shows none; buffer: whether it is a buffer.
        """
        super().__init__(spec)

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
