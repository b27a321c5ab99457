"""Embeddings: lookup tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TargetError
from .conv1d import Conv1DKind

__all__ = ["EmbeddingKind"]


class EmbeddingKind(Conv1DKind):
    """A lookup table: a linear layer on one-hot inputs, stored as (in, out) = (entries, dimension)."""

    layer = nn.Embedding
    embeds = True
    is_matrix = False
    fan_in_fan_out = False

    def down(self, layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
        return F.embedding(x, a.mT, layer.padding_idx, sparse=layer.sparse)

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        return F.embedding(x, layer.weight, layer.padding_idx)

    def probe_input(self, layer: nn.Module) -> Tensor:
        return torch.arange(layer.weight.shape[0], device="cpu")[None]

    def check(self, layer: nn.Module, name: str, r: int) -> None:
        if layer.max_norm is not None:
            raise TargetError(
                f"{name} is an embedding with max_norm={layer.max_norm}, which rewrites its own rows in every forward; "
                "such a table cannot carry an adapter. Name it in exclude_modules, or set its max_norm to None."
            )
