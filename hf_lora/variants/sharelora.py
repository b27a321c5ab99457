"""ShareLoRA: layers that are alike share one trained A, and each has a B of its own.

    W_i' = W_i + scaling * B_i A

The "ShareA" of Song et al. 2024, arXiv:2406.10785: one A for all the query projections of a stack, another for its
value projections. Layers are alike that differ in the numbers of their names only and whose A has one shape. Tied-LoRA
(Renduchintala et al. 2023, arXiv:2311.09578) goes further: it ties B as well and trains vectors beside them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import numberless
from ..kinds.table import KINDS
from .lora import LoRA
from .spec import Spec


class ShareLoRA(LoRA):
    """LoRA's factors, of which lora_A, (r, in), is one tensor for all layers of a group."""

    role: ClassVar[str] = "sharelora"
    places = "layers"

    @classmethod
    def group_of(cls, spec: Spec, module: str) -> str:
        a, _ = KINDS[spec.kind].factor_shapes(spec.shape, spec.r)
        return f"{numberless(module)} {a}"

    def initialise(self, layer: nn.Module) -> None:
        given = None if self.leads else self.lora_A.detach().clone()
        super().initialise(layer)
        if given is not None:
            with torch.no_grad():
                self.lora_A.copy_(given)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A.to(self.lora_B.device), self.lora_B
