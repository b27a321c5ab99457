"""Building compute_metrics from names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from ...errors import ConfigError, MissingExtraError
from .measures import AVERAGES, Measure, of_module, perplexity
from .measuring import Metrics
from .origins import SHIPPED, FoundMetric, Source, origins
from .reduction import IGNORED

__all__ = ["metrics"]

_OURS: dict[str, Callable[[], Measure]] = {"perplexity": perplexity}


def metrics(
    *names: str,
    average: Literal["binary", "micro", "macro", "weighted"] | None = None,
    processing_class: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    source: Source = "auto",
    shift_labels: bool | None = None,
) -> Metrics:
    """Return a compute_metrics for a Trainer, which gives each metric by name.

    names: "accuracy", "f1", "precision", "recall", "matthews_correlation" (of classes; of several labels a row but for
    the last); "mse", "mae", "pearsonr", "spearmanr" (of a regression); "exact_match", "rouge" (of generated texts);
    "perplexity" (of a language model); any other metric of the Hub ("bleu", "user/metric"), or the path of an
    `evaluate` module. average: of f1, precision and recall where there are more than two classes. processing_class: the
    tokenizer, for texts. options: further ones, by the metric's name, as its `compute` takes them. shift_labels:
    whether logits at a position are about the next token; the Trainer's model says so by itself.

    source: "shipped" takes the modules of this package. "hub" downloads the Hub's newest, code that is then run. "auto"
    takes the Hub's where all of them can be had and work here, and otherwise the shipped ones, without asking where
    HF_HUB_OFFLINE or HF_EVALUATE_OFFLINE is set; `sources` of what is returned says which they are. "perplexity" is
    always ours: exp of the mean loss of the tokens whose label is not -100.

    Raises ConfigError for names, options or combinations that cannot be, HubError where the Hub is needed and cannot be
    asked, MissingExtraError without scikit-learn or SciPy.

    >>> from transformers import EvalPrediction
    >>> compute = metrics("accuracy", "f1", source="shipped")
    >>> compute(EvalPrediction(predictions=[[2.0, 1.0], [0.0, 3.0], [0.0, 1.0]], label_ids=[0, 1, 0]))
    {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """
    _check(names, average, options, processing_class, source)
    modules = [name for name in names if name not in _OURS]
    found, fallback = _of_modules(modules, options or {}, average, source)
    measures = {name: found[name] if name in found else _OURS[name]() for name in names}
    if average is not None and not any(measure.averages for measure in measures.values()):
        raise ConfigError(f"average={average!r} is for f1, precision, recall, and none of {', '.join(names)} takes it.")
    texts = [name for name, measure in measures.items() if measure.kind == "texts"]
    if texts and processing_class is None:
        raise ConfigError(f"{texts[0]!r} compares texts: pass processing_class=tokenizer, which decodes the tokens.")
    return Metrics(measures, _decoder(processing_class), shift_labels, fallback)


def _check(
    names: tuple[str, ...],
    average: str | None,
    options: Mapping[str, Mapping[str, Any]] | None,
    processing_class: Any,
    source: str,
) -> None:
    """Raise ConfigError with everything that cannot be, before any module is looked for."""
    problems = [f"{name!r} is no name of a metric" for name in names if not isinstance(name, str) or not name]
    problems += [f"{name!r} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [] if names else [f"no metric is named; name some of {', '.join((*SHIPPED, *_OURS))}"]
    problems += [f"options has {name!r}, which is not among the metrics" for name in options or () if name not in names]
    problems += [f"{name!r} has no options" for name in options or () if name in _OURS]
    if average is not None and average not in AVERAGES:
        problems.append(f"average={average!r} is none of {', '.join(AVERAGES)}")
    if processing_class is not None and not hasattr(processing_class, "batch_decode"):
        problems.append(f"processing_class={type(processing_class).__name__} has no batch_decode; pass the tokenizer")
    if source not in ("auto", "hub", "shipped"):
        problems.append(f"source={source!r} is none of 'auto', 'hub' and 'shipped'")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _of_modules(
    names: list[str], options: Mapping[str, Mapping[str, Any]], average: str | None, source: Source
) -> tuple[dict[str, Measure], str | None]:
    """Return the metrics of modules, and why they are not the Hub's where those were asked for in vain."""
    found, fallback = origins(names, source)

    def built(found: Mapping[str, FoundMetric]) -> dict[str, Measure]:
        return {name: of_module(name, origin, options.get(name, {}), average) for name, origin in found.items()}

    hubs = [name for name, origin in found.items() if origin.of_hub]
    if source != "auto" or not set(hubs) or not set(hubs) <= set(SHIPPED):
        return built(found), fallback
    try:
        measures = built(found)
        for name in hubs:
            measures[name].try_out()
        return measures, None
    except (ConfigError, MissingExtraError) as error:  # it needs packages, or other versions of them
        return built(origins(names, "shipped")[0]), str(error)


def _decoder(processing_class: Any) -> Callable[[Any], list[str]] | None:
    """Return what gives the texts of rows of tokens, without special tokens, padding and spaces around them."""
    if processing_class is None:
        return None

    def texts(rows: Any) -> list[str]:
        kept = [[int(token) for token in row if token != IGNORED] for row in np.asarray(rows)]
        return [text.strip() for text in processing_class.batch_decode(kept, skip_special_tokens=True)]

    return texts
