"""LoRA: a trained low-rank product is added to a frozen weight.

    W' = W + scaling * B A

Hu et al. 2021, arXiv:2106.09685. Where an initialisation takes its factors out of the weight itself (PiSSA), the
base is not written: the product at birth, B0 A0, is kept and subtracted, W' = W + scaling * (B A - B0 A0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional as LF
from ..kinds import KINDS, Shape
from .adapter import Adapter
from .initial import INITS, InitName


class LoRA(Adapter):
    """The factors A and B of one parameter, as float32 masters unless told otherwise.

    lora_A: (..., r, in), lora_B: (..., out, r), in the shapes of the parameter's kind; lora_bias: (out,) or None.
    """

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
        a, b = self._kind.factor_shapes(shape, r)
        self.lora_A = nn.Parameter(torch.empty(a, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(b, device=device, dtype=dtype))
        self.lora_bias = nn.Parameter(torch.empty(b[:1], device=device, dtype=dtype)) if bias else None
        if self.moves_base:
            self.register_buffer("initial_A", torch.empty_like(self.lora_A, requires_grad=False), persistent=False)
            self.register_buffer("initial_B", torch.empty_like(self.lora_B, requires_grad=False), persistent=False)

    @property
    def _kind(self):
        return KINDS[self.kind]

    def initialise(self, layer: nn.Module) -> None:
        init = INITS[self.init]
        init.fill(self, self.matrix(layer) if init.reads_weight else None)
        if self.moves_base:
            self.initial_A.copy_(self.lora_A.detach())
            self.initial_B.copy_(self.lora_B.detach())
        if self.lora_bias is not None:
            nn.init.zeros_(self.lora_bias)

    def matrix(self, layer: nn.Module) -> Tensor:
        """Return the layer's weight as this adapter's kind reads it, detached."""
        return self._kind.matrix(getattr(layer, self.parameter).detach())

    def product(self) -> Tensor:
        """Return what is added to the (..., out, in) matrix, before scaling; float32 or wider."""
        out = LF.product(*self._kind.flat(self.lora_A, self.lora_B))
        if self.moves_base:
            out = out - LF.product(*self._kind.flat(self.initial_A, self.initial_B))
        return out

    def effective(self, weight: Tensor) -> Tensor:
        if not self.moves_base:
            return self._kind.merge(weight, self.lora_A, self.lora_B, self.scaling)
        delta = self._kind.weight(self.product(), self.shape)
        return torch.add(weight.to(delta.dtype), delta, alpha=self.scaling).to(weight.dtype)

    def low_rank(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return scaling * B A x, of y's shape and dtype: the whole of LoRA's update but the trained bias."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        kind, scaling = self._kind, self.scaling * self.factor  # applied in the middle, where the tensor is smallest
        out = kind.up(kind.down(layer, x, self.lora_A, y) * scaling, self.lora_B)
        if self.moves_base:
            out = out - kind.up(kind.down(layer, x, self.initial_A, y) * scaling, self.initial_B)
        return out

    def update(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = self.low_rank(layer, x, y)
        if self.lora_bias is not None:
            out = out + self._kind.channels(self.lora_bias * self.scaling, y).to(out.dtype)
        return out.to(y.dtype)

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias that this adapter makes of the layer's, new, of the same dtype."""
        if self.lora_bias is None:
            return bias
        return (bias.to(self.lora_bias.dtype) + self.scaling * self.lora_bias).to(bias.dtype)

    def extra_repr(self) -> str:
        return f"{self.parameter}, r={self.r}, scaling={self.scaling:g}, dropout={self.dropout:g}"
