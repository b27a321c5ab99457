"""Metrics for the stock Trainer: `metrics(...)` builds its compute_metrics from `evaluate` modules.

`load(name)` gives one of the modules that are shipped below `shipped/`, in `evaluate`'s local-module form.
"""

from __future__ import annotations

from .building import metrics
from .measuring import Metrics
from .origins import SHIPPED, load

__all__ = ["SHIPPED", "Metrics", "load", "metrics"]
