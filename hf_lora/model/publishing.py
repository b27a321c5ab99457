"""Publishing an adapter: its own files go to the Hub, never the base's, no path of this machine, no secret."""

import copy
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCardData, constants
from torch import Tensor

from ..errors import AdapterFileError, ArgumentError, HubError, HubNotFoundError, ModelError
from ..files.disk import write_atomically
from ..files.hub_calls import Request, call
from ..files.hub_files import fetch
from ..files.names import CARD_NAME, CONFIG_NAME, NOTES_KEY, TASK_NAME, WEIGHTS_NAME, places_of
from ..files.privacy import is_local_base, public_base
from ..files.tensors import write_tensors
from ..files.transaction import folders_of_adapters, settled
from ..formats.contents import Contents
from ..hub.card.metadata import joined
from ..hub.card.writing import amend_card, is_of_other_weights
from ..hub.uploads import Commit, commit, refuse_paths, scrub_configs
from .arguments import as_card_data
from .hints import checked, refuse_unknown
from .loading import opened
from .saving import save_adapters

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
# What Transformers, accelerate and others pass when they save any model -> the values that ask for nothing else than
# what is done here; None for those that mean nothing for an adapter's three files.
_OF_A_BASE: dict[str, tuple[Any, ...] | None] = {
    "distributed_checkpoint": (False, None),
    "max_shard_size": None,
    "safe_serialization": (True, None),
    "save_function": None,
    "save_original_format": None,
    "save_peft_format": (True, None),
    "use_temp_dir": None,
    "variant": (None,),
}
_OF_SAVING = ("save_directory", "is_main_process", "state_dict", "push_to_hub", "adapter_name", "card_data")
_CHECKPOINT = re.compile(r"checkpoint-\d+")

_CONVERTS = "path_initial_model_for_weight_conversion"  # PEFT's argument


def save_pretrained(
    model: Any,
    directory: Path,
    is_main_process: bool,
    state_dict: Mapping[str, Tensor] | None,
    push_to_hub: bool,
    adapter_name: str | None,
    card_data: ModelCardData | Mapping[str, Any] | None,
    kwargs: Mapping[str, Any],
) -> None:
    """Write a model's adapters into a directory, and push them where that is asked (`LoRAModel.save_pretrained`)."""
    converts = kwargs.get(_CONVERTS) is not None
    card_data = as_card_data(card_data)
    refuse_unknown("save_pretrained()", kwargs, [*_OF_SAVING, *_FOR_PUSHING, *_OF_A_BASE, _CONVERTS])
    for name, values in _OF_A_BASE.items():
        if values is not None and name in kwargs and kwargs[name] not in values:
            raise ArgumentError(
                f"save_pretrained({name}={kwargs[name]!r}): an adapter is written as adapter_config.json and one "
                f"{WEIGHTS_NAME} with PEFT's names, and in no other way. Leave {name} out."
            )
    idle = [name for name in _FOR_PUSHING if kwargs.get(name) and name not in ("base_model", "token")]
    if idle and not push_to_hub:
        warnings.warn(
            f"save_pretrained({', '.join(f'{name}={kwargs[name]!r}' for name in idle)}) has no effect without "
            "push_to_hub=True: nothing is uploaded.",
            stacklevel=3,
        )
    bases = None
    if (base := kwargs.get("base_model")) is not None:
        if not isinstance(base, str) or not base:
            raise ModelError(f"base_model={base!r}: give the base's Hub id, or the folder that holds it.")
        bases = dict.fromkeys(model._lora.configs, base)
    save_adapters(
        model, directory, adapter_name, state_dict, write=is_main_process, card_data=card_data, bases=bases,
        converts=converts,
    )  # fmt: skip
    if is_main_process and push_to_hub:
        given = {k: v for k, v in kwargs.items() if k in _FOR_PUSHING and k != "repo_id"}
        repo = kwargs.get("repo_id") or directory.resolve().name
        model.push_to_hub(repo, adapter_name=adapter_name, state_dict=state_dict, card_data=card_data, **given)


@checked("push_to_hub()")
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
    card_data: ModelCardData | Mapping[str, Any] | None = None,
) -> str:
    """Upload a model's adapters in one commit and return its URL (`LoRAModel.push_to_hub`)."""
    configs = {n: c for n, c in model._lora.configs.items() if adapter_name in (None, n)}
    bases = {n: public_base(c.base_model_name_or_path, base_model, f"the adapter {n!r}") for n, c in configs.items()}
    places = list(places_of(list(configs)).values())
    card_data = as_card_data(card_data)
    if tags:
        card_data = ModelCardData() if card_data is None else copy.deepcopy(card_data)
        card_data.tags = joined(card_data.tags, tags)
    tokenizer = processing_class if tokenizer is None else tokenizer
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise ModelError(f"tokenizer= takes what has save_pretrained, not a {type(tokenizer).__name__}.")

    def write(folder: Path, repo_id: str) -> None:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        known = repo_id if places == [""] else None  # the cards in folders have no repo of their own
        save_adapters(model, folder, adapter_name, state_dict, card_data=card_data, repo_id=known, bases=bases)

    named = [c.base_model_name_or_path for c in configs.values()]
    how = Commit(commit_message, commit_description, private, token, revision, create_pr)
    return _publish(write, repo_id, places, named, bases, how)


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
    repo has a card already, that one stays), a tokenizer's files, and how a run prepared its rows. Weights in a pickle
    are written as safetensors.
    Raises AdapterFileError, ConfigError, ModelError and HubError; the folder stays as it is.
    """
    places = _adapters_in(directory)
    found = {place: opened(directory / place) for place in places}  # only what can be loaded is pushed
    named = {place: contents.config.base_model_name_or_path for place, contents in found.items()}
    way = "name it on the Hub with --base-model org/name"
    bases = {p: public_base(base, base_model, f"the adapter in {directory / p}", way) for p, base in named.items()}

    def write(folder: Path, repo_id: str) -> None:
        for name in (*TOKENIZER_FILES, TASK_NAME):
            if (directory / name).is_file():
                shutil.copyfile(directory / name, folder / name)
        for place, contents in found.items():
            _copy_adapter(contents, directory / place, folder / place, bases[place])

    how = Commit(commit_message, None, private, None, revision, create_pr)
    return _publish(write, repo_id, places, list(named.values()), bases, how)


def refuse_base_repo(repo_id: str, bases: Collection[str]) -> None:
    """Raise ModelError where an adapter would go to the main branch of its base's own repo."""
    if repo_id in bases:
        raise ModelError(
            f"{repo_id} is the base's own repo: whoever loads the base from there would get the adapter as well. Push "
            "the adapter to a repo of its own, to a branch (revision=), or as a pull request (create_pr=True)."
        )


