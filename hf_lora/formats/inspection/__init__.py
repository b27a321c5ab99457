"""What an adapter is and what to know before using it, from its config and the first bytes of its weights."""

from .inspecting import inspect_adapter
from .report import Inspection

__all__ = ["Inspection", "inspect_adapter"]
