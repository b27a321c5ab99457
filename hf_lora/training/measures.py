"""One metric with its options: what it compares, and who computes it: scikit-learn, SciPy, `evaluate`, a function."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants

from ..errors import ConfigError, HubError, MissingExtraError, some
from ..files.privacy import is_repo_id
from .columns import Columns

AVERAGES = ("binary", "micro", "macro", "weighted")


def exact_match(
    references: Sequence[str],
    predictions: Sequence[str],
    regexes_to_ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> float:
    """Return the share of texts that equal their reference, after what is to be ignored was taken out."""
    drop = (string.punctuation if ignore_punctuation else "") + (string.digits if ignore_numbers else "")

    def plain(text: str) -> str:
        for pattern in regexes_to_ignore:
            text = re.sub(pattern, "", text)
        return (text.lower() if ignore_case else text).translate(str.maketrans("", "", drop))

    equal = [plain(p) == plain(r) for p, r in zip(predictions, references, strict=True)]
    return sum(equal) / len(equal)


def rouge(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L, each the mean over the texts of

        F = 2 P R / (P + R) = 2 shared / (count(prediction) + count(reference))

    where `shared` is the number of n-grams in both, each as often as in the one that has it less often; for ROUGE-L it
    is the length of the longest common subsequence of words. Lin 2004, ROUGE: A Package for Automatic Evaluation of
    Summaries. The words are those of the package rouge_score without stemming: lower case, all but a-z, 0-9 parts them.
    Raises ValueError where no reference has such a word, as in another script.
    """
    pairs = [[re.findall("[a-z0-9]+", text.lower()) for text in pair] for pair in zip(predictions, references)]  # noqa: B905
    if pairs and not any(words for _, words in pairs):
        raise ValueError("it reads a-z and 0-9 alone, and no reference has any; 'chrf' reads every script")
    scores = [(_shared_ngrams(p, r, 1), _shared_ngrams(p, r, 2), _f(_common(p, r), len(p), len(r))) for p, r in pairs]
    return dict(zip(("rouge1", "rouge2", "rougeL"), np.mean(scores, axis=0).tolist(), strict=True))


def _shared_ngrams(prediction: list[str], reference: list[str], n: int) -> float:
    mine, theirs = (Counter(zip(*(words[i:] for i in range(n)))) for words in (prediction, reference))  # noqa: B905
    return _f((mine & theirs).total(), mine.total(), theirs.total())


