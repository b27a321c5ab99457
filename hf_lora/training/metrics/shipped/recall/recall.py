"""Recall: the share of what is there that was found, TP / (TP + FN), by scikit-learn."""

from __future__ import annotations

from sklearn.metrics import recall_score

from hf_lora.training.metrics import form


class Recall(form.OfScores):
    """Recall is the share of positive references that were found: TP / (TP + FN)."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.recall_score.html"
    result = "recall"
    score = staticmethod(recall_score)
