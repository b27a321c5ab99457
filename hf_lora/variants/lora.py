"""LoRA: a trained low-rank product is added to a frozen weight.

    W' = W + scaling * B A

Hu et al. 2021, arXiv:2106.09685. Where an initialisation takes its factors out of the weight itself (PiSSA), the
base is not written: the product at birth, B0 A0, is kept and subtracted, W' = W + scaling * (B A - B0 A0).
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..kinds.table import KINDS
from ..maths import low_rank
from ..maths.linear import down, lora_linear
from .adapter import Adapter
from .factors import Factors
from .spec import Product, Spec


class LoRA(Factors):
    """The product of the factors, added to a weight.

    A formula that changes the factors alone overrides `factors`, and `shapes` where it has tensors of its own.
    places: where it is defined: anywhere; on layers and not on raw parameters; on layers whose weight it reads, as a
    matrix; on linear layers alone.
    """

    role: ClassVar[str] = "lora"
    fuses: ClassVar[bool] = True
    places: ClassVar[Literal["any", "layers", "weights", "linear layers"]] = "any"
    # Of a product the factor that starts at zero is written first: A is what users initialise anew.
    vanishing: ClassVar[tuple[str, ...]] = ("lora_B", "lora_A")

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

    def effective_bias(self, bias: Tensor | None) -> Tensor:
        assert self.lora_bias is not None
        if bias is None:
            return self.scaling * self.lora_bias
        return (bias.to(self.lora_bias.dtype) + self.scaling * self.lora_bias).to(bias.dtype)

    def extra_repr(self) -> str:
        return f"{self.parameter}, r={self.r}, scaling={self.scaling:g}, dropout={self.dropout:g}"
