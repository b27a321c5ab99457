"""LoRA-FA: A stays the random projection that it began as, and B alone trains, so that no layer's input is kept for it.

    W' = W + scaling * B A      A is frozen

Zhang et al. 2023, arXiv:2308.03303. What a plain linear layer keeps for its backward pass is A x, r numbers a token, in
the place of x. The gradient of B is the plain one, as in the paper; the optimizer of PEFT that bears this name also
multiplies it by the inverse of A A'.
"""

from __future__ import annotations

from typing import ClassVar

from ..kinds.table import KINDS
from .lora import LoRA
from .spec import Spec


class LoRAFA(LoRA):
    """LoRA's factors, of which lora_B alone trains."""

    role: ClassVar[str] = "lora_fa"

    @classmethod
    def refusal(cls, spec: Spec, raw: bool) -> str:
        return "an embedding, whose A starts at zero and would stay there" if KINDS[spec.kind].embeds else ""
