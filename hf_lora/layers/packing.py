"""Merging into a packed weight: a plain one in its place, or one that its library packs; and the way back.

A library's layer with a plain weight would not compute. So it is a plain linear layer meanwhile, or for good: the same
object with its class, attributes and buffers changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kinds.quantised import QuantisedKind
from ..maths import rounding
from .specialising import Specialised, base_of, have_one_layout, rebase, refined


class Loss(NamedTuple):
    """What merging a parameter loses: squares of a distance and of the effect, and with inputs, what is along it.

    lost: |W' as it is stored - W'|^2. effect: |W' - W|^2. along: <W' as it is stored - W, W' - W>. nearest: lost and
    along where every value is rounded to the nearest.
    """

    parameter: str
    lost: float
    effect: float
    along: float = 0.0
    nearest: tuple[float, float] | None = None


class FedBack(NamedTuple):
    """A packed weight whose rounding keeps a layer's outputs on some inputs, and what it loses of them."""

    weight: Tensor
    loss: Loss


@dataclass(frozen=True)
class Packing:
    """What becomes of a packed weight that adapters are merged into.

    dtype: of the plain one. requantize: it is packed by its library instead. made: by a layer's id, what is packed
    already, and keeps what the layer makes of some inputs.
    """

    dtype: torch.dtype
    requantize: bool = False
    made: Mapping[int, FedBack] = field(default_factory=dict)

    @property
    def wide(self) -> torch.dtype:
        """The dtype that a packed weight is read and merged in."""
        return torch.promote_types(self.dtype, torch.float32) if not self.requantize else torch.float32

    def of(self, layer: nn.Module, kind: QuantisedKind, like: Tensor, values: Tensor) -> Tensor:
        """Return a merged matrix, (out, in), as it takes a packed weight's place."""
        if not self.requantize:
            return values.to(self.dtype)
        made = self.made.get(id(layer))
        return kind.packed(layer, like, values) if made is None else made.weight


class Unpacked(NamedTuple):
    """What a library's layer was besides its weight, while it is a plain one."""

    base: type[nn.Module]
    stands: type[nn.Module]  # what stands for it meanwhile
    attributes: dict[str, Any]
    buffers: dict[str, Tensor | None]


def fed_back(layer: nn.Module, kind: QuantisedKind, like: Tensor, values: Tensor, moments: Tensor) -> Tensor:
    """Return a matrix packed with another's scales so that what it makes of inputs with these moments is kept."""
    grid = kind.grid(layer, like)
    return kind.on_grid(layer, like, rounding.fed_back(values, moments, grid.levels, grid.scale, grid.shift))


class AsPlain(Specialised, nn.Module):
    """What a library's layer is refined by where Python does not let it become a plain one (quanto's)."""

    @classmethod
    def _lora_content(cls, base: type, *key: Any) -> dict[str, Any]:
        (plain,) = key
        names = ("forward", "extra_repr", "_save_to_state_dict", "_load_from_state_dict")
        return {name: getattr(plain, name) for name in names}


def make_plain(layer: nn.Module, kind: QuantisedKind) -> Unpacked:
    """Make a library's layer a plain linear one, in place, but for its weight; return what it takes back to be one."""
    base, own = base_of(type(layer)), layer.__dict__
    attributes = {name: own.pop(name) for name in kind.added if name in own}
    buffers = {name: layer._buffers.pop(name) for name in kind.added if name in layer._buffers}
    plain: Any = kind.plain_class(base)
    stands = plain if have_one_layout(plain, base) else refined(AsPlain, base, plain)
    rebase(layer, base, stands)
    return Unpacked(base, stands, attributes, buffers)


def make_packed(layer: nn.Module, was: Unpacked) -> None:
    """Make a layer its library's again, in place, but for its weight."""
    rebase(layer, was.stands, was.base)
    layer.__dict__.update(was.attributes)
    layer._buffers.update(was.buffers)


def plain_object(layer: nn.Module) -> nn.Module:
    """Return a layer that was made plain, or a new one with all that it has where Python did not let it become one."""
    made = type(layer).__dict__.get("_lora_made")
    if made is None or made.mixin is not AsPlain:
        return layer
    (cls,) = made.key
    new: nn.Module = cls.__new__(cls)
    new.__dict__.update(layer.__dict__)
    return new
