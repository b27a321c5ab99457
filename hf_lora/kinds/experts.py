"""Stacks of matrices in one parameter: the fused experts of mixtures."""

from __future__ import annotations

from torch import Tensor, nn

from .kind import Kind, Shape


class ExpertsKind(Kind):
    """A stack of matrices in one parameter of v5 mixtures, stored as (experts, out, in)."""

    stacked = True

    def claims_parameter(self, owner: nn.Module, parameter: Tensor) -> bool:
        return parameter.ndim == 3 and bool(getattr(owner, "is_transposed", False)) is self.transposed

    def to_file(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)

    def from_file(self, a: Tensor, b: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        experts = shape[0]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] % experts or b.shape[1] % experts:
            return a, b
        return a.reshape(experts, -1, a.shape[1]), b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)


class TransposedExpertsKind(ExpertsKind):
    """A stack of matrices stored as (experts, in, out): gpt_oss, aria, llama4."""

    transposed = True
