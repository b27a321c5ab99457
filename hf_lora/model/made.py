"""Who is told that a model becomes a LoRAModel: the room above says then what the installed packages lack."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LISTENERS", "tell"]

LISTENERS: list[Callable[[], None]] = []


def tell() -> None:
    """Call every listener."""
    for listener in LISTENERS:
        listener()
