"""Mean squared error: the mean of (prediction - reference)^2, by scikit-learn."""

from __future__ import annotations

from sklearn.metrics import mean_squared_error

from hf_lora.training.metrics import form


class Mse(form.OfErrors):
    """Mean squared error: the mean of (prediction - reference)^2; of several numbers a row, the mean of theirs."""

    url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.mean_squared_error.html"
    result = "mse"
    score = staticmethod(mean_squared_error)
