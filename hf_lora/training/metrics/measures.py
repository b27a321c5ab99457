"""One metric with its options: what it compares, and how it is computed."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .columns import Columns
from .origins import OWN, FoundMetric

if TYPE_CHECKING:
    from evaluate import EvaluationModule

__all__ = ["Measure", "of_module", "perplexity"]

Compute = Callable[[Columns], Mapping[str, Any]]
AVERAGES = ("binary", "micro", "macro", "weighted")
# Two rows that every metric of a kind can compare.
_TRIAL = {"classes": [0, 1], "numbers": [0.0, 1.0], "texts": ["a b", "c d"]}


@dataclass(frozen=True)
class Measure:
    """A metric. kind: a row of READERS; source: where it comes from, in words; averages: whether it has `average`."""

    name: str
    kind: str
    source: str
    run: Compute
    options: Mapping[str, Any] = field(default_factory=dict)
    averages: bool = False

    def check_average(self, classes: int | None, several_labels: bool = False) -> None:
        """Raise ConfigError where the scores of several classes have to be averaged and nobody says how."""
        average = self.options.get("average", "binary")
        if self.averages and average == "binary" and (several_labels or (classes or 2) > 2):
            among = "several labels a row" if several_labels else f"{classes} classes"
            raise ConfigError(
                f"{self.name!r} of {among} is an average, of several kinds: pass average='macro' (each class counts "
                "the same), 'weighted' (by its size) or 'micro' (each row counts the same) to metrics()."
            )

    def compute(self, columns: Columns) -> Mapping[str, Any]:
        """Return the results by name. Raises ConfigError where the metric cannot compare the columns."""
        if self.kind == "classes":
            classes = columns.classes
            if self.averages and classes is None:  # ids only: as many as there are
                classes = 1 + max(int(columns.predictions.max()), int(columns.references.max()))
            self.check_average(classes, columns.config == "multilabel")
        return self.run(columns)

    def try_out(self) -> None:
        """Compare two rows. Raises ConfigError where the metric does not work with what is installed here."""
        try:
            self.run(Columns(_TRIAL[self.kind], _TRIAL[self.kind]))
        except ConfigError:
            raise
        except Exception as error:  # somebody else's code: whatever it raises
            told = f"{type(error).__name__}: {error}"
            raise ConfigError(f"the metric {self.name!r} ({self.source}) does not work here: {told}") from error


def of_module(name: str, origin: FoundMetric, options: Mapping[str, Any], average: str | None = None) -> Measure:
    """Return the metric of an `evaluate` module, with its options, and this average where it takes one.

    Raises ConfigError for a module that cannot be fed here and for options that it does not have, MissingExtraError.
    """
    module = origin.module()
    kind = _kind(name, module)
    taken = [p for p in inspect.signature(module._compute).parameters if p not in ("predictions", "references")]
    for option in options:
        if option not in taken:
            near = difflib.get_close_matches(option, taken, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else f" It takes {', '.join(taken) or 'none'}."
            raise ConfigError(f"the metric {name!r} ({origin.told}) has no option {option!r}.{hint}")
    if average is not None and "average" in taken:
        options = {"average": average, **options}
    modules: dict[str | None, EvaluationModule] = {None: module}

    def run(columns: Columns) -> Mapping[str, Any]:
        if columns.config not in modules:
            modules[columns.config] = origin.module(columns.config)
        return _computed(name, modules[columns.config], columns, options)

    return Measure(name, kind, origin.told, run, options, "average" in taken)


def perplexity() -> Measure:
    """Return exp of the mean loss of the tokens; infinity where that is no float any more.

    The Hub's metric of that name measures texts with a model of its own, and is never taken.
    """

    def run(columns: Columns) -> Mapping[str, Any]:
        mean = float(columns.predictions.mean())
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}

    return Measure("perplexity", "tokens", OWN, run)


def _computed(name: str, module: EvaluationModule, columns: Columns, options: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        found = module.compute(predictions=columns.predictions, references=columns.references, **options)
    except (ValueError, TypeError) as error:
        told = " ".join(str(error).split())[:300]
        several = f" (its configuration {columns.config!r})" if columns.config else ""
        raise ConfigError(f"the metric {name!r}{several} refuses these predictions and labels: {told}") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"the metric {name!r} gives {type(found).__name__}, not its results by name.")
    return found


def _kind(name: str, module: EvaluationModule) -> str:
    """Return the row of READERS that gives a module its columns."""
    features = module.features[0] if isinstance(module.features, list) else module.features
    prediction = features.get("predictions")
    dtype = str(getattr(prediction, "dtype", ""))
    if set(features) == {"predictions", "references"}:
        for kind, starts in (("classes", ("int", "uint", "bool")), ("numbers", ("float",)), ("texts", ("string",))):
            if dtype.startswith(starts):
                return kind
    raise ConfigError(
        f"the metric {name!r} compares {dict(features)}, which a Trainer's predictions and labels are not; compute it "
        "in a function of your own."
    )
