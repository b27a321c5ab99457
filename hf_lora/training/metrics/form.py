"""The forms of the shipped metrics: what columns `evaluate` is to give them, and what it shows of them.

The modules below `shipped/` import this module, not its classes: `evaluate` takes the first metric that it finds in a
module's names for the module's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate

__all__ = ["OfCorrelations", "OfErrors", "OfLabels", "OfScores", "OfTexts", "OfValues"]

_CITATION = """\
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and others},
  journal={Journal of Machine Learning Research}, volume={12}, pages={2825--2830}, year={2011}
}
"""


class _Described(evaluate.Metric):
    """A metric described by its docstring.

    inputs: its options in words. url: where it is defined. result, score: for forms that compute it themselves, the
    name of the result and the function of references and predictions that gives it.
    """

    result = ""
    score: Callable[..., Any]
    inputs = ""
    url = ""
    citation_text = _CITATION
    dtype = "string"
    matrix = ""  # the name of the configuration in which each row is a list

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.dtype)
        column = datasets.Sequence(value) if self.matrix and self.config_name == self.matrix else value
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation=self.citation_text,
            inputs_description=self.inputs.format(result=self.result),
            features=datasets.Features({"predictions": column, "references": column}),
            reference_urls=[self.url],
        )


class OfLabels(_Described):
    """A metric of class ids; of lists of zeros and ones in the configuration "multilabel"."""

    dtype = "int32"
    matrix = "multilabel"


class OfValues(_Described):
    """A metric of numbers; of lists of numbers in the configuration "multilist"."""

    dtype = "float"
    matrix = "multilist"


class OfScores(OfLabels):
    """A score of one class, or of several and then an average, by a function of scikit-learn's."""

    inputs = """
Args:
    predictions (list of int): the predicted labels; lists of zeros and ones in the configuration "multilabel".
    references (list of int): the true labels, likewise.
    labels (list of int): the labels to count, where `average` is not "binary".
    pos_label (int): the label that is the positive one, where `average` is "binary".
    average (str or None): "binary", "micro", "macro", "weighted", or None for one score a label.
    sample_weight (list of float): a weight for each sample.
Returns:
    {result} (float, or list of float where average is None)
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
        score = self.score(
            references, predictions, labels=labels, pos_label=pos_label, average=average, sample_weight=sample_weight
        )
        return {self.result: score.tolist() if average is None else float(score)}


class OfErrors(OfValues):
    """A mean of what each number is off by, by a function of scikit-learn's."""

    inputs = """
Args:
    predictions (list of float): the predicted numbers; lists of them in the configuration "multilist".
    references (list of float): the true numbers, likewise.
    sample_weight (list of float): a weight for each sample.
Returns:
    {result} (float)
"""

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], sample_weight: Sequence[float] | None = None
    ) -> dict[str, float]:
        return {self.result: float(self.score(references, predictions, sample_weight=sample_weight))}


class OfCorrelations(OfValues):
    """A correlation of two columns of numbers, by a function of SciPy's."""

    citation_text = "Virtanen et al. 2020, SciPy 1.0. Nature Methods 17, 261-272."
    matrix = ""
    inputs = """
Args:
    predictions (list of float): the predicted numbers.
    references (list of float): the true numbers.
Returns:
    {result} (float)
"""

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {self.result: float(self.score(references, predictions)[0])}


class OfTexts(_Described):
    """A metric of strings."""
