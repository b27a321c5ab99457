"""HiRA: the weight is multiplied, entry by entry, by a trained low-rank matrix, so that the update has a high rank.

    W' = W + W * (B A)      (* by entries)

Huang et al. 2025, HiRA: Parameter-Efficient Hadamard High-Rank Adaptation (ICLR). There is no scaling. Dropout falls on
the input of the update, as in PEFT. A matrix of the weight's size is made in each forward, for an embedding only its
rows that are looked up.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..maths import linear, low_rank
from .lora import LoRA
from .spec import Product


class HiRA(LoRA):
    """LoRA's factors, of what the weight is multiplied by: lora_A (r, in), lora_B (out, r)."""

    role: ClassVar[str] = "hira"
    places = "weights"
    exclusive: ClassVar[bool] = True
    fuses: ClassVar[bool] = False

    def product_of_factors(self) -> Product | None:
        return None  # what is added to the weight has the weight in it

    def effective(self, weight: Tensor) -> Tensor:
        product = self.product()
        matrix = self._kind.matrix(weight).to(product.dtype)
        return self._kind.weight(torch.addcmul(matrix, matrix, product), self.shape).to(weight.dtype)

    def add(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        half_step = partial(self._kind.down, layer)
        matrix, (a, b) = self.matrix(layer), self._kind.flat(*self.factors())
        if self._kind.embeds:
            update = (half_step(x, a) @ b.mT) * half_step(x, matrix)
        else:
            changed = (low_rank.product(a, b) * matrix).reshape(self._kind.factor_shapes(self.shape, len(matrix))[0])
            update = linear.down(x, changed, self._p(), half_step)
        return linear.add(y, update.to(y.dtype), self.factor)
