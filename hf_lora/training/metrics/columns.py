"""A Trainer's predictions and labels as two columns that a metric compares: classes, numbers, texts, token losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError
from .reduction import IGNORED, first, reduced
from .subject import EvaluatedModel

__all__ = ["READERS", "Batch", "Columns", "array"]


@dataclass(frozen=True)
class Columns:
    """What is compared with what, row by row. config: the metric's configuration; classes: how many there are."""

    predictions: Any
    references: Any
    config: str | None = None
    classes: int | None = None


class Batch:
    """What a Trainer measured: of all rows at once, or of one batch.

    predictions: logits, what `reduced` makes of them, classes, or generated tokens; labels: their truth. shifted: as in
    EvaluatedModel, None where nobody knows. texts: gives the texts of rows of tokens.
    """

    def __init__(
        self, predictions: Any, labels: Any, subject: EvaluatedModel, texts: Callable[[Any], list[str]] | None
    ):
        if labels is None:
            raise ConfigError("there are no labels to compare with; does the data set have a column 'labels'?")
        if isinstance(labels, tuple):
            raise ConfigError(f"there are {len(labels)} columns of labels; metrics() compares one, 'labels'.")
        self.labels, self.subject, self.texts = array(labels), subject, texts
        found = predictions if _is_reduced(predictions) else first(predictions)
        self.tokens = {k: array(v) for k, v in found.items()} if isinstance(found, Mapping) else None
        self.predictions: Any = array(found) if self.tokens is None else None

    def per_token(self, with_nll: bool) -> dict[str, Any]:
        """Return the predicted "ids" (and "nll") at the labels they are about, from logits where need be."""
        if self.tokens is None:
            logits = self.predictions
            if self.subject.shifted is None:
                raise ConfigError(
                    "these are logits for each token, of a model that does not say whether a position's are about the "
                    "next one, as a causal language model's are: pass shift_labels=True to metrics(), or False."
                )
            found = reduced(_tensor(logits), _tensor(self.labels), self.subject.shifted, with_nll)
            self.tokens = {k: v.numpy() for k, v in found.items()}
        if with_nll and "nll" not in self.tokens:
            raise ConfigError("perplexity needs the logits for each token, and these are reduced to ids already.")
        return self.tokens


