"""What metrics compare, read off a batch: one function a kind of columns, and one table of kinds."""

from collections.abc import Callable

import numpy as np

from ..errors import ConfigError
from .columns import IGNORED, Batch, Columns, are_several, as_objects, check_defined, check_labels, heard, is_float


def columns_of(batch: Batch, kind: str) -> Columns:
    """Return what a metric of a kind compares. Raises ConfigError where a batch is something else."""
    read, needs = READERS[kind]
    if (found := read(batch)) is None:
        p, y = batch.predictions, batch.labels
        raise ConfigError(
            f"predictions of shape {p.shape} ({p.dtype}) and labels of shape {y.shape} ({y.dtype}) do not fit: {needs}"
        )
    return found


def _classes(batch: Batch) -> Columns | None:
    """Return class ids, the likeliest of logits; of several labels a row, those with a probability above a half."""
    p, y, classes = batch.predictions, batch.labels, batch.model.classes
    undefined = np.isnan(p).any(-1) if is_float(p) else np.zeros((), bool)
    if are_several(y):
        check_defined(undefined)
        chosen = (p > 0) if is_float(p) else p  # sigmoid(x) > 0.5 where x > 0
        return Columns(chosen.astype(np.int64), y.astype(np.int64), y.shape[1]) if p.shape == y.shape else None
    if batch.tokens is not None:
        p, undefined = batch.tokens["ids"], np.isnan(batch.tokens["nll"])
    elif is_float(p) and p.ndim == y.ndim + 1 and p.shape[-1] > 1:
        p, classes = p.argmax(-1), p.shape[-1]
    elif y.ndim == 2 and p.shape == y.shape and not is_float(p) and batch.shifted():
        p, y = p[:, :-1], y[:, 1:]
    if p.shape != y.shape or is_float(p) or is_float(y):
        return None
    if classes is not None:
        check_labels(y, classes)
    counts = (y != IGNORED) & (p != IGNORED)
    check_defined(undefined & counts)
    return Columns(p[counts].astype(np.int64), y[counts].astype(np.int64), classes)


def _numbers(batch: Batch) -> Columns | None:
    """Return numbers: a regression's outputs."""
    p, y = (v[:, 0] if v.ndim == 2 and v.shape[1] == 1 else v for v in (batch.predictions, batch.labels))
    fits = p.shape == y.shape and p.ndim <= 2 and is_float(p)
    if fits:
        check_defined(np.isnan(p))
    return Columns(p.astype(np.float64), y.astype(np.float64)) if fits else None


def _texts(batch: Batch) -> Columns | None:
    """Return the generated texts and the labels' texts."""
    p, y = batch.predictions, batch.labels
    p = p if batch.model.blank is None else heard(p, batch.model.blank)
    if batch.texts is None or batch.reduced or p.ndim != 2 or y.ndim != 2 or is_float(p) or is_float(y):
        return None
    return Columns(batch.texts(p), batch.texts(y))


def _token_losses(batch: Batch) -> Columns | None:
    """Return the loss of each token that counts."""
    if batch.tokens is None:
        return None
    counts = (batch.labels != IGNORED) & (batch.tokens["ids"] != IGNORED)
    check_defined(np.isnan(batch.tokens["nll"]) & counts)
    return Columns(batch.tokens["nll"][counts].astype(np.float64), batch.labels[counts])


def _tags(batch: Batch) -> Columns | None:
    """Return the names of each row's classes, token by token, in lists."""
    if batch.tokens is None or batch.model.labels is None:
        return None
    names, counts = batch.model.labels, (batch.labels != IGNORED) & (batch.tokens["ids"] != IGNORED)
    check_defined(np.isnan(batch.tokens["nll"]) & counts)
    p, y = (
        as_objects([[names[int(i)] for i in row[kept]] for row, kept in zip(ids, counts, strict=True)])
        for ids in (batch.tokens["ids"], batch.labels)
    )
    return Columns(p, y)


def _scores(batch: Batch) -> Columns | None:
    """Return each row's score for each class, and zeros and ones."""
    p, y = batch.predictions, batch.labels
    if not is_float(p) or p.ndim > 2:
        return None
    check_defined(np.isnan(p))
    p = p.astype(np.float64).reshape(len(p), -1)
    if y.ndim == 1 and p.shape[1] > 1 and not is_float(y):
        check_labels(y, p.shape[1])
        p, y = np.exp(p - np.logaddexp.reduce(p, axis=1, keepdims=True)), np.eye(p.shape[1])[y]
        if p.shape[1] == 2:
            p, y = p[:, 1:], y[:, 1:]
    y = y.reshape(len(y), -1)
    return Columns(p, y) if p.shape == y.shape and np.isin(y, (0.0, 1.0)).all() else None


def _of_rows(batch: Batch) -> Columns | None:
    """Return nothing: only the rows tell, which a data set of `hf-lora train` hands over by itself."""
    return None


def _fitting(batch: Batch) -> Columns | None:
    """Return what predictions and labels look like: for functions, which do not say what they compare."""
    of_numbers = is_float(batch.labels) and not are_several(batch.labels)
    return _texts(batch) or (_numbers(batch) if of_numbers else _classes(batch))


_CLASSES = (
    "classes are logits (rows, classes), of two at least, or ids, with whole numbers as labels; several labels a row "
    "are zeros and ones, as many as the model has outputs. A regression (num_labels=1) is measured by 'mse', 'mae', "
    "'pearsonr' or 'spearmanr'; two classes need num_labels=2."
)
_NUMBERS = "numbers are compared of a regression (num_labels=1): one output, no class and no token, for each label."
# kind -> how a batch becomes what is compared (None where it cannot), and what it needs for that.
READERS: dict[str, tuple[Callable[[Batch], Columns | None], str]] = {
    "classes": (_classes, _CLASSES),
    "numbers": (_numbers, _NUMBERS),
    "texts": (_texts, "texts are compared of generated tokens: take Seq2SeqTrainer with predict_with_generate=True."),
    "tokens": (
        _token_losses,
        "perplexity needs a language model's logits (rows, tokens, vocabulary), and predict_with_generate=True leaves "
        "them out.",
    ),
    "tags": (_tags, "tags are compared of a token classification, whose config names them (id2label)."),
    "scores": (_scores, f"scores are logits, and labels classes, or zeros and ones for each of them. {_CLASSES}"),
    "answers": (_of_rows, "answers are found in the contexts, by `hf-lora train --task question-answering`."),
    "boxes": (_of_rows, "boxes are found in pictures, by `hf-lora train --task object-detection`."),
    "lists": (
        _of_rows,
        "who is ranked for whom stands in the rows that `hf-lora train --task recommendation` reads.",
    ),
    "fitting": (_fitting, f"{_CLASSES} {_NUMBERS}"),
}
