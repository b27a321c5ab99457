"""Stacks of matrices in one parameter: the fused experts of mixtures."""

from __future__ import annotations

from torch import Tensor

from ..maths import low_rank
from .kind import Kind, Shape

__all__ = ["ExpertsKind", "TransposedExpertsKind"]


class ExpertsKind(Kind):
    """A stack of matrices in one parameter of v5 mixtures, stored as (experts, out, in)."""

    layer = None

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        experts, out, in_ = shape
        return (experts, r, in_), (experts, out, r)


class TransposedExpertsKind(ExpertsKind):
    """A stack of matrices stored as (experts, in, out): gpt_oss, aria, llama4."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def weight(self, matrix: Tensor, shape: Shape) -> Tensor:
        return matrix.mT

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        experts, in_, out = shape
        return (experts, r, in_), (experts, out, r)

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        return low_rank.add_product(weight, a.mT, b.mT, scaling)
