"""Mean absolute error: the mean of |prediction - reference|, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import mean_absolute_error

from hf_lora.evaluation import form


class Mae(form.OfValues):
    """Mean absolute error: the mean of |prediction - reference|; of several numbers a row, the mean of theirs."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.mean_absolute_error.html"
    inputs = """
Args:
    predictions (list of float): the predicted numbers; lists of them in the configuration "multilist".
    references (list of float): the true numbers, likewise.
    sample_weight (list of float): a weight for each sample.
Returns:
    mae (float)
"""

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], sample_weight: Sequence[float] | None = None
    ) -> dict[str, float]:
        return {"mae": float(mean_absolute_error(references, predictions, sample_weight=sample_weight))}
