"""Mean absolute error: the mean of |prediction - reference|, by scikit-learn."""

from __future__ import annotations

from sklearn.metrics import mean_absolute_error

from hf_lora.training.metrics import form


class Mae(form.OfErrors):
    """Mean absolute error: the mean of |prediction - reference|; of several numbers a row, the mean of theirs."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.mean_absolute_error.html"
    result = "mae"
    score = staticmethod(mean_absolute_error)
