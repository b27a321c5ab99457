"""The model card that is written beside an adapter: what it is, what it was trained on, how to load it.

A card that is there is updated: metadata key by key, hf_lora's own parts between their markers, nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import Tensor

from ...config.lora_config import LoRAConfig
from ...files.disk import write_atomically
from ...files.privacy import hub_id
from ...layers.specialising import base_of
from . import sections
from .frontmatter import BrokenMetadataError, replaced, split
from .metadata import given_metadata, listed, merged, model_name, own_metadata
from .record import CardRecord
from .snippets import CardSubject
from .tasks import task_of
from .templates import template
from .training_facts import TrainingFacts
from .values import fill, values

__all__ = ["amend_card", "write_card"]


def write_card(
    path: Path,
    model: Any,
    config: LoRAConfig,
    tensors: Mapping[str, Tensor],
    facts: TrainingFacts | None = None,
    card_data: ModelCardData | None = None,
    repo_id: str | None = None,
) -> None:
    """Write or update the card of an adapter, atomically; the same bytes where nothing changed.

    facts: what a Trainer knows. card_data: what the user adds to the metadata (license, language, datasets,
    eval_results ...): set fields are written, lists joined with what is there. repo_id: the adapter's own, for the
    snippets; once given it is kept. A card that cannot be read (no UTF-8, metadata that is no YAML) is left as it is,
    with a warning. No path of this machine and no token is written, whoever gives it.
    """
    found = _read(path)
    if found is None:
        return
    text, there, body = found
    record = CardRecord.read(body)
    task = task_of(model, config)
    own = own_metadata(config, task, hasattr(base_of(type(model)), "from_pretrained"))
    new, noted = merged(there, own, given_metadata(facts, card_data, task), record)
    repo, name = hub_id(repo_id) or noted.repo, model_name(facts, card_data) or noted.name
    noted = CardRecord(noted.keys, noted.tags, repo, name)
    subject = CardSubject(model, config, task, _base(new, config), repo, name)
    bodies = fill(template(), values(path, subject, tensors, facts, card_data))
    _write(path, replaced(_with_bodies(text, there, body, bodies, noted), new))


def amend_card(path: Path, card_data: ModelCardData, parts: Mapping[str, str] | None = None) -> None:
    """Add to the metadata of a card that is there, and put these parts at its end or refresh them.

    card_data: as in `write_card`. parts: Markdown by name; one that was edited or taken out stays so.
    """
    found = _read(path)
    if found is None:
        return
    text, there, body = found
    record = CardRecord.read(body)
    own = {"tags": [*record.tags] if record else []}
    given = given_metadata(None, card_data, None)
    new, _ = merged(there, own, given, CardRecord({}, (), None))
    text = sections.refresh(text, parts or {})
    missing = {name: part for name, part in (parts or {}).items() if name not in sections.parts(body)}
    _write(path, replaced(sections.add(text, missing) if missing else text, new))


def _with_bodies(text: str, there: Mapping[str, Any], body: str, bodies: Mapping[str, str], noted: CardRecord) -> str:
    """Return the card with hf_lora's parts refreshed, or added where it never had them."""
    if sections.holds_any(body):
        return noted.put(sections.refresh(text, bodies))
    if "hf_lora" in listed(there.get("tags")):
        return text  # all parts were taken out
    new = {name: bodies.get(name, "") for name in template() if not (name == "title" and body.strip())}
    newline = "\r\n" if "\r\n" in text else "\n"
    return sections.add(text, new) + f"\n{noted.comment()}\n".replace("\n", newline)


def _base(data: Mapping[str, Any], config: LoRAConfig) -> str | None:
    named = listed(data.get("base_model"))
    return named[0] if named else hub_id(config.base_model_name_or_path)


def _read(path: Path) -> tuple[str, dict[str, Any], str] | None:
    """Return a card's text, metadata and body, empty where there is none; None (and a warning) where it is no card."""
    try:
        text = path.read_bytes().decode()
        return text, *split(text)
    except FileNotFoundError:
        return "", {}, ""
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except BrokenMetadataError as error:
        why = f"its metadata cannot be read ({error})"
    _warn(path, why)
    return None


def _warn(path: Path, why: str) -> None:
    warnings.warn(f"the card {path} is left as it is: {why}. Mend or remove it to get a new one.", stacklevel=3)


def _write(path: Path, text: str) -> None:
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
