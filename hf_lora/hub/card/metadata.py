"""A card's YAML metadata: what hf_lora knows of an adapter, put together with what is there already.

The Hub makes the link to the base, the adapter's icon and the widget of `base_model`, `base_model_relation`,
`library_name` and `pipeline_tag`. The tags are those that PEFT's cards have, and some more.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from ...config.lora_config import LoRAConfig
from ...config.tasks import Task
from ...files.privacy import hub_id, is_private, public_name, scrubbed
from ...variants.initial import INITS
from ...variants.papers import PAPERS, Paper
from ...variants.table import LORA, formula_of, scaling_of
from .subject import CardSubject

_OF_BASE = "base_model:adapter:"
_LISTS = ("tags", "datasets", "metrics")
_OF_THE_HUB = ("base_model", "datasets")


def own_metadata(subject: CardSubject) -> dict[str, Any]:
    """Return what an adapter itself says: its base (where it is one of the Hub's), library, task and tags."""
    task = subject.task
    tags = ["lora", *(["transformers"] if subject.is_transformers else []), "hf_lora", *papers_of(subject.config)]
    return {
        "base_model": hub_id(subject.config.base_model_name_or_path),
        "library_name": "peft",
        "pipeline_tag": task.tag if task else None,
        "tags": [*dict.fromkeys(tags), *(task.tags if task else ())],
    }


def papers_of(config: LoRAConfig) -> dict[str, Paper]:
    """Return the papers of the rows of the variants' tables that an adapter uses, by the rows' names, LoRA's first."""
    start = config.init_lora_weights
    rows = [(row.name, row.paper) for row in (LORA, scaling_of(config), formula_of(config))]
    rows.append((str(start).partition("_niter_")[0], INITS[start].paper))
    return {name: paper for name, paper in rows if paper is not None}


def given_metadata(data: ModelCardData) -> dict[str, Any]:
    """Return what a Trainer or a user says but for results, without anything private."""
    values = {key: value for key, value in scrubbed(data.to_dict()).items() if key not in ("model-index", "model_name")}
    for key in _LISTS:
        values[key] = listed(values.get(key))
    for key in _OF_THE_HUB:
        values[key] = [name for name in listed(values.get(key)) if hub_id(name)]
    return {key: value for key, value in values.items() if value not in ("", [])}


def listed(value: Any) -> list[str]:
    """Return one or several texts as a list; what is no text (YAML takes 2024 for a number) is left out."""
    values = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [v for v in values if isinstance(v, str)]


def merged(there: Mapping[str, Any], own: Mapping[str, Any], given: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a card's new metadata, in the order that is there.

    The base and the library are the adapter's, everything else the owner's: other keys are filled in where they are
    missing, and lists get what they lack. text: what was generated into the card before, "" where nothing was; it
    tells a task of an earlier adapter from the owner's, and a card of ours from others.
    """
    known, named = listed(own.get("base_model")), [name for name in listed(there.get("base_model")) if hub_id(name)]
    bases = listed(given.get("base_model")) or (named if not known or known[0] in named else known)
    task = there.get("pipeline_tag")
    if task is None or f"` ({task})" in text:
        task = own.get("pipeline_tag")
    wanted = [*(f"{_OF_BASE}{base}" for base in bases), *own.get("tags", ())]
    ours_before = PAPERS if text else ()  # an adapter's variant on a card of ours
    tags = [
        t
        for t in listed(there.get("tags"))
        if t in wanted or not (t.startswith(_OF_BASE) or t in ours_before or is_private(t))
    ]
    ours = {
        "base_model": bases if len(bases) > 1 else "".join(bases),
        "base_model_relation": "adapter" if bases else "",
        "library_name": own.get("library_name"),
        "pipeline_tag": task or "",
        "tags": joined(tags, wanted),
    }
    result = {**there, **{key: value for key, value in ours.items() if value is not None}}
    for key, value in given.items():
        if key != "base_model":
            result[key] = joined(result.get(key), value) if key in _LISTS else value
    return {key: value for key, value in result.items() if value != "" or key not in ours}


def joined(there: Any, new: Any) -> list[str]:
    """Return what two lists, or single texts, hold, each once."""
    return list(dict.fromkeys([*listed(there), *listed(new)]))


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
