"""DoRA: every output row of the weight gets a length of its own to train.

    W' = m * V / |V|,   V = W + scaling * B A      (norm per row, held constant in the backward pass)

Liu et al. 2024, arXiv:2402.09353. Dropout falls on the low-rank branch alone; PEFT drops the frozen branch's
input as well, which costs a second pass through the base and is not in the paper. While neither the weight nor the
factors train, |V| is computed once and kept until one of them is written, moved or replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kinds.kind import Shape
from ..maths import low_rank
from .lora import LoRA
from .seen import Seen, stays
from .spec import Spec


class DoRA(LoRA):
    """LoRA's factors and a magnitude, (out,): the length of each row, starting at the weight's own.

    known: |V| of tensors that were seen, with the scaling of then.
    """

    role: ClassVar[str] = "dora"
    places = "weights"
    exclusive: ClassVar[bool] = True
    fuses: ClassVar[bool] = False
    magnitude: nn.Parameter
    known: tuple[Seen, float, Tensor] | None = None

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        factors = super().shapes(spec, own)
        return {**factors, "magnitude": factors["lora_B"][:1]}

    @classmethod
    def from_file(cls, spec: Spec, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = super().from_file(spec, values)
        return {name: value.reshape(-1) if name == "magnitude" else value for name, value in values.items()}

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        length = self._kind.vector_to_file(values["magnitude"], self.shape)
        return super().to_file({**values, "magnitude": length})

    def measured(self, row_lengths: Tensor) -> dict[str, Tensor]:
        """Return how far each row's length is from the weight's own, |m / |W_i| - 1|, as `magnitude`."""
        return {"magnitude": (self.magnitude.to("cpu", torch.float64) / row_lengths - 1).abs()}

    def initialise(self, layer: nn.Module) -> None:
        super().initialise(layer)
        with torch.no_grad():
            self.magnitude.copy_(low_rank.row_norm(self._direction(self.own_matrix(layer))))

    def _direction(self, matrix: Tensor) -> Tensor:
        delta = self.product()
        return torch.add(matrix.to(delta.dtype), delta, alpha=self.scaling)

    def effective(self, weight: Tensor) -> Tensor:
        v = self._direction(self._kind.matrix(weight))
        scale = self.magnitude / low_rank.row_norm(v).detach()
        return self._kind.weight(scale.unsqueeze(-1) * v, self.shape).to(weight.dtype)

    def _norm(self, layer: nn.Module) -> Tensor:
        """Return |V|, (out,), computed again where something may have changed since it was computed last."""
        tensors = (
            getattr(layer, self.parameter),
            *(each for each in self.held().values() if each is not self.magnitude),
        )
        known, keeps = self.known, stays(tensors)
        if keeps and known is not None and known[1] == self.scaling and known[0].are(tensors):
            return known[2]
        with torch.no_grad():
            if not keeps:
                return low_rank.row_norm(self._direction(self.matrix(layer)))
            seen = Seen(tensors)  # first: what is written meanwhile is then seen
            with torch.inference_mode(False):  # a forward that is differentiated may need it next
                norm = low_rank.row_norm(self._direction(self.matrix(layer)))
        self.__dict__["known"] = seen, self.scaling, norm
        return norm

    def train(self, mode: bool = True) -> DoRA:
        """Set the training flag and forget |V|, also after a write through `.data`, which torch does not count."""
        self.__dict__["known"] = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "known"}

    def add(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scale = self.magnitude / self._norm(layer)
        bias = getattr(layer, "bias", None)
        base = y if bias is None else y - self._kind.channels(bias, self.shape).to(y.dtype)
        # Subtracted before it is rounded: near 1 half precision sees no change.
        change = self._kind.channels(scale - 1, self.shape).to(y.dtype)
        a, b = self._added()
        return self.add_low_rank(layer, x, y + change * base, a, scale.reshape(-1, *(1 for _ in b.shape[1:])) * b)
