"""Pearson's correlation: how well a line tells one side from the other, by SciPy."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import pearsonr

from hf_lora.evaluation import form


class Pearsonr(form.OfValues):
    """Pearson's correlation: how well a line tells one side from the other, from -1 to 1 (NaN of a constant)."""

    url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"
    citation_text = "Virtanen et al. 2020, SciPy 1.0. Nature Methods 17, 261-272."
    matrix = ""
    inputs = """
Args:
    predictions (list of float): the predicted numbers.
    references (list of float): the true numbers.
Returns:
    pearsonr (float)
"""

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"pearsonr": float(pearsonr(references, predictions)[0])}
