"""The metrics of a model under evaluation, as a Trainer calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from .columns import READERS, Batch, Columns
from .measures import Measure
from .reduction import first, reduced
from .subject import UNKNOWN, EvaluatedModel

if TYPE_CHECKING:
    from transformers import EvalPrediction

__all__ = ["Metrics"]


class Metrics:
    """What `metrics()` returns, for Trainer(compute_metrics=...).

    sources: where each metric comes from, by name. fallback: why the shipped ones were taken though the Hub's were
    asked for, else None. settings: by the name of a result, the options that it was computed with.

    Inside a Trainer it learns from the model whether its logits are about the next token, and `evaluate()` keeps at
    most 12 bytes a token instead of the logits over the vocabulary. `predict()` keeps its predictions as they are;
    where they are too many, give the Trainer preprocess_logits_for_metrics=this.preprocess_logits_for_metrics.
    """

    def __init__(
        self,
        measures: Mapping[str, Measure],
        texts: Callable[[Any], list[str]] | None,
        shift_labels: bool | None,
        fallback: str | None,
    ) -> None:
        self.sources = {name: measure.source for name, measure in measures.items()}
        self.fallback = fallback
        self.settings: dict[str, dict[str, Any]] = {}
        self._measures, self._texts, self._shift_labels = dict(measures), texts, shift_labels
        self._subject = EvaluatedModel(shift_labels)
        self._read: list[dict[str, Columns]] = []

    def __repr__(self) -> str:
        return f"Metrics({', '.join(f'{name} ({source})' for name, source in self.sources.items())})"

    def begin(self, model: Any, generates: bool = False) -> None:
        """Forget the batches so far, and take to a model whose outputs come next.

        generates: these are the tokens that it generates, not its logits. A Trainer's evaluation does it by itself.
        Raises ConfigError where a metric cannot be that model's.
        """
        self._read.clear()
        if generates and (ids := [name for name, measure in self._measures.items() if measure.kind == "classes"]):
            raise ConfigError(  # generated tokens begin with the decoder's start token, labels do not: one place apart
                f"{ids[0]!r} compares token by token, and with predict_with_generate=True the tokens are generated, "
                "which stand at other places than the labels: measure 'exact_match' or 'rouge', or set it to False."
            )
        found = UNKNOWN if model is None else EvaluatedModel.of(model)
        shifted = found.shifted if self._shift_labels is None else self._shift_labels
        self._subject = EvaluatedModel(shifted, found.classes)
        for measure in self._measures.values():
            if measure.kind == "classes" and found.classes != 1:
                measure.check_average(found.classes)

    def preprocess_logits_for_metrics(self, logits: Any, labels: Any) -> Any:
        """Return what the metrics need of a batch's logits: of logits for each token, ids and losses; else the logits.

        logits: the model's outputs (a tuple's first is looked at), on any device; left unchanged. Raises ConfigError
        where nobody knows whether the model's logits are about the next token.
        """
        scores = first(logits)
        for_each_token = getattr(scores, "ndim", 0) == 3 and scores.is_floating_point()
        if labels is None or not for_each_token or getattr(labels, "ndim", 0) != 2 or labels.is_floating_point():
            return scores
        if self._subject.shifted is None:
            return scores  # said with the reason when it comes to measuring
        return reduced(scores, labels, self._subject.shifted, "tokens" in self._kinds())

    def __call__(self, evaluated: EvalPrediction, compute_result: bool | None = None) -> dict[str, float]:
        """Return the metrics by name.

        compute_result: as the Trainer gives it with batch_eval_metrics=True: False keeps a batch and returns nothing
        yet, True returns the metrics of all of them. None (the default) is a whole evaluation at once. Raises
        ConfigError where predictions and labels are not what a metric compares.
        """
        if compute_result is None:
            self._read.clear()
        order = sorted(self._kinds(), reverse=True)  # "tokens" first, so that "classes" uses its ids
        for predictions, labels in _batches(evaluated):
            batch = Batch(predictions, labels, self._subject, self._texts)
            self._read.append({kind: READERS[kind](batch) for kind in order})
        if compute_result is False:
            return {}
        read, self._read = self._read, []
        joined = {kind: _joined([each[kind] for each in read]) for kind in order}
        return self._computed(joined)

    def _computed(self, joined: Mapping[str, Columns]) -> dict[str, float]:
        results: dict[str, float] = {}
        for name, measure in self._measures.items():
            columns = joined[measure.kind]
            if not len(columns.references):
                raise ConfigError(f"there is nothing to compare for {name!r}: every label is -100, which is ignored.")
            found = {k: float(v) for k, v in measure.compute(columns).items() if _is_number(v)}
            twice = sorted(found.keys() & results.keys())
            if twice or not found:
                why = f"gives {', '.join(twice)}, as another one does" if twice else "gives no number"
                raise ConfigError(f"the metric {name!r} {why}; measure it on its own.")
            results |= found
            self.settings |= {key: dict(measure.options) for key in found if measure.options}
        return results

    def _kinds(self) -> set[str]:
        return {measure.kind for measure in self._measures.values()}


def _batches(evaluated: EvalPrediction) -> list[tuple[Any, Any]]:
    """Return predictions and labels, of each batch where a Trainer gives them so (eval_do_concat_batches=False)."""
    predictions, labels = evaluated.predictions, evaluated.label_ids
    if isinstance(labels, list) and labels and getattr(labels[0], "ndim", 0):
        return list(zip(predictions, labels, strict=True))
    return [(predictions, labels)]


def _joined(parts: list[Columns]) -> Columns:
    """Return the columns of all batches, one below the other."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0].predictions, list):
        one, other = ([text for p in parts for text in getattr(p, k)] for k in ("predictions", "references"))
        return Columns(one, other)
    predictions, references = (np.concatenate([getattr(p, k) for p in parts]) for k in ("predictions", "references"))
    return Columns(predictions, references, parts[0].config, parts[0].classes)


def _is_number(value: Any) -> bool:
    return isinstance(value, (Number, np.generic)) and not isinstance(value, (complex, np.str_))
