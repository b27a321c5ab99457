"""Pearson's correlation: how well a line tells one side from the other, by SciPy."""

from __future__ import annotations

from scipy.stats import pearsonr

from hf_lora.training.metrics import form


class Pearsonr(form.OfCorrelations):
    """Pearson's correlation: how well a line tells one side from the other, from -1 to 1 (NaN of a constant)."""

    url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"
    result = "pearsonr"
    score = staticmethod(pearsonr)
