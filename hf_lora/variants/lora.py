"""LoRA: a trained low-rank product is added to a frozen weight.

    W' = W + scaling * B A

Hu et al. 2021, arXiv:2106.09685. Where an initialisation takes its factors out of the weight itself (PiSSA), the
base is not written: the product at birth, B0 A0, is kept and subtracted, W' = W + scaling * (B A - B0 A0).
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..kinds.kind import Shape
from ..kinds.table import KINDS
from ..maths import low_rank
from ..maths.linear import down
from .adapter import Adapter, own_tensor
from .initial import INITS, InitName


class LoRA(Adapter):
    """The factors A and B of one parameter, as float32 masters unless told otherwise.

    lora_A: (..., r, in), lora_B: (..., out, r), in the shapes of the parameter's kind; lora_bias: (out,) or None.
    """

    low_rank: ClassVar[bool] = True
    fuses: ClassVar[bool] = True
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_bias: nn.Parameter | None

    def __init__(
        self,
        parameter: str,
        kind: str,
        shape: Shape,
        r: int,
        scaling: float,
        *,
        dropout: float = 0.0,
        factor: float = 1.0,
        bias: bool = False,
        init: InitName = True,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make empty factors; `initialise` or a file fills them.

        kind: a key of `KINDS`. shape: the weight's. dropout: the probability with which each input feature is
        dropped in training. factor: what the layer's own forward multiplies its result by.
        """
        super().__init__(parameter)
        self.kind, self.shape, self.r, self.scaling = kind, shape, r, scaling
        self.dropout, self.factor, self.init = dropout, factor, init
        self.moves_base = INITS[init].moves_base
        self.lora_bias = None
        for name, size in self.shapes(kind, shape, r, bias).items():
            setattr(self, name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))
        if self.moves_base:
            self.register_buffer("initial_A", torch.empty_like(self.lora_A, requires_grad=False), persistent=False)
            self.register_buffer("initial_B", torch.empty_like(self.lora_B, requires_grad=False), persistent=False)

    @classmethod
    def shapes(cls, kind: str, shape: Shape, r: int, bias: bool) -> dict[str, Shape]:
        """Return the shape of everything that such an adapter trains, by attribute."""
        a, b = KINDS[kind].factor_shapes(shape, r)
        return {"lora_A": a, "lora_B": b, **({"lora_bias": b[:1]} if bias else {})}

    @property
    def _kind(self):
        return KINDS[self.kind]

    def initialise(self, layer: nn.Module) -> None:
        init = INITS[self.init]
        init.fill(self, self.own_matrix(layer) if init.reads_weight else None)
        if self.moves_base:
            self.initial_A.copy_(self.lora_A.detach())
            self.initial_B.copy_(self.lora_B.detach())
        if self.lora_bias is not None:
            nn.init.zeros_(self.lora_bias)

    def matrix(self, layer: nn.Module) -> Tensor:
        """Return the layer's weight as this adapter's kind reads it, detached."""
        return self._kind.matrix(getattr(layer, self.parameter).detach())

    def own_matrix(self, layer: nn.Module) -> Tensor:
        """Return the layer's own weight, without adapters, as this adapter's kind reads it, detached."""
        own = own_tensor(layer, self.parameter)
        assert own is not None
        return self._kind.matrix(own.detach())

    def product(self) -> Tensor:
        """Return what is added to the (..., out, in) matrix, before scaling; float32 or wider."""
        out = low_rank.product(*self._kind.flat(self.lora_A, self.lora_B))
        if self.moves_base:
            out = out - low_rank.product(*self._kind.flat(self.initial_A, self.initial_B))
        return out

    def effective(self, weight: Tensor) -> Tensor:
        if not self.moves_base:
            return self._kind.merge(weight, self.lora_A, self.lora_B, self.scaling)
        delta = self._kind.weight(self.product(), self.shape)
        return torch.add(weight.to(delta.dtype), delta, alpha=self.scaling).to(weight.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the A and B to compute with: two pairs side by side where the product at birth is subtracted."""
        if not self.moves_base:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.initial_A)), torch.cat((self.lora_B, -self.initial_B), dim=1)

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        a, b = self.factors()
        return self._kind.linear(layer, x, self._bias(layer), a, b, self.scaling, self._p())

    @property
    def changes_bias(self) -> bool:
        return self.lora_bias is not None

    def adds_to(self, weight: Tensor) -> bool:
        return self.adds and weight.dtype == self.lora_A.dtype

    @property
    def adds(self) -> bool:
        """Whether the weight it stands for is any weight plus scaling * B A, and no other parameter changes."""
        return not (self.exclusive or self.moves_base or self.lora_bias is not None or self.kind == "packed")

    def largest_change(self) -> float:
        """Return what no entry of a weight changes by more than, infinity where that is not known.

        |(B A)_ij| <= |B_i| |A_j| <= |B| |A|, the Frobenius norms; not finite where a factor is not.
        """
        if not self.adds:
            return math.inf
        with torch.no_grad():
            return abs(self.scaling) * float(
                torch.linalg.vector_norm(self.lora_B) * torch.linalg.vector_norm(self.lora_A)
            )

    def add_to(self, weight: Tensor) -> None:
        """Make a weight the one that this adapter stands for, in place.

        weight: contiguous, of the factors' dtype. Only for an adapter that `adds`.
        """
        a, b = self._kind.flat(self.lora_A, self.lora_B)
        with torch.no_grad():
            low_rank.add_product_(self._kind.matrix(weight), b, a, self.scaling)

    def add(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        y = self.add_low_rank(layer, x, y, *self.factors())
        if self.lora_bias is not None:
            y = y + self._kind.channels(self.lora_bias * self.scaling, y).to(y.dtype)
        return y

    def add_low_rank(self, layer: nn.Module, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return y + scaling * B A drop(x); y may be written."""
        s = down(x, a, self._p(), partial(self._kind.down, layer))
        return self._kind.add_up(y, s, b, self.scaling * self.factor)

    def _p(self) -> float:
        return self.dropout if self.training else 0.0

    def _bias(self, layer: nn.Module) -> Tensor | None:
        bias: Tensor | None = layer.bias
        if self.lora_bias is None:
            return bias
        return self.lora_bias.mul(self.scaling) if bias is None else self.effective_bias(bias)

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias that this adapter makes of the layer's, new, of the same dtype."""
        if self.lora_bias is None:
            return bias
        return (bias.to(self.lora_bias.dtype) + self.scaling * self.lora_bias).to(bias.dtype)

    def extra_repr(self) -> str:
        return f"{self.parameter}, r={self.r}, scaling={self.scaling:g}, dropout={self.dropout:g}"
