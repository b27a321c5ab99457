"""Publishing an adapter: its own files go to the Hub, never the base's, no path of this machine, no secret."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCardData, constants
from torch import Tensor

from ..errors import AdapterFileError, HubError, HubNotFoundError, ModelError
from ..files.disk import write_atomically
from ..files.hub_calls import Request, call
from ..files.hub_files import fetch
from ..files.names import CARD_NAME, CONFIG_NAME, NOTES_KEY, WEIGHTS_NAMES, places_of
from ..files.privacy import holds_token, is_local_base, public_base
from ..files.tensors import write_tensors
from ..formats.contents import Contents
from ..formats.opening import open_adapter
from ..hub.card.writing import amend_card
from ..hub.commits import commit
from .saving import save_adapters

__all__ = ["push_adapter", "push_folder", "save_pretrained"]

ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAMES[0], CARD_NAME)
# What tokenizers and processors are made of; a folder's other files stay where they are.
TOKENIZER_FILES = (
    "added_tokens.json", "bpe.codes", "chat_template.jinja", "chat_template.json", "emoji.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "sentencepiece.bpe.model", "source.spm",
    "special_tokens_map.json", "spiece.model", "spm.model", "target.spm", "tekken.json", "tiktoken.model",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "video_preprocessor_config.json", "vocab.bpe",
    "vocab.json", "vocab.txt",
)  # fmt: skip
_FOR_PUSHING = (
    "base_model", "commit_description", "commit_message", "create_pr", "private", "repo_id", "revision", "tags",
    "token",
)  # fmt: skip
# What Transformers, accelerate and others pass when they save any model: of no meaning for an adapter's three files.
_OF_A_BASE = (
    "distributed_checkpoint", "max_shard_size", "safe_serialization", "save_function", "save_original_format",
    "save_peft_format", "use_temp_dir", "variant",
)  # fmt: skip
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def save_pretrained(
    model: Any,
    directory: Path,
    is_main_process: bool,
    state_dict: Mapping[str, Tensor] | None,
    push_to_hub: bool,
    adapter_name: str | None,
    card_data: ModelCardData | None,
    kwargs: Mapping[str, Any],
) -> None:
    """Write a model's adapters into a directory, and push them where that is asked (`LoRAModel.save_pretrained`)."""
    if unknown := kwargs.keys() - {*_FOR_PUSHING, *_OF_A_BASE}:
        raise TypeError(
            f"save_pretrained() got unexpected keyword arguments: {', '.join(sorted(unknown))}. One adapter of "
            "several is chosen by adapter_name=."
        )
    save_adapters(model, directory, adapter_name, state_dict, write=is_main_process, card_data=card_data)
    if is_main_process and push_to_hub:
        given = {k: v for k, v in kwargs.items() if k in _FOR_PUSHING and k != "repo_id"}
        repo = kwargs.get("repo_id") or directory.resolve().name
        model.push_to_hub(repo, adapter_name=adapter_name, state_dict=state_dict, card_data=card_data, **given)


def push_adapter(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] | None = None,
    base_model: str | None = None,
    tokenizer: Any = None,
    processing_class: Any = None,
    adapter_name: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    card_data: ModelCardData | None = None,
) -> str:
    """Upload a model's adapters in one commit and return its URL (the pull request's with create_pr).

    adapter_name: only this one. state_dict, card_data: as save_pretrained takes them. tokenizer, processing_class: two
    names for what is uploaded along; anything with save_pretrained. tags: added to the card's. base_model: the base's
    Hub id, needed where it was loaded from a local path: nobody else could load the adapter, and the path is nobody's
    business. The card that the repo has is updated, not replaced.
    Raises ModelError, AdapterStateError and HubError; the model and every file here stay as they are.
    """
    configs = {n: c for n, c in model._lora.configs.items() if adapter_name in (None, n)}
    local = [name for c in configs.values() if (name := c.base_model_name_or_path) and is_local_base(name)]
    bases = {n: public_base(c.base_model_name_or_path, base_model, f"the adapter {n!r}") for n, c in configs.items()}
    places = list(places_of(list(configs)).values())
    with tempfile.TemporaryDirectory() as temporary:
        folder, repo_id = Path(temporary, "adapter"), _full_id(repo_id, token)
        there = _fetch_cards(repo_id, places, folder, revision, token, Path(temporary, "cache"))
        known = repo_id if places == [""] else None  # the cards in folders have no repo of their own
        data = _with_tags(card_data, tags)
        save_adapters(model, folder, adapter_name, state_dict, card_data=data, repo_id=known, bases=bases)
        files = _files_of(folder, places, there)
        files |= _saved_by(processing_class if tokenizer is None else tokenizer, Path(temporary, "tokenizer"))
        _refuse_secrets(files, local, token)
        return _committed(files, repo_id, commit_message, commit_description, private, token, revision, create_pr)


