"""The model card that is written beside an adapter: what it is, what it was trained on, how to load it.

A card that is there is updated: what hf_lora generated is renewed, metadata is filled in, the rest is the owner's.
Nothing of the owner's goes without a word and a copy, and no text that may be of other weights stays without a word.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import CardData, ModelCardData, RepoCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from torch import Tensor

from ...config.lora_config import LoRAConfig
from ...files.disk import write_atomically
from ...files.names import WEIGHTS_NAME
from ...files.privacy import hub_id, scrubbed
from . import generated
from .metadata import given_metadata, index_with, listed, merged, own_metadata, results_of
from .subject import CardSubject, task_of
from .text import repo_in, text_of

_INDEX = "model-index"


def write_card(
    path: Path,
    model: Any,
    config: LoRAConfig,
    tensors: Mapping[str, Tensor],
    card_data: ModelCardData | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    adapter_name: str | None = None,
) -> None:
    """Write or update the card of an adapter, atomically; the same bytes where nothing changed.

    card_data: what is added to the metadata: set fields are written, lists joined with what is there. hyperparameters:
    by the names of Transformers' own cards. repo_id: the adapter's own, for the snippets. It is kept once it was given,
    and so are results and training for the same weights. No path of this machine and no token is written.
    A text edited between hf_lora's markers is renewed, and the card as it was is kept beside it. One without markers is
    the owner's: its metadata alone is updated. A card that cannot be read (no UTF-8, metadata that is no YAML) is left
    as it is. Each comes with a warning.
    """
    card = _read(path)
    if card is None:
        return
    there, data = card.data.to_dict(), card_data or ModelCardData()
    body = generated.split(card.text)
    subject, name = CardSubject(model, config, task_of(model, config), adapter_name), scrubbed(data.get("model_name"))
    results = results_of(data, subject.task)
    new = merged(there, own_metadata(subject), given_metadata(data), body.text or "")
    if index := index_with(there.get(_INDEX), name or "adapter", results):
        new[_INDEX] = index
    text = card.text
    if body.text is not None:
        base, repo = next(iter(listed(new.get("base_model"))), None), hub_id(repo_id) or repo_in(body.text)
        subject = replace(subject, base=base, repo=repo)
        weights, file = _hash(tensors), path.parent / WEIGHTS_NAME
        before = body.text if weights == body.weights else body.text.partition("\n## ")[0]
        fresh = text_of(subject, tensors, file, name, hyperparameters or {}, results, before)
        text = body.with_text(fresh, weights, "\r\n" if "\r\n" in card.text else "\n")
    kept = _keep(path) if body.is_edited else None
    _write(path, card, new, text)
    if kept is not None:
        _warn(path, f"was edited between hf_lora's markers, where it is renewed; as it was it is kept as {kept.name}")
    if body.looks_generated:
        _warn(
            path,
            "has text of hf_lora's outside of its markers, which may describe other weights; take it out",
        )


def amend_card(path: Path, card_data: ModelCardData) -> None:
    """Add to the metadata of a card, as `write_card` does with card_data; its text stays."""
    card = _read(path)
    if card is not None:
        new = merged(card.data.to_dict(), {}, given_metadata(card_data), "")
        _write(path, card, new, card.text)


def is_of_other_weights(path: Path, source: Path) -> bool:
    """Return whether a card's text of hf_lora's may be of other weights than an adapter's own card, `source`."""
    there, own = (generated.split(card.read_text(encoding="utf-8", errors="replace")) for card in (path, source))
    return there.looks_generated or (bool(there.text) and (there.weights is None or there.weights != own.weights))


def _read(path: Path) -> RepoCard | None:
    """Return a card, an empty one where there is none; None (and a warning) where it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig") if path.is_file() else ""
        if text.count("\r") > text.count("\n"):  # RepoCard writes such line ends, and cannot read them
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        found = REGEX_YAML_BLOCK.match(text)
        if found is None or (found[2].strip() and yaml.load(found[2], _Metadata) is None):
            # No metadata: a text, which may well begin with a line "---".
            newline = "\r\n" if "\r\n" in text else "\n"
            text = newline.join(["---", "", "---", *(["", text] if text else [""])])
        return RepoCard(text)
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        why = f"its metadata is no YAML mapping ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    _warn(path, f"is left as it is and may describe other weights: {why}. Mend or remove it to get a new one", 4)
    return None


class _Metadata(yaml.SafeLoader):
    """YAML in which no key is there twice: the Hub takes no other, and one of the values would go."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
        return super().construct_mapping(node, deep)


def _keep(path: Path) -> Path:
    """Keep a copy of a card beside it, under a name of its content; return where."""
    content = path.read_bytes()
    kept = path.with_name(f"{path.stem}.edited-{hashlib.sha256(content).hexdigest()[:8]}{path.suffix}")
    write_atomically(kept, content)
    return kept


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a short hash of an adapter's weights, whatever comes before their names."""
    found = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:8]


def _warn(path: Path, what: str, stacklevel: int = 3) -> None:
    warnings.warn(f"the card {path} {what}.", stacklevel=stacklevel)


def _write(path: Path, card: RepoCard, metadata: dict[str, Any], text: str) -> None:
    if metadata != card.data.to_dict() or text != card.text:
        card.data, card.text = CardData(**metadata), text
        write_atomically(path, str(card).encode())
