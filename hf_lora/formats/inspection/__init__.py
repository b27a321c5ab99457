"""What an adapter is, and what is odd about it, told from its config and the heads of its files."""

from __future__ import annotations

from .inspected import Inspection
from .looking import inspect_adapter

__all__ = ["Inspection", "inspect_adapter"]
