"""Recall: the share of what is there that was found, TP / (TP + FN), by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import recall_score

from hf_lora.evaluation import form


class Recall(form.OfLabels):
    """Recall is the share of positive references that were found: TP / (TP + FN)."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.recall_score.html"
    inputs = """
Args:
    predictions (list of int): the predicted labels; lists of zeros and ones in the configuration "multilabel".
    references (list of int): the true labels, likewise.
    labels (list of int): the labels to count, where `average` is not "binary".
    pos_label (int): the label that is the positive one, where `average` is "binary".
    average (str or None): "binary", "micro", "macro", "weighted", or None for one score a label.
    sample_weight (list of float): a weight for each sample.
Returns:
    recall (float, or list of float where average is None)
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
        score = recall_score(
            references, predictions, labels=labels, pos_label=pos_label, average=average, sample_weight=sample_weight
        )
        return {"recall": score.tolist() if average is None else float(score)}
