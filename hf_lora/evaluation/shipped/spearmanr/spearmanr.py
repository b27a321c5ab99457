"""Spearman's correlation: Pearson's, of the ranks, by SciPy."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import spearmanr

from hf_lora.evaluation import form


class Spearmanr(form.OfValues):
    """Spearman's correlation: Pearson's, of the ranks, from -1 to 1 (NaN of a constant)."""

    url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html"
    citation_text = "Virtanen et al. 2020, SciPy 1.0. Nature Methods 17, 261-272."
    matrix = ""
    inputs = """
Args:
    predictions (list of float): the predicted numbers.
    references (list of float): the true numbers.
Returns:
    spearmanr (float)
"""

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"spearmanr": float(spearmanr(references, predictions)[0])}
