"""The forms of the shipped metrics: what columns `evaluate` is to give them, and what it shows of them.

The modules below `shipped/` import this module, not its classes: `evaluate` takes the first metric that it finds in a
module's names for the module's own.
"""

from __future__ import annotations

import datasets
import evaluate

__all__ = ["OfLabels", "OfTexts", "OfValues"]

_CITATION = """\
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and others},
  journal={Journal of Machine Learning Research}, volume={12}, pages={2825--2830}, year={2011}
}
"""


class _Described(evaluate.Metric):
    """A metric described by its docstring. inputs: its options in words. url: where it is defined."""

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
            inputs_description=self.inputs,
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


class OfTexts(_Described):
    """A metric of strings."""
