"""What a training run measured, as the Hub's model-index calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...files.privacy import is_private
from .training_facts import TrainingFacts

__all__ = ["Measured", "measured"]

# What a Trainer reports among its metrics and is none.
_NO_METRIC = (
    "epoch",
    "model_preparation_time",
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "total_flos",
    "num_input_tokens_seen",
)
# The Hub knows a metric by its module's name, and one of several results of it by a name beside.
_TYPES = {
    "rouge1": ("rouge", "ROUGE-1"),
    "rouge2": ("rouge", "ROUGE-2"),
    "rougeL": ("rouge", "ROUGE-L"),
    "rougeLsum": ("rouge", "ROUGE-Lsum"),
}


@dataclass(frozen=True)
class Measured:
    """One result. type and name: the metric's on the Hub; split: the data set's, where there are several."""

    key: str
    type: str
    value: float
    name: str | None = None
    split: str | None = None
    args: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.args.items())
        return f"{self.name or self.key} ({settings})" if settings else self.name or self.key


def measured(facts: TrainingFacts) -> list[Measured]:
    """Return the results that say how good a model is, not how fast it was measured; nothing private.

    >>> facts = TrainingFacts(metrics={"rouge1": 0.5, "f1": 0.25}, metric_settings={"f1": {"average": "macro"}})
    >>> [(str(result), result.type, result.value) for result in measured(facts)]
    [('ROUGE-1', 'rouge', 0.5), ('f1 (average=macro)', 'f1', 0.25)]
    """
    found = []
    for whole, value in facts.metrics.items():
        split = max((s for s in facts.splits if whole.startswith(f"{s}_")), key=len, default=None)
        key = whole if split is None else whole[len(split) + 1 :]
        if key in _NO_METRIC or is_private(whole):
            continue
        kind, name = _TYPES.get(key, (key, None))
        settings = facts.metric_settings.get(key, {})
        args = {k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in settings.items()}
        args = {k: v for k, v in args.items() if not is_private(str(v))}
        found.append(Measured(key, kind, value, name, split, args))
    return found
