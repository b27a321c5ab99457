"""The factors of a low-rank adapter: how they begin, what files hold of them, and room for those of another rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kinds.kind import Kind, Shape
from ..kinds.quantised import QuantisedKind
from ..kinds.table import KINDS, kind_of, name_of
from ..maths import low_rank
from .adapter import Adapter, base_tensor
from .initial import INITS, InitName
from .row import Part
from .spec import Spec
from .table import LORA as PLAIN
from .tensors import Tensors, put

_FACTORS = ("lora_A", "lora_B")
_SCALED = ("lora_B", "lora_bias", "initial_B")  # what the scaling multiplies
_SPECIFIED = ("kind", "shape", "r", "scaling", "dropout", "factor", "init", "seed")
_AT_BIRTH = {"initial_A": "lora_A", "initial_B": "lora_B"}  # what is subtracted -> what it began as


class Factors(Adapter):
    """The factors A and B of one parameter, as float32 masters; float64 on a float64 weight.

    lora_A: (..., r, in), lora_B: (..., out, r), in the shapes of the parameter's kind; lora_bias: (out,) or None.
    room: the rank that the factors are widened to with zeros, 0 where they are not. Zeros on both sides of a product
    get no gradient, so training leaves them. folded: what lora_B and lora_bias are multiplied by because the scaling,
    a constant of compiled code, stays as it was.
    """

    settings: ClassVar[tuple[str, ...]] = ("r", "scaling", "dropout", "init", "room", "folded")
    kind: str
    shape: Shape
    r: int
    scaling: float
    dropout: float
    factor: float
    init: InitName
    seed: int
    room: int = 0
    folded: float = 1.0
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_bias: nn.Parameter | None

    def __init__(self, spec: Spec, own: Tensor | None, *, buffer: bool, device: torch.device | None) -> None:
        super().__init__(spec, own, buffer=buffer, device=device)
        dtype = torch.float64 if own is not None and own.dtype == torch.float64 else torch.float32
        self.__dict__.update({name: getattr(spec, name) for name in _SPECIFIED}, lora_bias=None)
        self.__dict__.update(moves_base=INITS[spec.init].moves_base, transposed=KINDS[spec.kind].transposed)
        for name, size in self.shapes(spec, None).items():
            if name not in _AT_BIRTH:
                setattr(self, name, nn.Parameter(torch.empty(size, device=device, dtype=dtype), self._trains(name)))
        for name, of in _AT_BIRTH.items() if self.moves_base else ():
            empty = torch.empty_like(getattr(self, of), requires_grad=False)
            self.register_buffer(name, empty, persistent=INITS[spec.init].held)

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        a, b = KINDS[spec.kind].factor_shapes(spec.shape, spec.r)
        held = {"initial_A": a, "initial_B": b} if INITS[spec.init].held else {}
        return {"lora_A": a, "lora_B": b, **({"lora_bias": b[:1]} if spec.bias else {}), **held}

    @classmethod
    def key_for(cls, parameter: str) -> str:
        return parameter

    @classmethod
    def from_file(cls, spec: Spec, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not {"lora_A", "lora_B"} <= values.keys():
            return dict(values)
        a, b = KINDS[spec.kind].from_file(values["lora_A"], values["lora_B"], spec.shape)
        if INITS[spec.init].held and (len(a), b.shape[1]) == (2 * spec.r, 2 * spec.r):
            values = {**values, "initial_A": a[spec.r :], "initial_B": -b[:, spec.r :]}
            a, b = a[: spec.r], b[:, : spec.r]
        return {**values, "lora_A": a, "lora_B": b}

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for pair in (_FACTORS, tuple(_AT_BIRTH)):
            if pair[0] in values:
                values = {**values, **dict(zip(pair, self._without_room(*(values[n] for n in pair)), strict=True))}
        if self.folded != 1:
            values = {name: value / self.folded if name in _SCALED else value for name, value in values.items()}
        a, b = values["lora_A"], values["lora_B"]
        if "initial_A" in values:  # twice the rank: what it is, and what it was, subtracted
            a, b = torch.cat((a, values["initial_A"])), torch.cat((b, -values["initial_B"]), dim=1)
        a, b = self._kind.to_file(a, b)
        values = {**values, "lora_A": a, "lora_B": b}
        for name, stored in self.row.stored.items():
            if name in values:
                yield stored.key_on(self._kind.embeds), values[name]

    @property
    def _kind(self) -> Kind:
        return KINDS[self.kind]

    @property
    def quantised_kind(self) -> QuantisedKind | None:
        kind = self._kind
        return kind if isinstance(kind, QuantisedKind) else None

    def described(self) -> tuple[str, str]:
        return f"{self.kind}, r={self.r}", " x ".join(map(str, self.shape))

    def conflicts(self, spec: Spec) -> Iterator[str]:
        if not math.isclose(self.scaling, spec.scaling, rel_tol=1e-6):
            yield f" is scaled by {spec.scaling:g} in the file, by {self.scaling:g} on the model"
        ours, theirs = INITS[self.init], INITS[spec.init]
        if self.init != spec.init and (ours.moves_base or theirs.moves_base or ours.keeps != theirs.keeps):
            yield f" started as init_lora_weights={spec.init!r}, the model's as {self.init!r}"

    def unlike(self, other: Tensors) -> str:
        if type(self) is not type(other) or not isinstance(other, Factors) or self.held().keys() != other.held().keys():
            return super().unlike(other)
        if self.group != other.group:
            return "shares its tensors with other layers in the file"
        if self.room and other.r > self.room:
            return f"has rank {other.r} in the file, and there is room for {self.room} (prepare_hotswap(max_r=))"
        return ""

    def refuses_room(self, max_r: int) -> str:
        if self.group:
            return "shares tensors with other layers, which have one rank"
        if self._kind.whole_rank(1, self.shape) != 1:
            return "is a convolution in groups, whose ranks belong to the groups"
        return f"has rank {self.r}" if self.r > max_r else ""

    def make_room(self, max_r: int) -> None:
        a, b = self._kind.factor_shapes(self.shape, max_r)
        for name, size in {"lora_A": a, "initial_A": a, "lora_B": b, "initial_B": b}.items():
            if (tensor := self.held().get(name)) is not None and tuple(tensor.shape) != size:
                wide = tensor.new_zeros(size)
                kept = tuple(slice(min(n, m)) for n, m in zip(tensor.shape, size, strict=True))
                wide[kept] = tensor.detach()[kept]
                put(tensor, wide)
        self.room = max_r
        self.begin()

    def fit_into(self, other: Tensors) -> None:
        assert isinstance(other, Factors)
        if other.room:
            self.make_room(other.room)
            self.folded, self.scaling = self.scaling / other.scaling, other.scaling
            for name in _SCALED:
                if (tensor := self.held().get(name)) is not None and self.folded != 1:
                    put(tensor, tensor.detach() * self.folded)

    def _without_room(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B in the shapes of its rank."""
        if not self.room:
            return a, b
        of_a, of_b = self._kind.factor_shapes(self.shape, self.r)
        return a[tuple(map(slice, of_a))], b[tuple(map(slice, of_b))]

    def redrawn(self, layer: nn.Module) -> float:
        fill = INITS[self.init].redrawn
        if fill is None:
            return 0.0
        fill(self, self.own_matrix(layer))
        with torch.no_grad():
            ours, other = (low_rank.product(a, b) for a, b in ((self.initial_A, self.initial_B), self.factors()))
        return math.sqrt(low_rank.squared_distance(other, ours) / max(float(ours.square().sum()), 1e-30))

    @property
    def is_computed_again(self) -> bool:
        return INITS[self.init].computed_again or self.row.reads_base

    def _trains(self, attribute: str) -> bool:
        return super()._trains(attribute) and attribute not in INITS[self.init].keeps

    def part_of(self, attribute: str) -> Part:
        return "embedding" if self._kind.embeds else super().part_of(attribute)

    def settle_on(self, layer: nn.Module) -> None:
        kind = kind_of(layer) if self.parameter == "weight" else None
        if kind is not None:
            self.kind, self.transposed = name_of(kind), kind.transposed

    def drop_nothing(self) -> None:
        self.dropout = 0.0

    def initialise(self, layer: nn.Module) -> None:
        init = INITS[self.init]
        init.fill(self, self.own_matrix(layer) if init.reads_weight else None)
        self._note_birth()
        if self.lora_bias is not None:
            nn.init.zeros_(self.lora_bias)

    def learn(self, layer: nn.Module, seen: tuple[Tensor, ...], settings: Mapping[str, Any]) -> None:
        """Begin with what a start saw of data, after `initialise`; settings: the start's."""
        data = INITS[self.init].data
        assert data is not None
        data.fill(self, seen, settings, lambda: self.own_matrix(layer))
        self._note_birth()

    def at_birth(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _AT_BIRTH} if self.moves_base else {}

    def _note_birth(self) -> None:
        if self.moves_base:
            self.initial_A.copy_(self.lora_A.detach())
            self.initial_B.copy_(self.lora_B.detach())

    def matrix(self, layer: nn.Module) -> Tensor:
        """Return the layer's weight as this adapter's kind reads it, detached."""
        return self._kind.matrix(self.numbers(layer, getattr(layer, self.parameter)).detach())

    def own_matrix(self, layer: nn.Module) -> Tensor:
        """Return the layer's own weight, without adapters, as this adapter's kind reads it, detached."""
        own = base_tensor(layer, self.parameter)
        assert own is not None
        return self._kind.matrix(self.numbers(layer, own).detach())

    def numbers(self, layer: nn.Module, own: Tensor) -> Tensor:
        return self._kind.numbers(layer, own)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the A and B whose product is trained."""
        return self.lora_A, self.lora_B

    def plain(self) -> Spec:
        return Spec(
            self.parameter, PLAIN.name, self.kind, self.shape, self.r, 1.0, self.dropout, self.factor, self.changes_bias
        )

    @torch.no_grad()
    def hold(self, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
        whole_a, whole_b = self._kind.pairs(self.lora_A, self.lora_B)
        for whole, part in ((whole_a, a), (whole_b.mT, b.mT)):
            whole.zero_()[..., : part.shape[-2], :].copy_(part)
        if self.lora_bias is not None and bias is not None:
            self.lora_bias.copy_(bias)

    @property
    def changes_bias(self) -> bool:
        return self.lora_bias is not None
