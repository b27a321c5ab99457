"""What an adapter is and what to know before using it, from its config and the first bytes of its weights."""

from __future__ import annotations

from .inspecting import inspect_adapter
from .report import Inspection

__all__ = ["Inspection", "inspect_adapter"]
