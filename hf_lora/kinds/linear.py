"""Linear layers, and raw parameters of two dimensions."""

from __future__ import annotations

from torch import Tensor, nn

from .kind import Kind

__all__ = ["LinearKind"]


class LinearKind(Kind):
    """PyTorch's own linear layer: the weight is the matrix."""

    layer = nn.Linear
    is_matrix = True

    def claims_parameter(self, owner: nn.Module, parameter: Tensor) -> bool:
        return parameter.ndim == 2
