"""A card's YAML metadata: what hf_lora knows of an adapter, put together with what is there already.

The Hub makes the link to the base, the adapter's icon and the widget of `base_model`, `base_model_relation`,
`library_name` and `pipeline_tag`. The tags are those that PEFT's cards have, and some more.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from ...config.lora_config import LoRAConfig
from ...files.privacy import hub_id, is_private, scrubbed
from ...variants.initial import INITS
from ...variants.papers import PAPERS, Paper
from ...variants.table import LORA, formula_of, scaling_of
from .subject import CardSubject

__all__ = ["given_metadata", "joined", "listed", "merged", "own_metadata", "papers_of"]

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
    tags = [t for t in listed(there.get("tags")) if t in wanted or not (_is_of_an_adapter(t, text) or is_private(t))]
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


def _is_of_an_adapter(tag: str, text: str) -> bool:
    """Return whether a tag tells an adapter's base, or its variant on a card of ours."""
    return tag.startswith(_OF_BASE) or (bool(text) and tag in PAPERS)


def joined(there: Any, new: Any) -> list[str]:
    """Return what two lists, or single texts, hold, each once."""
    return list(dict.fromkeys([*listed(there), *listed(new)]))
