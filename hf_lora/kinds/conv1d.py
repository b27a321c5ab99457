"""GPT-2's linear layer, Transformers' Conv1D."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..maths import low_rank
from .kind import Kind, Shape, random_weight

__all__ = ["Conv1DKind"]


class Conv1DKind(Kind):
    """GPT-2's linear layer, which stores its weight as (in, out)."""

    layer = Conv1D
    transposed = True
    is_matrix = True
    fan_in_fan_out = True

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def weight(self, matrix: Tensor, shape: Shape) -> Tensor:
        return matrix.mT

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        return (r, shape[0]), (shape[1], r)

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        return low_rank.add_product(weight, a.mT, b.mT, scaling)

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        return torch.matmul(x, layer.weight) + layer.bias

    def probe_input(self, layer: nn.Module) -> Tensor:
        return random_weight((2, layer.weight.shape[0]))
