"""How a patched function remembers the one it replaced."""

from __future__ import annotations

__all__ = ["MARK"]

MARK = "_hf_lora_original"
