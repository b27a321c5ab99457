"""Adapters that hold values of their own instead of a low-rank product: whole parameters, and rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kinds.kind import Shape
from .adapter import Adapter, own_tensor
from .spec import Spec


class _Copy(Adapter):
    """Values of its own, in one tensor."""

    value: Tensor

    def described(self) -> tuple[str, str]:
        return self.role, " x ".join(map(str, self.value.shape)) or "1"

    def started(self, own: Tensor) -> Tensor:
        """Return the values that it starts from, of the parameter's own."""
        return own

    def initialise(self, layer: nn.Module) -> None:
        own = own_tensor(layer, self.parameter)
        assert own is not None
        with torch.no_grad():
            self.value.copy_(self.started(own))


class Saved(_Copy):
    """A trained copy of a whole parameter or buffer: `modules_to_save`, new heads, biases.

    value: the parameter's shape; float32 where the parameter is a half-precision one, else its own dtype.
    """

    role: ClassVar[str] = "saved"
    exclusive: ClassVar[bool] = True

    def __init__(self, spec: Spec, own: Tensor | None, *, buffer: bool, device: torch.device | None) -> None:
        assert own is not None
        super().__init__(spec, own, buffer=buffer, device=device)
        dtype = torch.promote_types(own.dtype, torch.float32) if own.is_floating_point() else own.dtype
        value = torch.empty(own.shape, dtype=own.dtype if buffer else dtype, device=device)
        if buffer:
            self.register_buffer("value", value)
        else:
            self.value = nn.Parameter(value, requires_grad=dtype.is_floating_point)

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        assert own is not None
        return {"value": tuple(own.shape)}

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield self.parameter, values["value"]

    def effective(self, weight: Tensor) -> Tensor:
        return self.value if self.value.dtype == weight.dtype else self.value.to(weight.dtype)


class Tokens(_Copy):
    """Trained rows of an embedding (`trainable_token_indices`): the other rows stay the base's.

    value: (tokens, dimension), float32 or wider, starting as the table's own rows.
    """

    role: ClassVar[str] = "tokens"
    settings: ClassVar[tuple[str, ...]] = ("_rows",)
    rows: Tensor

    def __init__(self, spec: Spec, own: Tensor | None, *, buffer: bool, device: torch.device | None) -> None:
        assert own is not None
        super().__init__(spec, own, buffer=buffer, device=device)
        dtype = torch.promote_types(own.dtype, torch.float32)
        self.value = nn.Parameter(torch.empty(self.shapes(spec, own)["value"], dtype=dtype, device=device))
        self._rows = spec.rows
        self.register_buffer("rows", torch.tensor(spec.rows, dtype=torch.long, device=device), persistent=False)

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        assert own is not None
        return {"value": (len(spec.rows), own.shape[1])}

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield self.row.stored["value"].key, values["value"]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.rows.copy_(torch.tensor(self._rows))  # in no state dict, and lost by to_empty()

    def conflicts(self, spec: Spec) -> Iterator[str]:
        rows = self.rows.tolist()
        if rows != list(spec.rows):
            yield f": the file holds the rows {list(spec.rows)[:8]}, the model trains {rows[:8]}"

    def started(self, own: Tensor) -> Tensor:
        return own[self.rows]

    def effective(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, self.rows, self.value.to(weight.dtype))

    def acts_beside(self, other: Adapter) -> bool:
        if isinstance(other, Tokens):
            return set(self.rows.tolist()).isdisjoint(other.rows.tolist())
        return super().acts_beside(other)
