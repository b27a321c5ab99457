"""The model card that is written beside an adapter: what it is, what it was trained on, how to load it.

A card that is there is updated: what hf_lora generated is renewed, metadata is filled in, the rest is the owner's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, ModelCardData, RepoCard
from torch import Tensor

from ...config.lora_config import LoRAConfig
from ...files.disk import write_atomically
from ...files.names import WEIGHTS_NAME
from ...files.privacy import hub_id, scrubbed
from . import generated
from .metadata import given_metadata, listed, merged, own_metadata
from .results import index_with, results_of
from .subject import CardSubject, task_of
from .text import repo_in, text_of

__all__ = ["amend_card", "write_card"]

_INDEX = "model-index"


def write_card(
    path: Path,
    model: Any,
    config: LoRAConfig,
    tensors: Mapping[str, Tensor],
    card_data: ModelCardData | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
) -> None:
    """Write or update the card of an adapter, atomically; the same bytes where nothing changed.

    card_data: what a Trainer or a user adds to the metadata (license, language, datasets, eval_results ...): set fields
    are written, lists joined with what is there. hyperparameters: the training's, by the names that Transformers' own
    cards give them. repo_id: the adapter's own, for the snippets; once given it is kept, as is all that is said of a
    training. A card that has a text without hf_lora's markers is the owner's: its metadata alone is updated. One that
    cannot be read (no UTF-8, metadata that is no YAML) is left as it is, with a warning. No path of this machine and no
    token is written, whoever gives it.
    """
    card = _read(path)
    if card is None:
        return
    there, data = card.data.to_dict(), card_data or ModelCardData()
    above, text, below = generated.split(card.text)
    subject, name = CardSubject(model, config, task_of(model, config)), scrubbed(data.get("model_name"))
    results = results_of(data, subject.task)
    new = merged(there, own_metadata(subject), given_metadata(data), text or "")
    if index := index_with(there.get(_INDEX), name or "adapter", results):
        new[_INDEX] = index
    body = card.text
    if text is not None:
        base, repo = next(iter(listed(new.get("base_model"))), None), hub_id(repo_id) or repo_in(text)
        subject = replace(subject, base=base, repo=repo)
        text = text_of(subject, tensors, path.parent / WEIGHTS_NAME, name, hyperparameters or {}, results, text)
        body = generated.join(above, text, below, "\r\n" if "\r\n" in card.text else "\n")
    _write(path, card, new, body)


def amend_card(path: Path, card_data: ModelCardData) -> None:
    """Add to the metadata of a card, as `write_card` does with card_data; its text stays."""
    card = _read(path)
    if card is not None:
        new = merged(card.data.to_dict(), {}, given_metadata(card_data), "")
        _write(path, card, new, card.text)


def _read(path: Path) -> RepoCard | None:
    """Return a card, an empty one where there is none; None (and a warning) where it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig") if path.is_file() else ""
        if not text.lstrip().startswith("---"):
            newline = "\r\n" if "\r\n" in text else "\n"
            text = newline.join(["---", "", "---", *(["", text] if text else [""])])
        return RepoCard(text)
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        why = f"its metadata is no YAML mapping ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    message = f"the card {path} is left as it is: {why}. Mend or remove it to get a new one."
    warnings.warn(message, stacklevel=3)
    return None


def _write(path: Path, card: RepoCard, metadata: dict[str, Any], text: str) -> None:
    if metadata != card.data.to_dict() or text != card.text:
        card.data, card.text = CardData(**metadata), text
        write_atomically(path, str(card).encode())