def push_folder(
    directory: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    base_model: str | None = None,
) -> str:
    """Upload a saved adapter's folder in one commit and return its URL (the pull request's with create_pr).

    What goes: the adapter at its top, those in its folders but for a Trainer's checkpoints, their cards (where the
    repo has a card already, that one stays) and a tokenizer's files. Weights in a pickle are written as safetensors.
    Raises AdapterFileError, ConfigError, ModelError and HubError; the folder stays as it is.
    """
    places = _adapters_in(directory)
    with tempfile.TemporaryDirectory() as temporary:
        folder, local = Path(temporary, "adapter"), []
        found = {place: _open(directory / place, base_model) for place in places}
        repo_id = _full_id(repo_id, None)
        there = _fetch_cards(repo_id, places, folder, revision, None, Path(temporary, "cache"))
        for place, (contents, base) in found.items():
            _copy_adapter(contents, directory / place, folder / place, base)
            local += [name for name in (contents.config.base_model_name_or_path,) if name and is_local_base(name)]
        files = _files_of(folder, places, there)
        files |= {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}
        _refuse_secrets(files, local, None)
        return _committed(files, repo_id, commit_message, None, private, None, revision, create_pr)


def _committed(
    files: Mapping[str, Path],
    repo_id: str,
    message: str | None,
    description: str | None,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    info = commit(
        files, repo_id, message=message or "Upload adapter", description=description, private=private, token=token,
        revision=revision, create_pr=create_pr,
    )  # fmt: skip
    return str(info.pr_url or info.commit_url)


def _with_tags(card_data: ModelCardData | None, tags: Sequence[str] | None) -> ModelCardData | None:
    if not tags:
        return card_data
    data = ModelCardData() if card_data is None else copy.deepcopy(card_data)
    data.tags = [*(data.tags or ()), *tags]
    return data


def _full_id(repo_id: str, token: str | bool | None) -> str:
    """Return a repo's id with its owner, which is whose token it is where none is named. Raises HubError offline."""
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"cannot push to {repo_id}: HF_HUB_OFFLINE is set.")
    if "/" in repo_id:
        return repo_id
    api = huggingface_hub.HfApi()
    return f"{call(lambda: api.whoami(token), Request(repo_id, token=token, doing='write to'))['name']}/{repo_id}"


def _fetch_cards(
    repo_id: str, places: Sequence[str], folder: Path, revision: str | None, token: str | bool | None, cache: Path
) -> dict[Path, bytes]:
    """Put the cards that a repo has, on the branch or else on main, where the adapters' own are written; return them.

    Those of main are not the branch's, and not returned.
    """
    there = {}
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for branch in dict.fromkeys((revision, None)):
            try:
                found = fetch(repo_id, _in(place, CARD_NAME), revision=branch, token=token, cache_dir=cache)
            except HubNotFoundError:  # no such repo, or no such branch yet
                continue
            if found is not None:
                shutil.copyfile(found, folder / place / CARD_NAME)
                if branch == revision:
                    there[folder / place / CARD_NAME] = found.read_bytes()
            break
    return there


def _files_of(folder: Path, places: Sequence[str], there: Mapping[Path, bytes]) -> dict[str, Path]:
    """Return the adapters' files by their places in the repo, without cards that are there as they are."""
    files = {_in(place, name): folder / place / name for place in places for name in ADAPTER_FILES}
    cards = {path for path in files.values() if path.name == CARD_NAME}
    unchanged = {path for path in cards if not path.exists() or there.get(path) == path.read_bytes()}
    return {name: path for name, path in files.items() if path not in unchanged}