def _publish(
    write: Callable[[Path, str], None],
    repo_id: str,
    places: Sequence[str],
    bases: Sequence[str | None],
    published: Mapping[str, str],
    how: Commit,
) -> str:
    """Commit what `write` puts into a folder, where the cards lie that the repo has; return the commit's URL.

    write: takes the folder and the repo's full id. places: the adapters' places in it. bases: how they name their
    bases, of which no path is published; published: the names that are.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"cannot push to {repo_id}: HF_HUB_OFFLINE is set.")
    if "/" not in repo_id:  # the repo of whose token it is
        whoami, subject = huggingface_hub.HfApi().whoami, Request(repo_id, token=how.token, doing="write to")
        repo_id = f"{call(lambda: whoami(how.token), subject)['name']}/{repo_id}"
    if not how.revision and not how.create_pr:
        refuse_base_repo(repo_id, published.values())
    local = {base for base in bases if base and is_local_base(base) and _is_path(base)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "adapter")
        cards = _fetch_cards(repo_id, places, folder, how, Path(temporary, "cache"))
        write(folder, repo_id)
        for place in places:
            refuse_paths(folder / place / CONFIG_NAME)
        scrub_configs(folder)
        for card, content in cards.items():
            if card.read_bytes() == content:  # perhaps one that nobody can read, which the Hub would refuse
                card.unlink()
        paths = [*local, *(os.path.abspath(os.path.expanduser(base)) for base in local)]
        info = commit(folder, repo_id, how, paths)
    return str(info.pr_url or info.commit_url)


def _fetch_cards(repo_id: str, places: Sequence[str], folder: Path, how: Commit, cache: Path) -> dict[Path, bytes]:
    """Put the cards that a repo has, on the branch or else on main, where the adapters' own go; return them."""
    cards = {}
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for branch in dict.fromkeys((how.revision, None)):
            try:
                found = fetch(repo_id, CARD_NAME, subfolder=place, revision=branch, token=how.token, cache_dir=cache)
            except HubNotFoundError:  # no such repo, or no such branch yet
                continue
            if found is not None:
                card = folder / place / CARD_NAME
                shutil.copyfile(found, card)
                cards[card] = card.read_bytes()
            break
    return cards


def _adapters_in(directory: Path) -> list[str]:
    """Return where in a folder adapters lie: "" for its top, and names of folders."""
    if not directory.is_dir():
        raise AdapterFileError(f"{directory} is not a directory; push the one that save_pretrained wrote.")
    places = [""] if settled(directory) is not None else []
    places += [name for name in folders_of_adapters(directory) if not _CHECKPOINT.fullmatch(name.partition("/")[0])]
    if not places:
        raise AdapterFileError(f"{directory} holds no {CONFIG_NAME}, so it is no adapter's folder.")
    return places


def _copy_adapter(adapter: Contents, source: Path, target: Path, base: str) -> None:
    """Copy an adapter's three files, its base named as it is on the Hub, the card only where there is none yet."""
    before = adapter.config.base_model_name_or_path
    found = settled(source)
    assert found is not None
    config = found.read_bytes()
    if base != before:
        config = (json.dumps({**json.loads(config), "base_model_name_or_path": base}, indent=2) + "\n").encode()
    write_atomically(target / CONFIG_NAME, config)
    if (source / WEIGHTS_NAME).is_file():
        shutil.copyfile(source / WEIGHTS_NAME, target / WEIGHTS_NAME)
    else:
        notes = json.dumps(adapter.notes, sort_keys=True)
        write_tensors(target / WEIGHTS_NAME, adapter.tensors, {"format": "pt", NOTES_KEY: notes})
    card = target / CARD_NAME
    if (source / CARD_NAME).is_file() and card.exists() and is_of_other_weights(card, source / CARD_NAME):
        warnings.warn(
            "the repo's card stays and may describe other weights; model.push_to_hub(...) renews it.", stacklevel=2
        )
    if (source / CARD_NAME).is_file() and not card.exists():
        text = (source / CARD_NAME).read_bytes()
        write_atomically(card, text.replace(before.encode(), base.encode()) if before and _is_path(before) else text)
    if base != before and card.exists():
        amend_card(card, ModelCardData(base_model=base))


def _is_path(name: str) -> bool:
    """Whether a name is worth looking for: a bare word stands in too many texts that mean another."""
    return "/" in name or "\\" in name or name.startswith("~")
