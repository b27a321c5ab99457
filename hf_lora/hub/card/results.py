"""What was measured of an adapter, as the Hub's `EvalResult`s, and its place in a card's model-index."""

import dataclasses
import math
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from ...config.tasks import Task
from ...files.privacy import public_name, scrubbed

__all__ = ["index_with", "label", "results_of"]


def results_of(data: ModelCardData, task: Task | None) -> list[EvalResult]:
    """Return the results that somebody gives, without anything private; those without a task have the model's."""
    found = []
    for result in data.get("eval_results") or ():
        names = {key: public_name(str(getattr(result, key) or "")) for key in ("dataset_type", "dataset_name")}
        fields = scrubbed({**dataclasses.asdict(result), **names})
        if "source_url" not in fields:
            fields.pop("source_name", None)  # which EvalResult takes with its address only
        if {"metric_type", "metric_value"} <= fields.keys():
            fields["task_type"] = fields.get("task_type") or (task and task.tag)
            fields.setdefault("dataset_name", fields.setdefault("dataset_type", ""))
            found.append(EvalResult(**fields))
    return found


def label(result: EvalResult) -> str:
    """Return a metric's name with its settings.

    >>> label(EvalResult("t", "d", "D", "f1", 0.5, metric_args={"average": "macro"}))
    'f1 (average=macro)'
    """
    name = result.metric_name or result.metric_type
    settings = ", ".join(f"{key}={value}" for key, value in (result.metric_args or {}).items())
    return f"{name} ({settings})" if settings else name


def index_with(there: Any, name: str, results: list[EvalResult]) -> Any:
    """Return a model-index with results put in; what was measured before gets the new value.

    there: the card's, None for none; it is returned where there is nothing to put in, or where it is no model-index.
    name: the model's, where the index is new. Left out is what the Hub refuses: a result without a task or data set,
    and a number that is not finite.
    """
    new = [r for r in results if r.task_type and r.dataset_type and r.dataset_name and _is_finite(r.metric_value)]
    if not new:
        return there
    about = {result.unique_identifier for result in new}
    kept: list[Any] = []
    renewed: list[EvalResult] = []
    try:
        first, *others = there or [{"name": name, "results": []}]
        for entry in first["results"]:
            _, old = model_index_to_eval_results([{"name": name, "results": [entry]}])
            if about & {result.unique_identifier for result in old}:
                renewed += old
            else:
                kept.append(entry)
    except (TypeError, KeyError, AttributeError, ValueError):
        return there  # for its owner to mend
    for result in new:
        same = [one for one in renewed if _is_same(one, result)]
        for one in same:
            one.metric_value, one.verified, one.verify_token = result.metric_value, None, None
        if not same:
            renewed.append(result)
    return [{**first, "results": [*kept, *eval_results_to_model_index(name, renewed)[0]["results"]]}, *others]


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _is_same(old: EvalResult, new: EvalResult) -> bool:
    """Return whether two results are of one metric on the same data; a name that the owner gave does not matter."""
    one, other = ((r.unique_identifier, r.metric_type, r.metric_config, r.metric_args) for r in (old, new))
    return one == other and new.metric_name in (None, old.metric_name)
