"""Precision: the share of what was predicted that is right, TP / (TP + FP), by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import precision_score

from hf_lora.evaluation import form


class Precision(form.OfLabels):
    """Precision is the share of positive predictions that are right: TP / (TP + FP)."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.precision_score.html"
    inputs = """
Args:
    predictions (list of int): the predicted labels; lists of zeros and ones in the configuration "multilabel".
    references (list of int): the true labels, likewise.
    labels (list of int): the labels to count, where `average` is not "binary".
    pos_label (int): the label that is the positive one, where `average` is "binary".
    average (str or None): "binary", "micro", "macro", "weighted", or None for one score a label.
    sample_weight (list of float): a weight for each sample.
Returns:
    precision (float, or list of float where average is None)
"""

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float | list[float]]:
        score = precision_score(
            references, predictions, labels=labels, pos_label=pos_label, average=average, sample_weight=sample_weight
        )
        return {"precision": score.tolist() if average is None else float(score)}
