"""Accuracy: the share of predictions that equal their reference, (TP + TN) / all, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import accuracy_score

_DESCRIPTION = "Accuracy is the share of predictions that equal their reference: (TP + TN) / (TP + TN + FP + FN)."
_INPUTS = """
Args:
    predictions (list of int): the predicted labels.
    references (list of int): the true labels.
    normalize (bool): False gives the number of equal ones instead of their share.
    sample_weight (list of float): a weight for each sample.
Returns:
    accuracy (float)
"""
_CITATION = """\
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and others},
  journal={Journal of Machine Learning Research}, volume={12}, pages={2825--2830}, year={2011}
}
"""


class Accuracy(evaluate.Metric):
    """`sklearn.metrics.accuracy_score` as an `evaluate` metric, with the options of the Hub's own."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label, "references": label}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"],
        )

    def _compute(
        self,
        predictions: Sequence[int],
        references: Sequence[int],
        normalize: bool = True,
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float]:
        score = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(score)}
