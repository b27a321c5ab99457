"""Callbacks for when a model becomes a LoRAModel: `integrations/missing.py` then tells what installed packages lack."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LISTENERS", "tell"]

LISTENERS: list[Callable[[], None]] = []


def tell() -> None:
    """Call every listener."""
    for listener in LISTENERS:
        listener()
