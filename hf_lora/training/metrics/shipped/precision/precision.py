"""Precision: the share of what was predicted that is right, TP / (TP + FP), by scikit-learn."""

from __future__ import annotations

from sklearn.metrics import precision_score

from hf_lora.training.metrics import form


class Precision(form.OfScores):
    """Precision is the share of positive predictions that are right: TP / (TP + FP)."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.precision_score.html"
    result = "precision"
    score = staticmethod(precision_score)
