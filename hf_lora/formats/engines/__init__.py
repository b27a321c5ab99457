"""What other engines make of an adapter's folder: their rules as one table, and the check that asks it."""

from .checking import Checked, check_for
from .rules import ENGINES, Engine

__all__ = ["ENGINES", "Checked", "Engine", "check_for"]
