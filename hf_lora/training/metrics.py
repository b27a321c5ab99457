"""Metrics for the stock Trainer: `metrics(...)` builds compute_metrics of names, `evaluate` modules and functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import ConfigError
from .columns import (
    IGNORED,
    Batch,
    Columns,
    EvaluatedModel,
    are_logits_of_tokens,
    first,
    joined,
    logits_and_boxes,
    reduced,
)
from .measures import AVERAGES, NAMES, Measure, measures_of
from .readers import columns_of

if TYPE_CHECKING:
    from evaluate import CombinedEvaluations, EvaluationModule
    from transformers import EvalPrediction


def metrics(
    *names: str | EvaluationModule | CombinedEvaluations | Callable[..., Any] | Sequence[Any],
    average: Literal["binary", "micro", "macro", "weighted"] | None = None,
    processing_class: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    source: Literal["auto", "hub", "shipped"] = "auto",
    shift_labels: bool | None = None,
) -> Metrics:
    """Return a compute_metrics for a Trainer, which gives each metric by name.

    names: "accuracy", "f1", "precision", "recall", "matthews_correlation" (of classes; of several labels a row but for
    the last); "mse", "mae", "pearsonr", "spearmanr" (of a regression); "exact_match", "rouge", "sacrebleu", "chrf" (of
    generated texts); "perplexity" (of a language model: exp of the mean loss of the tokens whose label is not -100);
    "roc_auc" (of classes, by their scores); "seqeval" (of a token classification). scikit-learn, SciPy and seqeval
    compute these without a network. Any other name, or a path, goes to `evaluate.load`. What `evaluate.load` and
    `evaluate.combine` return can be handed in as well, and a function: it is called with predictions= and references=
    and returns a number, or numbers by name. A list of these is the same as each by itself.
    average: of f1, precision and recall where there are more than two classes. processing_class: the tokenizer, for
    texts. options: further ones, by the metric's name, as the computing function takes them. shift_labels: whether
    logits at a position are about the next token; the Trainer's model says so by itself. source: "hub" loads all names
    but perplexity with `evaluate`, which runs code of the Hub; "shipped" loads none.

    Raises ConfigError for names, options or combinations that cannot be, HubError where `evaluate` finds no such metric
    or cannot ask the Hub, MissingExtraError without scikit-learn or SciPy.

    >>> from transformers import EvalPrediction
    >>> compute = metrics("accuracy", "f1")
    >>> compute(EvalPrediction(predictions=[[2.0, 1.0], [0.0, 3.0], [0.0, 1.0]], label_ids=[0, 1, 0]))
    {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """
    problems = [] if names else [f"no metric is named; name some of {', '.join(NAMES)}"]
    if average is not None and average not in AVERAGES:
        problems.append(f"average={average!r} is none of {', '.join(AVERAGES)}")
    if processing_class is not None and not hasattr(processing_class, "batch_decode"):
        problems.append(f"processing_class={type(processing_class).__name__} has no batch_decode; pass the tokenizer")
    if source not in ("auto", "hub", "shipped"):
        problems.append(f"source={source!r} is none of 'auto', 'hub' and 'shipped'")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    found = [measure for name in names for measure in measures_of(name, source)]
    _check(found, options or {}, average, processing_class)
    measures = [measure.set((options or {}).get(measure.name, {}), average) for measure in found]
    return Metrics(measures, _decoder(processing_class), shift_labels)


class Metrics:
    """What `metrics()` returns, for Trainer(compute_metrics=...).

    sources: by the metric's name, who computes it. names: by the name of a result, its metric's, of those in NAMES.
    settings: by the name of a result, the options that it was computed with.

    Inside a Trainer it learns from the model whether its logits are about the next token, and `evaluate()` keeps at
    most 12 bytes a token instead of the logits over the vocabulary. `predict()` keeps its predictions as they are;
    where they are too many, give the Trainer preprocess_logits_for_metrics=this.preprocess_logits_for_metrics.
    """

    def __init__(
        self, measures: list[Measure], texts: Callable[[Any], np.ndarray] | None, shift_labels: bool | None
    ) -> None:
        self.sources = {measure.name: measure.source for measure in measures}
        self.names: dict[str, str] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self._measures, self._texts, self._shift_labels = measures, texts, shift_labels
        self._model = EvaluatedModel(shift_labels)
        self._read: list[dict[str, Columns]] = []
        self._data: Any = None

    def __repr__(self) -> str:
        return f"Metrics({', '.join(f'{name} ({source})' for name, source in self.sources.items())})"

    def begin(self, model: Any, generates: bool = False, data: Any = None) -> None:
        """Forget the batches so far, and take to a model whose outputs come next.

        generates: these are the tokens that it generates, not its logits. data: the data set that is evaluated; where
        it has a method `compared(predictions, labels)`, that gives Columns by kind, which come before what predictions
        and labels alone tell. A Trainer's evaluation does all this by itself. Raises ConfigError where a metric cannot
        be that model's.
        """
        self._read.clear()
        self._data = data
        of_classes = [measure for measure in self._measures if measure.kind == "classes"]
        if generates and of_classes:  # generated tokens begin with the decoder's start token, labels do not
            raise ConfigError(
                f"{of_classes[0].name!r} compares token by token, and with predict_with_generate=True the tokens are "
                "generated, which stand at other places than the labels: measure 'exact_match' or 'rouge', or set it "
                "to False."
            )
        found = EvaluatedModel.of(model)
        self._model = found if self._shift_labels is None else replace(found, shifted=self._shift_labels)
        for measure in of_classes:
            measure.check_average(found.classes or 2)

    def preprocess_logits_for_metrics(self, logits: Any, labels: Any) -> Any:
        """Return what the metrics need of a batch's logits: of logits for each token, ids and losses; else the logits.

        logits: the model's outputs (a tuple's first is looked at), on any device; left unchanged. Where nobody knows
        whether the model's logits are about the next token they stay, and measuring them is an error.
        """
        if isinstance(labels, tuple):  # starts and ends of answers
            return logits
        if isinstance(labels, list):  # the objects of pictures
            return logits_and_boxes(logits)
        scores, shifted = first(logits), self._model.shifted
        if self._model.blank is not None:
            return scores.argmax(-1)
        if shifted is None or not are_logits_of_tokens(scores, labels):
            return scores
        return reduced(scores, labels, shifted)

    def __call__(self, evaluated: EvalPrediction, compute_result: bool | None = None) -> dict[str, float]:
        """Return the metrics by name.

        compute_result: as the Trainer gives it with batch_eval_metrics=True: False keeps a batch and returns nothing
        yet, True returns the metrics of all of them. None (the default) is a whole evaluation at once. Raises
        ConfigError where predictions and labels are not what a metric compares.
        """
        if compute_result is None:
            self._read.clear()
        kinds = dict.fromkeys(measure.kind for measure in self._measures)
        for predictions, labels in _batches(evaluated):
            self._read.append(self._columns(predictions, labels, kinds))
        if compute_result is False:
            return {}
        read, self._read = self._read, []
        columns = {kind: joined([each[kind] for each in read]) for kind in kinds}
        results: dict[str, float] = {}
        for measure in self._measures:
            found = measure.compute(columns[measure.kind])
            if twice := sorted(found.keys() & results.keys()):
                raise ConfigError(
                    f"{measure.name!r} gives {', '.join(twice)}, as another metric does; name one of them."
                )
            results |= found
            self.names |= dict.fromkeys(found, measure.name) if measure.name in NAMES else {}
            self.settings |= {key: dict(measure.options) for key in found if measure.options}
        return results

    def _columns(self, predictions: Any, labels: Any, kinds: Iterable[str]) -> dict[str, Columns]:
        """Return what each kind of metric compares, from the rows where they tell it."""
        compared = getattr(self._data, "compared", None)
        own = {} if compared is None else compared(predictions, labels)
        left = [kind for kind in kinds if kind not in own]
        batch = Batch(predictions, labels, self._model, self._texts) if left else None
        return {**own, **{kind: columns_of(batch, kind) for kind in left if batch}}


def _check(measures: list[Measure], options: Mapping[str, Any], average: str | None, processing_class: Any) -> None:
    """Raise ConfigError with everything that does not fit the metrics."""
    names = [measure.name for measure in measures]
    problems = [f"{name!r} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [
        f"options has {name!r}, which is not among {', '.join(names)}" for name in options if name not in names
    ]
    if average is not None and not any("average" in measure.takes for measure in measures):
        problems.append(f"average={average!r} is for f1, precision, recall, and none of {', '.join(names)} takes it")
    if processing_class is None and (texts := [measure.name for measure in measures if measure.kind == "texts"]):
        problems.append(f"{texts[0]!r} compares texts: pass processing_class=tokenizer, which decodes the tokens")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _decoder(processing_class: Any) -> Callable[[Any], np.ndarray] | None:
    """Return what gives the texts of rows of tokens, without special tokens, padding and spaces around them."""
    if processing_class is None:
        return None
    is_ctc = hasattr(getattr(processing_class, "tokenizer", processing_class), "word_delimiter_token")
    how = {"group_tokens": False} if is_ctc else {}  # a letter that stands twice is meant

    def texts(rows: np.ndarray) -> np.ndarray:
        kept = [[int(token) for token in row if token != IGNORED] for row in rows]
        found = processing_class.batch_decode(kept, skip_special_tokens=True, **how)
        return np.array([text.strip() for text in found], dtype=object)

    return texts


def _batches(evaluated: EvalPrediction) -> list[tuple[Any, Any]]:
    """Return predictions and labels, of each batch where a Trainer gives them so (eval_do_concat_batches=False)."""
    predictions, labels = evaluated.predictions, evaluated.label_ids
    if isinstance(labels, list) and labels and getattr(labels[0], "ndim", 0):
        return list(zip(predictions, labels, strict=True))
    return [(predictions, labels)]
