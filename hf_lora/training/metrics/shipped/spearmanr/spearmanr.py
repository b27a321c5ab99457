"""Spearman's correlation: Pearson's, of the ranks, by SciPy."""

from __future__ import annotations

from scipy.stats import spearmanr

from hf_lora.training.metrics import form


class Spearmanr(form.OfCorrelations):
    """Spearman's correlation: Pearson's, of the ranks, from -1 to 1 (NaN of a constant)."""

    url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html"
    result = "spearmanr"
    score = staticmethod(spearmanr)
