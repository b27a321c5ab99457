"""What can vary in an adapter, as three tables: the formula, the scaling and the initialisation.

To add a formula: write its file, add a row to `FORMULAS` (and its config switch to `formula_name`).
To add a scaling or an initialisation: a row in `SCALINGS` or `INITS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .dora import DoRA
from .lora import LoRA

__all__ = ["FORMULAS", "SCALINGS"]

FORMULAS: dict[str, type[LoRA]] = {"lora": LoRA, "dora": DoRA}

SCALINGS: dict[str, Callable[[float, int], float]] = {
    "lora": lambda alpha, r: alpha / r,
    "rslora": lambda alpha, r: alpha / math.sqrt(r),  # Kalajdzievski 2023, arXiv:2312.03732
}
