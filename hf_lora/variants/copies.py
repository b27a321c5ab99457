"""Adapters that hold values of their own instead of a low-rank product: whole parameters, and rows of a table."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter, own_tensor


class Saved(Adapter):
    """A trained copy of a whole parameter or buffer: `modules_to_save`, new heads, biases.

    value: the parameter's shape; float32 where the parameter is a half-precision one, else its own dtype.
    """

    exclusive: ClassVar[bool] = True

    def __init__(self, parameter: str, like: Tensor, *, buffer: bool = False, device: torch.device | None) -> None:
        super().__init__(parameter)
        dtype = torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else like.dtype
        if buffer:
            self.register_buffer("value", torch.empty(like.shape, dtype=like.dtype, device=device))
        else:
            self.value = nn.Parameter(
                torch.empty(like.shape, dtype=dtype, device=device), requires_grad=dtype.is_floating_point
            )

    def initialise(self, layer: nn.Module) -> None:
        with torch.no_grad():
            self.value.copy_(own_tensor(layer, self.parameter))

    def effective(self, weight: Tensor) -> Tensor:
        return self.value if self.value.dtype == weight.dtype else self.value.to(weight.dtype)


class Tokens(Adapter):
    """Trained rows of an embedding (`trainable_token_indices`): the other rows stay the base's.

    value: (tokens, dimension), float32 or wider, starting as the table's own rows.
    """

    def __init__(self, parameter: str, like: Tensor, rows: tuple[int, ...], *, device: torch.device | None) -> None:
        super().__init__(parameter)
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.value = nn.Parameter(torch.empty((len(rows), like.shape[1]), dtype=dtype, device=device))
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.long, device=device), persistent=False)

    def initialise(self, layer: nn.Module) -> None:
        with torch.no_grad():
            self.value.copy_(own_tensor(layer, self.parameter)[self.rows])

    def effective(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, self.rows, self.value.to(weight.dtype))

    def acts_beside(self, other: Adapter) -> bool:
        return not isinstance(other, Tokens) or set(self.rows.tolist()).isdisjoint(other.rows.tolist())