def _common(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for i, candidate in enumerate(other, start=1):
            diagonal, row[i] = row[i], diagonal + 1 if word == candidate else max(row[i], row[i - 1])
    return row[-1]


def _f(shared: int, mine: int, theirs: int) -> float:
    return 2 * shared / (mine + theirs) if shared else 0.0


def perplexity(references: Any, losses: np.ndarray) -> float:
    """Return exp of the mean loss of the tokens; infinity where that is no float any more."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.inf


# name -> the kind of columns it compares, and the function of (references, predictions, **options) that computes it.
NAMES = {
    "accuracy": ("classes", "sklearn.metrics.accuracy_score"),
    "cer": ("texts", "jiwer.cer"),
    "chrf": ("texts", "hf_lora.training.scores.chrf"),
    "exact_match": ("texts", f"{__name__}.exact_match"),
    "f1": ("classes", "sklearn.metrics.f1_score"),
    "mae": ("numbers", "sklearn.metrics.mean_absolute_error"),
    "matthews_correlation": ("classes", "sklearn.metrics.matthews_corrcoef"),
    "mean_average_precision": ("boxes", "hf_lora.training.scores.mean_average_precision"),
    "mse": ("numbers", "sklearn.metrics.mean_squared_error"),
    "ndcg": ("lists", "hf_lora.training.scores.ndcg"),
    "pearsonr": ("numbers", "scipy.stats.pearsonr"),
    "perplexity": ("tokens", f"{__name__}.perplexity"),
    "precision": ("classes", "sklearn.metrics.precision_score"),
    "recall": ("classes", "sklearn.metrics.recall_score"),
    "roc_auc": ("scores", "hf_lora.training.scores.roc_auc"),
    "rouge": ("texts", f"{__name__}.rouge"),
    "sacrebleu": ("texts", "hf_lora.training.scores.sacrebleu"),
    "seqeval": ("tags", "hf_lora.training.scores.seqeval"),
    "spearmanr": ("numbers", "scipy.stats.spearmanr"),
    "squad": ("answers", "hf_lora.training.scores.squad"),
    "squad_v2": ("answers", "hf_lora.training.scores.squad_v2"),
    "wer": ("texts", "jiwer.wer"),
}


@dataclass(frozen=True)
class Measure:
    """A metric: run(references, predictions, **options) gives its results.

    kind: of the columns that it compares (`Batch.columns`). source: who computes it. takes: its options' names.
    """

    name: str
    kind: str
    source: str
    run: Callable[..., Any]
    takes: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def set(self, options: Mapping[str, Any], average: str | None) -> Measure:
        """Return it with options, and with an average where it takes one. Raises ConfigError for others than it has."""
        for option in options:
            if option not in self.takes:
                near = difflib.get_close_matches(option, self.takes, n=3, cutoff=0.5)
                hint = f"Did you mean {' or '.join(near)}?" if near else f"It takes {', '.join(self.takes) or 'none'}."
                raise ConfigError(f"the metric {self.name!r} ({self.source}) has no option {option!r}. {hint}")
        averaged = {"average": average} if average is not None and "average" in self.takes else {}
        return replace(self, options={**averaged, **options})

    def check_average(self, classes: int, several_labels: bool = False) -> None:
        """Raise ConfigError where the scores of several classes have to be averaged and nobody says how."""
        unsaid = "average" in self.takes and self.options.get("average", "binary") == "binary"
        if unsaid and (several_labels or classes > 2):
            among = "several labels a row" if several_labels else f"{classes} classes"
            raise ConfigError(
                f"{self.name!r} of {among} is an average, of several kinds: pass average='macro' (each class counts "
                "the same), 'weighted' (by its size) or 'micro' (each row counts the same) to metrics()."
            )

    def compute(self, columns: Columns) -> dict[str, float]:
        """Return the numbers by name. Raises ConfigError where the metric cannot compare the columns."""
        p, y, classes = columns.predictions, columns.references, columns.classes
        if not len(y):
            raise ConfigError(f"there is nothing to compare for {self.name!r}: every label is -100, which is ignored.")
        if self.kind == "classes":
            self.check_average(classes or 1 + int(max(p.max(), y.max())), several_labels=y.ndim == 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's, of what is NaN and told of below
                found = self.run(*((y.tolist(), p.tolist()) if p.dtype == object else (y, p)), **self.options)  # texts
        except (ValueError, TypeError) as error:
            if self.kind == "numbers" and len(y) == 1:
                return self._defined({self.name: math.nan})
            told = " ".join(str(error).split())[:300]
            raise ConfigError(f"{self.name!r} ({self.source}) refuses these predictions and labels: {told}") from error
        found = getattr(found, "statistic", found)  # SciPy gives a p-value beside it
        results = found if isinstance(found, Mapping) else {self.name: found}
        numbers = {key: number for key, value in results.items() if (number := _number(value)) is not None}
        if not numbers:
            raise ConfigError(f"{self.name!r} ({self.source}) gives no number, but {found!r}; a Trainer logs numbers.")
        if dropped := [f"{key}={value!r:.60}" for key, value in results.items() if key not in numbers]:
            warnings.warn(
                f"{self.name!r} ({self.source}): what is no number is left out: {some(dropped)}.", stacklevel=3
            )
        return self._defined(numbers)

    def _defined(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the results but for NaN, with a warning: a correlation of equal numbers, a curve of one class."""
        if undefined := [key for key, value in numbers.items() if math.isnan(value)]:
            warnings.warn(f"{some(undefined)}: not defined for these rows, too few or too alike.", stacklevel=4)
        return {key: value for key, value in numbers.items() if not math.isnan(value)}


def _number(value: Any) -> float | None:
    """Return a number, or what an array or tensor without dimensions holds, as a float; None for anything else."""
    value = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    return float(value) if isinstance(value, Real) else None


def measures_of(metric: Any, source: str) -> list[Measure]:
    """Return a metric without its options yet; of combined ones, each of them.

    metric: a name, a module of `evaluate` or several combined, a function of (predictions=, references=), or a list.
    Raises ConfigError for what a Trainer cannot feed, HubError, MissingExtraError.
    """
    if isinstance(metric, list | tuple):  # as evaluate.combine takes them
        return [measure for each in metric for measure in measures_of(each, source)]
    if hasattr(metric, "evaluation_modules"):
        parts = zip(metric.evaluation_module_names, metric.evaluation_modules, strict=True)
        return [_of_module(name, module) for name, module in parts]
    if hasattr(metric, "compute") and hasattr(metric, "features"):
        return [_of_module(metric.name, metric)]
    if callable(metric):
        return [_of_function(metric)]
    if not isinstance(metric, str) or not metric:
        raise ConfigError(f"{metric!r} is no metric; name one, or hand in a module of evaluate or a function.")
    if metric == "perplexity" or (source != "hub" and metric in NAMES):
        return [_named(metric)]
    return [_of_module(metric, _loaded(metric, source))]


def _named(name: str) -> Measure:
    kind, path = NAMES[name]
    module, _, function = path.rpartition(".")
    try:
        run = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise MissingExtraError(
            f'the metric {name!r} is {path}, which is not here; pip install ".[metrics]" in a checkout brings '
            f"scikit-learn and SciPy. {error}"
        ) from error
    return Measure(name, kind, path, run, tuple(inspect.signature(run).parameters)[2:])


def _of_function(function: Callable[..., Any]) -> Measure:
    name = getattr(function, "__name__", type(function).__name__)
    return Measure(name, "fitting", "a function of yours", _by_name(function), _options(function))


def _of_module(name: str, module: Any) -> Measure:
    features = module.features[0] if isinstance(module.features, list) else module.features
    column = features.get("predictions")
    dtype = str(getattr(getattr(column, "feature", column), "dtype", ""))  # a column of lists has a feature
    for kind, starts in (("classes", ("int", "uint", "bool")), ("numbers", ("float",)), ("texts", ("string",))):
        if set(features) == {"predictions", "references"} and dtype.startswith(starts):
            return Measure(name, kind, f"evaluate's {module.name}", _by_name(module.compute), _options(module._compute))
    raise ConfigError(
        f"the metric {name!r} compares {dict(features)}, which a Trainer's predictions and labels are not; hand in a "
        "function of (predictions, references)."
    )


def _by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda references, predictions, **options: function(
        predictions=predictions, references=references, **options
    )


def _options(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(function).parameters if name not in ("predictions", "references"))


def _loaded(name: str, source: str) -> Any:
    """Return a module that `evaluate` finds: a file or folder, or one of the Hub, whose code is run."""
    near = [] if name in NAMES else difflib.get_close_matches(name.lower(), NAMES, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    without = f"Without a network work {', '.join(NAMES)}, a module's path, and whatever you hand in."
    if source == "shipped":
        raise ConfigError(f"hf_lora computes no metric {name!r}{hint}. {without}")
    if (not is_repo_id(name) or name.endswith(".py")) and not Path(name).exists():
        raise ConfigError(f"there is no file or folder {name!r}, and no repo of the Hub has such a name. {without}")
    try:
        import evaluate  # takes a second, and whoever only trains needs none of it

        if constants.HF_HUB_OFFLINE and not Path(name).exists():  # evaluate looks at HF_EVALUATE_OFFLINE alone
            raise ConnectionError("HF_HUB_OFFLINE is set")
        return evaluate.load(name, keep_in_memory=True)  # so that processes share no file
    except ImportError as error:
        raise MissingExtraError(
            f"the metric {name!r} is loaded by evaluate, which, or a package that this metric needs, is not here: "
            f'pip install ".[metrics]" in a checkout brings evaluate. {error}'
        ) from error
    except OSError as error:
        raise HubError(
            f"evaluate finds no metric {name!r}{hint}, or cannot ask the Hub for it: {error}. {without}"
        ) from error
