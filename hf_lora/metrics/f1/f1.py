"""F1: the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN), by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import f1_score

_DESCRIPTION = "F1 is the harmonic mean of precision and recall: 2 * precision * recall / (precision + recall)."
_INPUTS = """
Args:
    predictions (list of int): the predicted labels.
    references (list of int): the true labels.
    labels (list of int): the labels to count, where `average` is not "binary".
    pos_label (int): the label that is the positive one, where `average` is "binary".
    average (str or None): "binary", "micro", "macro", "weighted", or None for one score a label.
    sample_weight (list of float): a weight for each sample.
Returns:
    f1 (float, or list of float where average is None)
"""
_CITATION = """\
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and others},
  journal={Journal of Machine Learning Research}, volume={12}, pages={2825--2830}, year={2011}
}
"""


class F1(evaluate.Metric):
    """`sklearn.metrics.f1_score` as an `evaluate` metric, with the options of the Hub's own."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label, "references": label}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"],
        )

    def _compute(
        self,
        predictions: Sequence[int],
        references: Sequence[int],
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float | list[float]]:
        score = f1_score(
            references, predictions, labels=labels, pos_label=pos_label, average=average, sample_weight=sample_weight
        )
        return {"f1": score.tolist() if average is None else float(score)}
