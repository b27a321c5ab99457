"""Matthews correlation: of predicted with true classes, from -1 to 1 and 0 for a guess, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.metrics import matthews_corrcoef

from hf_lora.training.metrics import form


class MatthewsCorrelation(form.OfLabels):
    """The correlation of predicted with true classes, also for unbalanced ones (Matthews 1975; Gorodkin 2004)."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.matthews_corrcoef.html"
    matrix = ""
    inputs = """
Args:
    predictions (list of int): the predicted labels.
    references (list of int): the true labels.
    sample_weight (list of float): a weight for each sample.
Returns:
    matthews_correlation (float)
"""

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], sample_weight: Sequence[float] | None = None
    ) -> dict[str, float]:
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions, sample_weight=sample_weight))}
