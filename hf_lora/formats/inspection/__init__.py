"""What an adapter is and what to know before using it, from its config and the first bytes of its weights."""

from .inspecting import Looked, inspect_adapter, looked_at
from .report import Inspection

__all__ = ["Inspection", "Looked", "inspect_adapter", "looked_at"]