def array(values: Any) -> np.ndarray:
    """Return an array of a tensor or of anything like one; bfloat16, which numpy has not, as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ConfigError("predictions or labels are rows of different lengths; pad them with -100.") from error


def _classes(batch: Batch) -> Columns:
    """Return class ids, the likeliest of logits; of several labels a row, those with a probability above a half."""
    p, y = batch.predictions, batch.labels
    if _is_float(y):
        return _several_labels(p, y)
    if batch.tokens is not None or (_is_float(p) and p.ndim == 3):
        logits_classes = None if batch.tokens is not None else p.shape[-1]
        return _counted(batch.per_token(with_nll=False)["ids"], y, logits_classes or batch.subject.classes)
    if _is_float(p):
        if p.ndim != y.ndim + 1 or p.shape[:-1] != y.shape:
            raise _unfit("classes", p, y)
        if p.shape[-1] == 1:
            raise ConfigError(
                "the model has one output (num_labels=1), a regression's: it tells no classes apart. Measure 'mse', "
                "'mae', 'pearsonr' or 'spearmanr', or give the model num_labels=2."
            )
        return _counted(p.argmax(-1), y, p.shape[-1])
    if p.shape != y.shape:
        raise _unfit("classes", p, y)
    if y.ndim == 2 and batch.subject.shifted is None:
        raise ConfigError(
            "these are predicted ids for each token, and nobody says whether a position's are about the next one: pass "
            "shift_labels=True to metrics() (causal language models), or False."
        )
    if y.ndim == 2 and batch.subject.shifted:
        p, y = p[:, :-1], y[:, 1:]
    return _counted(p, y, batch.subject.classes)


def _several_labels(p: np.ndarray | None, y: np.ndarray) -> Columns:
    if p is None or p.shape != y.shape or y.ndim != 2 or not np.isin(y, (0.0, 1.0)).all():
        raise ConfigError(
            f"the labels are numbers ({y.dtype}), so that this is a regression: 'mse', 'mae', 'pearsonr' and "
            "'spearmanr' measure it. Classes need whole numbers; several labels a row need zeros and ones, as many as "
            f"the model has outputs (labels {y.shape}, predictions {None if p is None else p.shape})."
        )
    chosen = (p > 0) if _is_float(p) else p  # sigmoid(x) > 0.5 where x > 0
    return Columns(chosen.astype(np.int64), y.astype(np.int64), "multilabel", y.shape[1])


def _counted(p: np.ndarray, y: np.ndarray, classes: int | None) -> Columns:
    counts = (y != IGNORED) & (p != IGNORED)
    p, y = p[counts].astype(np.int64), y[counts].astype(np.int64)
    if classes is not None and y.size and not (y.min() >= 0 and y.max() < classes):
        wrong = y.min() if y.min() < 0 else y.max()
        raise ConfigError(f"label {wrong} is none of the model's {classes} classes (0 to {classes - 1}).")
    return Columns(p, y, None, classes)


def _numbers(batch: Batch) -> Columns:
    """Return numbers: a regression's outputs."""
    p, y = batch.predictions, batch.labels
    if p is None or not _is_float(p):
        raise ConfigError("the predictions are classes or tokens; numbers are compared of a regression (num_labels=1).")
    if p.ndim == y.ndim + 1 and p.shape[-1] == 1:
        p = p[..., 0]
    elif y.ndim == p.ndim + 1 and y.shape[-1] == 1:
        y = y[..., 0]
    if p.shape != y.shape or p.ndim > 2:
        raise _unfit("numbers", p, y)
    if p.ndim == 2 and p.shape[1] == 1:
        p, y = p[:, 0], y[:, 0]
    return Columns(p.astype(np.float64), y.astype(np.float64), "multilist" if p.ndim == 2 else None)


def _texts(batch: Batch) -> Columns:
    """Return the generated texts and the labels' texts."""
    p, y = batch.predictions, batch.labels
    if p is None or _is_float(p) or p.ndim != 2 or _is_float(y) or y.ndim != 2:
        shape = "logits for each token" if p is None else f"{p.dtype} of shape {p.shape}"
        raise ConfigError(
            f"texts are compared of generated tokens, and the predictions are {shape}. Use Seq2SeqTrainer with "
            "predict_with_generate=True in its arguments."
        )
    assert batch.texts is not None, "metrics() asks for processing_class"
    return Columns(batch.texts(p), batch.texts(y))


def _token_losses(batch: Batch) -> Columns:
    """Return the loss of each token that counts."""
    p = batch.predictions
    if batch.tokens is None and not (_is_float(p) and p.ndim == 3 and batch.labels.ndim == 2):
        raise ConfigError(
            "perplexity needs a language model's logits, (rows, tokens, vocabulary), and the predictions are "
            f"{p.dtype} of shape {p.shape}"
            + ("; with predict_with_generate=True there are no logits." if not _is_float(p) else ".")
        )
    found = batch.per_token(with_nll=True)
    counts = (batch.labels != IGNORED) & (found["ids"] != IGNORED)
    return Columns(found["nll"][counts].astype(np.float64), batch.labels[counts])


# kind -> how a batch becomes what is compared.
READERS: dict[str, Callable[[Batch], Columns]] = {
    "classes": _classes,
    "numbers": _numbers,
    "texts": _texts,
    "tokens": _token_losses,
}


def _unfit(what: str, p: np.ndarray, y: np.ndarray) -> ConfigError:
    return ConfigError(
        f"predictions of shape {p.shape} ({p.dtype}) and labels of shape {y.shape} ({y.dtype}) do not fit as {what}: "
        "classes are logits (rows, classes) or ids, with whole numbers as labels; numbers are one output a label."
    )


def _is_reduced(predictions: Any) -> bool:
    return isinstance(predictions, Mapping) and "ids" in predictions


def _is_float(values: np.ndarray) -> bool:
    return bool(np.issubdtype(values.dtype, np.floating))


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
