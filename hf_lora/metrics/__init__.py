"""Metrics in `evaluate`'s local-module form, shipped inside the package so that loading them asks no network."""

from __future__ import annotations

from pathlib import Path

import evaluate

from ..errors import ConfigError

__all__ = ["METRICS", "load"]

METRICS = ("accuracy", "f1")


def load(name: str) -> evaluate.EvaluationModule:
    """Return a metric of this package, ready to `compute(predictions=..., references=...)`.

    The same as `evaluate.load` with the path of its folder. Predictions are held in memory, so that processes that
    evaluate at once share no file. Raises ConfigError for a name that is not in METRICS, ImportError without
    scikit-learn.

    >>> load("accuracy").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    {'accuracy': 0.75}
    """
    if name not in METRICS:
        raise ConfigError(f"hf_lora has no metric {name!r}, only {', '.join(METRICS)}; evaluate.load() asks the Hub.")
    return evaluate.load(str(Path(__file__).with_name(name)), keep_in_memory=True)
