"""Accuracy: the share of predictions that equal their reference, (TP + TN) / all, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import accuracy_score

from hf_lora.training.metrics import form


class Accuracy(form.OfLabels):
    """Accuracy is the share of predictions that equal their reference: (TP + TN) / (TP + TN + FP + FN)."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"
    inputs = """
Args:
    predictions (list of int): the predicted labels; lists of zeros and ones in the configuration "multilabel".
    references (list of int): the true labels, likewise.
    normalize (bool): False gives the number of equal ones instead of their share.
    sample_weight (list of float): a weight for each sample.
Returns:
    accuracy (float)
"""

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        normalize: bool = True,
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float]:
        score = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(score)}
