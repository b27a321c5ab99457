"""F1: the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN), by scikit-learn."""

from __future__ import annotations

from sklearn.metrics import f1_score

from hf_lora.training.metrics import form


class F1(form.OfScores):
    """F1 is the harmonic mean of precision and recall: 2 * precision * recall / (precision + recall)."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"
    result = "f1"
    score = staticmethod(f1_score)
