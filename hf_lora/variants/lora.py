"""LoRA: a trained low-rank product is added to a frozen weight.

    W' = W + scaling * B A

Hu et al. 2021, arXiv:2106.09685. Where an initialisation takes its factors out of the weight itself (PiSSA), the
base is not written: the product at birth, B0 A0, is kept and subtracted, W' = W + scaling * (B A - B0 A0).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..kinds.kind import Kind, Shape
from ..kinds.quantised import QuantisedKind
from ..kinds.table import KINDS, kind_of, name_of
from ..maths import low_rank
from ..maths.linear import down, lora_linear
from .adapter import Adapter, Product, Spec, base_tensor, put
from .initial import INITS, InitName
from .row import Part
from .table import LORA as PLAIN

_FACTORS = ("lora_A", "lora_B")
_SCALED = ("lora_B", "lora_bias", "initial_B")  # what the scaling multiplies
_SPECIFIED = ("kind", "shape", "r", "scaling", "dropout", "factor", "init", "seed")
_AT_BIRTH = {"initial_A": "lora_A", "initial_B": "lora_B"}  # what is subtracted -> what it began as


class LoRA(Adapter):
    """The factors A and B of one parameter, as float32 masters; float64 on a float64 weight.

    lora_A: (..., r, in), lora_B: (..., out, r), in the shapes of the parameter's kind; lora_bias: (out,) or None.
    A formula that changes the factors alone overrides `factors`, and `shapes` where it has tensors of its own.
    room: the rank that the factors are widened to with zeros, 0 where they are not. Zeros on both sides of a product
    get no gradient, so training leaves them. folded: what lora_B and lora_bias are multiplied by because the scaling,
    a constant of compiled code, stays as it was.
    places: where it is defined: anywhere; on layers and not on raw parameters; on layers whose weight it reads, as a
    matrix; on linear layers alone.
    """

    role: ClassVar[str] = "lora"
    fuses: ClassVar[bool] = True
    places: ClassVar[Literal["any", "layers", "weights", "linear layers"]] = "any"
    # Of a product the factor that starts at zero is written first: A is what users initialise anew.
    vanishing: ClassVar[tuple[str, ...]] = ("lora_B", "lora_A")
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
    def refusal(cls, spec: Spec, raw: bool) -> str:
        kind, title = KINDS[spec.kind], spec.row.title
        if raw and cls.places != "any":
            return f"a raw parameter, for which no published layout of {title} exists"
        if cls.places == "linear layers" and not (kind.is_matrix or kind.is_quantised):
            return f"no linear layer, and {title} is defined on these alone"
        if cls.places == "weights" and kind.is_opaque:
            return "packed (quantised) in a way that cannot be read"
        if cls.places == "weights" and not kind.within_weight:
            return f"a convolution in groups, on which {title} is not defined"
        return ""

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

    def unlike(self, other: Adapter) -> str:
        if type(self) is not type(other) or not isinstance(other, LoRA) or self.held().keys() != other.held().keys():
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

    def fit_into(self, other: Adapter) -> None:
        assert isinstance(other, LoRA)
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

    def product(self) -> Tensor:
        """Return what is added to the (..., out, in) matrix, before scaling; float32 or wider."""
        out = low_rank.product(*self._kind.flat(*self.factors()))
        if self.moves_base:
            out = out - low_rank.product(*self._kind.flat(self.initial_A, self.initial_B))
        return out

    def effective(self, weight: Tensor) -> Tensor:
        if not self.moves_base:
            return self._kind.merge(weight, *self.factors(), self.scaling)
        delta = self._kind.weight(self.product(), self.shape)
        return torch.add(weight.to(delta.dtype), delta, alpha=self.scaling).to(weight.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the A and B whose product is trained."""
        return self.lora_A, self.lora_B

    def _added(self) -> tuple[Tensor, Tensor]:
        """Return the A and B to compute with: two pairs side by side where the product at birth is subtracted."""
        a, b = self.factors()
        if not self.moves_base:
            return a, b
        return torch.cat((a, self.initial_A)), torch.cat((b, -self.initial_B), dim=1)

    def product_of_factors(self) -> Product | None:
        return Product(*self._kind.flat(*self._added()), self.scaling)

    def pairs(self) -> Product | None:
        if self.exclusive:
            return None
        products = [self.factors(), *([(self.initial_A, -self.initial_B)] if self.moves_base else [])]
        a, b = zip(*(self._without_room(*each) for each in products), strict=True)
        pairs = self._kind.pairs(torch.cat(a), torch.cat(b, dim=1)) if self.moves_base else self._kind.pairs(a[0], b[0])
        return Product(pairs[0], pairs[1] if self.folded == 1 else pairs[1] / self.folded, self.scaling * self.folded)

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

    def plain_product(self) -> Product | None:
        hooked = "forward" in self.__dict__ or self._forward_pre_hooks or self._forward_hooks
        is_product = self._kind.is_matrix or self._kind.stacked
        if not self.fuses or self.changes_bias or self._p() or hooked or not is_product:
            return None
        return Product(*self._added(), self.scaling * self.factor)

    def weighted(self, weight: float) -> Adapter:
        if self.exclusive:
            return super().weighted(weight)
        share = copy.copy(self)
        share.scaling = self.scaling * weight
        return share

    def row_lengths(self, weight: Tensor) -> Tensor | None:
        return low_rank.row_norm(self._kind.matrix(weight.detach()).float())

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        a, b = self._added()
        bias: Tensor | None = layer.bias
        if self.lora_bias is not None and bias is not None:
            bias = self.effective_bias(bias)
        elif self.lora_bias is not None:
            bias = self.lora_bias.mul(self.scaling).to(layer.weight.dtype)
        return lora_linear(x, layer.weight, bias, a, b, self.scaling, self._p(), self.transposed)

    def is_idle(self) -> bool:
        if self.exclusive or self.moves_base or (self.lora_bias is not None and bool(self.lora_bias.any())):
            return False
        return any(not factor.any() for factor in self.factors())

    def largest_change(self) -> float:
        """Return what no entry of a weight changes by more than, infinity where that is not known.

        |(B A)_ij| <= |B_i| |A_j| <= |B| |A|, the Frobenius norms; not finite where a factor is not.
        """
        if self.exclusive or self.moves_base or self.changes_bias or not self._kind.within_weight:
            return math.inf
        with torch.no_grad():
            a, b = self.factors()
            return abs(self.scaling) * float(torch.linalg.vector_norm(b) * torch.linalg.vector_norm(a))

    def add(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        y = self.add_low_rank(layer, x, y, *self._added())
        if self.lora_bias is not None:
            y = y + self._kind.channels(self.lora_bias * self.scaling, self.shape).to(y.dtype)
        return y

    def add_low_rank(self, layer: nn.Module, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return y + scaling * B A drop(x); y may be written."""
        s = down(x, a, self._p(), partial(self._kind.down, layer))
        return self._kind.add_up(y, s, b, self.scaling * self.factor)

    def _p(self) -> float:
        return self.dropout if self.training else 0.0

    @property
    def changes_bias(self) -> bool:
        return self.lora_bias is not None

    def effective_bias(self, bias: Tensor | None) -> Tensor:
        assert self.lora_bias is not None
        if bias is None:
            return self.scaling * self.lora_bias
        return (bias.to(self.lora_bias.dtype) + self.scaling * self.lora_bias).to(bias.dtype)

    def extra_repr(self) -> str:
        return f"{self.parameter}, r={self.r}, scaling={self.scaling:g}, dropout={self.dropout:g}"
