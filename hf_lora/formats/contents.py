"""What every format is read into: a config, tensors by PEFT's names, and what the file says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..config import LoRAConfig
from ..sources import Source

__all__ = ["Contents"]


@dataclass(frozen=True)
class Contents:
    """An adapter as read: its config, its tensors by PEFT's names (on the CPU), the notes that hf_lora wrote."""

    source: Source
    config: LoRAConfig
    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)
