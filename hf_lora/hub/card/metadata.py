"""A card's YAML metadata: what hf_lora knows of an adapter, put together with what is there already.

The Hub makes the link to the base, the adapter's icon and the widget of `base_model`, `base_model_relation`,
`library_name` and `pipeline_tag`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from ...config.lora_config import LoRAConfig
from ...files.privacy import hub_id, is_private, public_name, scrubbed
from ...variants.initial import INITS
from ...variants.papers import Paper
from ...variants.table import LORA, formula_of, scaling_of
from .measured import measured
from .record import CardRecord, value_digest
from .tasks import Task
from .training_facts import TrainingFacts

__all__ = ["eval_results", "given_metadata", "listed", "merged", "model_name", "own_metadata", "papers_of"]

INDEX = "model-index"
TAGS = ("lora", "hf_lora", "transformers")
# Of these there is only one truth, the adapter's; of a task there are a broad name and narrower ones.
_TRUTHS = ("base_model", "base_model_relation", "library_name")
_LISTS = ("tags", "datasets", "metrics")


def own_metadata(config: LoRAConfig, task: Task | None, of_transformers: bool) -> dict[str, Any]:
    """Return what an adapter itself says: its base (where it is one of the Hub's), library, task and tags."""
    base = hub_id(config.base_model_name_or_path)
    tags = [
        *(TAGS if of_transformers else TAGS[:-1]),
        *(name for name in papers_of(config) if name not in TAGS),
        *(task.tags if task else ()),
    ]
    values = {
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        "library_name": "peft",
        "pipeline_tag": task.tag if task else None,
        "tags": tags,
    }
    return {key: value for key, value in values.items() if value is not None}


def papers_of(config: LoRAConfig) -> dict[str, Paper]:
    """Return the papers of the rows of the variants' tables that an adapter uses, by the rows' names, LoRA's first."""
    start = config.init_lora_weights
    rows = [(row.name, row.paper) for row in (LORA, scaling_of(config), formula_of(config))]
    rows.append((str(start).partition("_niter_")[0], INITS[start].paper))
    return {name: paper for name, paper in rows if paper is not None}


def given_metadata(facts: TrainingFacts | None, data: ModelCardData | None, task: Task | None) -> dict[str, Any]:
    """Return what a Trainer or a user says, without anything private; the user's word counts more."""
    values: dict[str, Any] = {}
    if facts is not None:
        results = eval_results(facts, task)
        known = {
            "license": facts.license,
            "language": listed(facts.language) or None,
            "datasets": [name for name in listed(facts.dataset_tags) if hub_id(name)],
            "tags": listed(facts.tags),
            INDEX: eval_results_to_model_index(results[0], results[1]) if results else None,
        }
        values = {k: v for k, v in scrubbed({k: v for k, v in known.items() if v}).items() if v}
    for key, value in ({} if data is None else scrubbed(data.to_dict())).items():
        if key == "model_name":
            continue  # the Hub knows it in the model-index only
        if key == "base_model":
            value = _ids(value)
        if key == "datasets":
            value = [name for name in listed(value) if hub_id(name)]
        if key == INDEX:
            value = _whole(value)
        if value not in (None, [], ""):
            values[key] = _joined(values.get(key), value) if key in _LISTS or key == INDEX else value
    return values


def eval_results(facts: TrainingFacts, task: Task | None) -> tuple[str, list[EvalResult]] | None:
    """Return the model's name and its results for the model-index; None without a task, data set or metric.

    The Hub refuses a result that lacks one of them. A number that is not finite is no result, and JSON has none.
    """
    tags, names = listed(facts.dataset_tags), listed(facts.dataset)
    kind = public_name((tags or names or [""])[0])
    tasks = [t for t in listed(facts.tasks) if not is_private(t)]
    task_type = tasks[0] if tasks else task.tag if task else None
    metrics = [result for result in measured(facts) if math.isfinite(result.value)]
    if not (kind and task_type and metrics):
        return None
    args = [a for a in listed(facts.dataset_args) if not is_private(a)]
    return model_name(facts, None) or "adapter", [
        EvalResult(
            task_type=task_type,
            dataset_type=kind,
            dataset_name=public_name((names or tags)[0]) or kind,
            dataset_config=args[0] if args else None,
            dataset_split=result.split,
            metric_type=result.type,
            metric_name=result.name,
            metric_value=result.value,
            metric_args=dict(result.args) or None,
        )
        for result in metrics
    ]


def merged(
    there: Mapping[str, Any], own: Mapping[str, Any], given: Mapping[str, Any], record: CardRecord | None
) -> tuple[dict[str, Any], CardRecord]:
    """Return a card's new metadata, in the order that is there, and what to note of it.

    record: what was written the last time; a value that differs from it is a user's and stays, and so does the
    absence of a key or tag that was written. Without a record the card is somebody else's.
    """
    noted = record or CardRecord()
    result = dict(there)
    for key in (k for k in own if k != "tags"):
        if _is_ours(key, there, own, noted):
            result[key] = own[key]
    for key in ("base_model", "base_model_relation", "pipeline_tag"):
        if key not in own and key in there and noted.wrote(key, there[key]):
            del result[key]
    tags = [t for t in listed(there.get("tags")) if not is_private(t) and (t in own["tags"] or t not in noted.tags)]
    result["tags"] = [*tags, *(t for t in own["tags"] if t not in tags and t not in noted.tags)]
    for key, value in given.items():
        result[key] = _joined(result.get(key), value) if key in _LISTS or key == INDEX else value
    result["base_model"] = _ids(result.get("base_model"))
    if not result["base_model"]:
        result = {k: v for k, v in result.items() if k not in ("base_model", "base_model_relation")}
    elif "base_model_relation" not in noted.keys and "base_model_relation" not in result:
        result["base_model_relation"] = "adapter"
    first = [key for key in own if key in result]
    order = [*there, *first, *result]
    keys = {key: value_digest(value) for key, value in own.items() if key != "tags"}
    return {key: result[key] for key in dict.fromkeys(order) if key in result}, CardRecord(
        keys, tuple(own["tags"]), noted.repo, noted.name
    )


def model_name(facts: TrainingFacts | None, data: ModelCardData | None) -> str | None:
    """Return the name that a user or a Trainer gives to the model, None where it is private."""
    given = (data.get("model_name") if data is not None else None) or (facts.model_name if facts else None)
    return str(given) if given and not is_private(str(given)) else None


def listed(value: Any) -> list[str]:
    """Return one or several texts as a list; what is no text (YAML takes 2024 for a number) is left out."""
    values = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [v for v in values if isinstance(v, str)]


def _is_ours(key: str, there: Mapping[str, Any], own: Mapping[str, Any], noted: CardRecord) -> bool:
    """Return whether a key of the adapter's own is to be written."""
    if key not in there:
        return key not in noted.keys  # written once and gone: somebody took it out
    if noted.wrote(key, there[key]):
        return True
    if key not in _TRUTHS or own[key] == there[key] or own[key] in listed(there[key]):
        return False
    return not noted.wrote(key, own[key])  # changed on both sides, or another tool's


def _ids(value: Any) -> str | list[str] | None:
    """Return what of one or several names can be ids of the Hub; a local path that another tool wrote is none."""
    return hub_id(value) if isinstance(value, str) else [name for name in listed(value) if hub_id(name)]


def _joined(there: Any, new: Any) -> Any:
    """Return a list with what it lacks, a model-index with its values renewed."""
    if isinstance(new, list) and new and isinstance(new[0], dict):
        return _joined_index(there, new)
    found = listed(there)
    return [*found, *(item for item in listed(new) if item not in found)]


def _joined_index(there: Any, new: list[dict[str, Any]]) -> Any:
    """Return a model-index with further results: a metric of the same task and data set gets the new value."""
    if there is None:
        return new
    try:
        index = [{**model, "results": [dict(r) for r in model.get("results") or ()]} for model in there]
        results = index[0]["results"]
        for result in (r for model in new for r in model["results"]):
            same = next((r for r in _all_results(index) if _about(r) == _about(result)), None)
            if same is None:
                results.append(result)
            else:
                same["metrics"] = _joined_metrics(same.get("metrics") or (), result["metrics"])
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        return there  # no model-index; it is left for its owner to mend
    return index


def _all_results(index: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return [result for model in index for result in model["results"]]


def _joined_metrics(there: Iterable[Any], new: Iterable[Mapping[str, Any]]) -> list[Any]:
    found = [dict(metric) for metric in there]
    for metric in new:
        keys = ("type", "config", "args", *(["name"] if "name" in metric else []))  # a name that the owner gave stays
        same = next((m for m in found if all(m.get(k) == metric.get(k) for k in keys)), None)
        if same is None:
            found.append(dict(metric))
        else:
            same["value"] = metric["value"]
            if same.get("verified"):  # by the Hub, and of another value
                same.pop("verified"), same.pop("verifyToken", None)
    return found


def _whole(index: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a model-index without the results that lack what the Hub asks for, now that private texts are gone."""
    found = []
    for model in index:
        results = []
        for result in model["results"]:
            metrics = [m for m in result["metrics"] if "type" in m and _is_result(m.get("value"))]
            if metrics and "type" in result["task"] and {"type", "name"} <= result["dataset"].keys():
                results.append({**result, "metrics": metrics})
        if results:
            found.append({"name": model.get("name", "adapter"), "results": results})
    return found


def _is_result(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _about(result: Mapping[str, Any]) -> tuple[Any, ...]:
    data = result.get("dataset") or {}
    return (result.get("task") or {}).get("type"), *(data.get(k) for k in ("type", "config", "split", "revision"))
