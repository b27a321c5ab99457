"""AdaLoRA: a product with a value for each of its components, of which a budget in training keeps the most important.

    W' = W + scaling * B diag(E) A

Zhang et al. 2023, arXiv:2303.10512. A and B start as normal numbers of deviation 0.02 and E at zero, as in PEFT;
`budget.py` says which entries of E become zero. Such components add nothing, and `pairs` leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..kinds.kind import Shape
from .filling import drawn, generator
from .lora import LoRA
from .spec import Product, Spec

_DEVIATION = 0.02


class AdaLoRA(LoRA):
    """LoRA's factors, and lora_E (r, 1), the values of the components."""

    role: ClassVar[str] = "adalora"
    places = "linear layers"
    vanishing: ClassVar[tuple[str, ...]] = ("lora_E", "lora_A", "lora_B")
    lora_E: nn.Parameter

    @classmethod
    def shapes(cls, spec: Spec, own: Tensor | None) -> dict[str, Shape]:
        return {**super().shapes(spec, own), "lora_E": (spec.r, 1)}

    @classmethod
    def from_file(cls, spec: Spec, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a file's tensors at the full rank: PEFT leaves out the components that its budget took away."""
        if not {"lora_A", "lora_B", "lora_E"} <= values.keys():
            return dict(values)
        a, b, e = (values[name] for name in ("lora_A", "lora_B", "lora_E"))
        held = e.shape[0] if e.ndim == 2 else -1
        if not 0 <= held < spec.r or (a.ndim, b.ndim) != (2, 2) or not a.shape[0] == held == b.shape[1]:
            return super().from_file(spec, values)
        a, e = (torch.cat((part, part.new_zeros(spec.r - held, part.shape[1]))) for part in (a, e))
        return {**values, "lora_A": a, "lora_B": torch.cat((b, b.new_zeros(len(b), spec.r - held)), dim=1), "lora_E": e}

    def to_file(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, stored in self.row.stored.items():
            yield stored.key, values[name]

    def refuses_room(self, max_r: int) -> str:
        return "is AdaLoRA, whose rank its budget decides; truncate() makes plain LoRA of it"

    def initialise(self, layer: nn.Module) -> None:
        source, is_usual = generator(self), self.init is True
        for factor in (self.lora_A, self.lora_B, self.lora_E):
            drawn(factor, lambda t, _, by: t.normal_(0, _DEVIATION if is_usual else 1.0, generator=by), self, source)
        if is_usual:
            nn.init.zeros_(self.lora_E)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A * self.lora_E, self.lora_B

    def pairs(self) -> Product | None:
        alive = self.lora_E.detach().flatten() != 0
        if not alive.any():
            alive[0] = True  # a product of rank 1, which is zero
        a, b = self.factors()
        return Product(a[alive], b[:, alive], self.scaling)