def _saved_by(tokenizer: Any, folder: Path) -> dict[str, Path]:
    """Return the files that a tokenizer or processor saves, by their places in the repo; no weights."""
    if tokenizer is None:
        return {}
    if not hasattr(tokenizer, "save_pretrained"):
        raise ModelError(f"tokenizer= takes what has save_pretrained, not a {type(tokenizer).__name__}.")
    tokenizer.save_pretrained(folder)
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {f: p for f, p in files.items() if p.suffix not in (".safetensors", ".bin", ".pt", ".pth")}


def _adapters_in(directory: Path) -> list[str]:
    """Return where in a folder adapters lie: "" for its top, and names of folders."""
    if not directory.is_dir():
        raise AdapterFileError(f"{directory} is not a directory; push the one that save_pretrained wrote.")
    below = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_NAME}"))
    places = [""] if (directory / CONFIG_NAME).is_file() else []
    places += [name for name in below if not _CHECKPOINT.fullmatch(name)]
    if not places:
        raise AdapterFileError(f"{directory} holds no {CONFIG_NAME}, so it is no adapter's folder.")
    return places


def _open(directory: Path, base_model: str | None) -> tuple[Contents, str]:
    """Read an adapter, so that only one that can be loaded is pushed; return it with its base's Hub id."""
    found = open_adapter(str(directory), {}, required=True)
    assert found is not None
    return found, public_base(found.config.base_model_name_or_path, base_model, f"the adapter in {directory}")


def _copy_adapter(adapter: Contents, source: Path, target: Path, base: str) -> None:
    """Copy an adapter's three files, its base named as it is on the Hub, the card only where there is none yet."""
    before = adapter.config.base_model_name_or_path
    config = (source / CONFIG_NAME).read_bytes()
    if base != before:
        config = (json.dumps({**json.loads(config), "base_model_name_or_path": base}, indent=2) + "\n").encode()
    write_atomically(target / CONFIG_NAME, config)
    if (source / WEIGHTS_NAMES[0]).is_file():
        shutil.copyfile(source / WEIGHTS_NAMES[0], target / WEIGHTS_NAMES[0])
    else:
        notes = json.dumps(adapter.notes, sort_keys=True)
        write_tensors(target / WEIGHTS_NAMES[0], adapter.tensors, {"format": "pt", NOTES_KEY: notes})
    card = target / CARD_NAME
    if (source / CARD_NAME).is_file() and not card.exists():
        text = (source / CARD_NAME).read_bytes()
        write_atomically(card, text.replace(before.encode(), base.encode()) if before and _is_path(before) else text)
    if base != before and card.exists():
        amend_card(card, ModelCardData(base_model=base))


def _refuse_secrets(files: Mapping[str, Path], local: Sequence[str], token: str | bool | None) -> None:
    """Raise ModelError where a text among the files, or the header of the weights, names a local path or a token."""
    paths = {form for path in local if _is_path(path) for form in (path, os.path.abspath(os.path.expanduser(path)))}
    for name, file in files.items():
        text = _text(file)
        for path in paths:
            if path in text or json.dumps(path)[1:-1] in text:
                raise ModelError(f"{name} would publish the local path {path!r}; take it out of there first.")
        if holds_token(text, token):
            raise ModelError(f"{name} would publish what is, or looks like, a token of the Hub; take it out first.")


def _text(file: Path) -> str:
    """Return what a reader can read of a file: its text, or the header of a safetensors file."""
    if file.suffix != ".safetensors":
        return file.read_bytes().decode(errors="replace")
    with open(file, "rb") as weights:
        (length,) = struct.unpack("<Q", weights.read(8))
        return weights.read(length).decode(errors="replace")


def _is_path(name: str) -> bool:
    """Whether a name is worth looking for: a bare word stands in too many texts that mean another."""
    return "/" in name or "\\" in name or name.startswith("~")


def _in(place: str, file: str) -> str:
    return f"{place}/{file}" if place else file
