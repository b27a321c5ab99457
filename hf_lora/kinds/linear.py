"""Linear layers, GPT-2's with its weight the other way round, and embeddings: linear layers on one-hot inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ..errors import TargetError
from .kind import Kind


class LinearKind(Kind):
    """PyTorch's own linear layer, whose weight is the matrix, and raw parameters of two dimensions."""

    layer = nn.Linear
    is_matrix = True

    def claims_parameter(self, owner: nn.Module, parameter: Tensor) -> bool:
        return parameter.ndim == 2


class Conv1DKind(Kind):
    """GPT-2's linear layer, Transformers' Conv1D, which stores its weight as (in, out)."""

    layer = Conv1D
    transposed = True
    is_matrix = True
    fan_in_fan_out = True


class EmbeddingKind(Kind):
    """A lookup table, stored as (in, out) = (entries, dimension)."""

    layer = nn.Embedding
    embeds = True
    transposed = True

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
