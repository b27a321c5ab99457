"""Which files of a training run go to the Hub, by name only and free of what names this machine; and their commit.

Everything is copied into a folder of its own first, because the training goes on, writes its logs, and deletes old
checkpoints while that folder is uploaded.
"""

import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitInfo, HfApi

from ..errors import HubError, ModelError
from ..files.disk import write_atomically
from ..files.hub_calls import Request, call
from ..files.names import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, places_of
from ..files.privacy import holds_token, is_path, named_path

STATE_NAME = "trainer_state.json"
# What resuming reads besides the adapter. Never training_args.bin: a pickle that holds the token and local paths.
RESUMING = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_*.pth")
# TensorBoard calls a run <time>_<host>, and its files events.out.tfevents.<time>.<host>.<process>.<number>.
_RUN = re.compile(r"(.*\d\d_\d\d-\d\d-\d\d)_.+")
_EVENTS = re.compile(r"(events\.out\.tfevents\.\d+)\..+")


def private_names(folder: str | os.PathLike[str]) -> list[str]:
    """Return what nothing of a run may name: its folder as an absolute path, and this machine, as runs are called."""
    place, host = os.path.abspath(folder), platform.node()
    # Every path has the root in it, and every text a name of no letters.
    return [name for name in (place, host and f"_{host}") if name and name != os.path.dirname(name)]


def stage_adapters(source: Path, target: Path, names: Sequence[str], cards: Sequence[Path] = ()) -> None:
    """Take adapters' files along, and each one's card from the first folder of `cards` that has it.

    Raises HubError where a file is missing.
    """
    for name, place in places_of(names).items():
        wanted = (CONFIG_NAME, WEIGHTS_NAME)
        missing = [file for file in wanted if not _take(source / place / file, target / place / file)]
        if missing:
            raise HubError(f"{source / place} lacks {' and '.join(missing)} of the adapter {name!r}: nothing to push.")
        any(_take(folder / place / CARD_NAME, target / place / CARD_NAME) for folder in cards)


def stage_checkpoint(source: Path, target: Path, names: Sequence[str], private: Sequence[str]) -> None:
    """Take along what resuming from a checkpoint needs; its state names no place of this machine."""
    stage_adapters(source, target, names)
    for pattern in RESUMING:
        for path in source.glob(pattern):
            _take(path, target / path.name)
    if (source / STATE_NAME).is_file():
        state = _scrubbed(json.loads((source / STATE_NAME).read_text(encoding="utf-8")), private)
        state["best_model_checkpoint"] = None  # it is not there where this one is downloaded to
        _write_json(target / STATE_NAME, state)


def stage_logs(source: Path, target: Path, private: Sequence[str], token: str | None) -> None:
    """Take TensorBoard's logs along under names without the machine's, except those that hold something private.

    A log holds the training's arguments, and so the place of its folder where that was given as an absolute path.
    """
    kept = []
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        if path.is_file():
            content = path.read_bytes()
            if not holds_token(content, token) and not named_path(content, private):
                copy = _public_log(target, path.relative_to(source))
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
            else:
                kept.append(path.name)
    if kept:
        told = f"{', '.join(kept[:3])}{' and others' if len(kept) > 3 else ''}"
        why = "they hold a token or name this machine or its folders, as with an absolute output_dir or logging_dir"
        warnings.warn(f"of the logs in {source}, {told} are not pushed: {why}.", stacklevel=2)


def refuse_paths(config: Path) -> None:
    """Raise ModelError where an adapter's config holds a path: what it means there, its owner has to say."""
    values = json.loads(config.read_bytes())
    if keys := [key for key, value in values.items() if _scrubbed(value, ()) != value]:
        raise ModelError(
            f"{config.name} would publish a local path under {', '.join(keys)}; take it out of there first."
        )


def scrub_configs(folder: Path, private: Sequence[str] = ()) -> None:
    """Take paths and private names out of a staged folder's configs, as where a tokenizer keeps its cache."""
    for path in folder.rglob("*_config.json"):
        try:
            config = json.loads(path.read_bytes())
        except ValueError:
            continue  # a tokenizer's, for whoever loads it to mend
        if (public := _scrubbed(config, private)) != config:
            _write_json(path, public)


def _public_log(target: Path, path: Path) -> Path:
    *folders, name = path.parts
    public = target.joinpath(*(_RUN.sub(r"\1", folder) for folder in folders), _EVENTS.sub(r"\1", name))
    number, free = 0, public
    while free.exists():  # another file that was begun in the same second
        number += 1
        free = public.with_name(f"{public.name}.{number}")
    return free


def _scrubbed(value: Any, private: Sequence[str]) -> Any:
    """Return a JSON value without texts that hold a private name or are a path: None stands for them, but in lists."""
    if isinstance(value, dict):
        return {key: _scrubbed(each, private) for key, each in value.items()}
    if isinstance(value, list):
        return [_scrubbed(each, private) for each in value if not _is_private(each, private)]
    return None if _is_private(value, private) else value


def _is_private(value: Any, private: Sequence[str]) -> bool:
    return isinstance(value, str) and (is_path(value) or bool(named_path(value.encode(errors="replace"), private)))


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _take(source: Path, target: Path) -> bool:
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return True


class Commit(NamedTuple):
    """How files go into a repo. revision: the branch, made where it is missing. private: of a repo that is made."""

    message: str | None = None
    description: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False  # propose it as a pull request instead


def commit(folder: Path, repo_id: str, how: Commit, paths: Sequence[str] = ()) -> CommitInfo:
    """Put a folder's files into a repo, made where it is missing, in one commit, and return what the Hub says of it.

    paths: of this machine, which no file may name. Where the files are there already, the last commit is returned.
    Raises ModelError where a file holds a path or a token, and HubError, also where a repo is public against `private`.
    """
    message, description, private, token, revision, create_pr = how
    _refuse_secrets(folder, paths, token)
    api = HfApi(token=token)

    def upload() -> CommitInfo:
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        except KeyError:  # the client reads the url of a repo that is there, which this answer lacks
            raise HubError(
                f"cannot write to {repo_id}: the Hub answers that it conflicts with something, and not with what; look "
                f"at https://huggingface.co/{repo_id} and try again."
            ) from None
        if private and not api.model_info(repo).private:
            raise HubError(
                f"{repo} exists and is public, so nothing was pushed to it as private=True asks; make it private at "
                f"https://huggingface.co/{repo}/settings, or choose another name."
            )
        if not (create_pr or revision in (None, "main") or str(revision).startswith("refs/")):
            api.create_branch(repo, branch=str(revision), exist_ok=True)
        return api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message or "Upload adapter",
            commit_description=description, revision=revision, create_pr=create_pr,
        )  # fmt: skip

    # Files that have arrived are not sent again; a pull request whose answer is lost would be opened twice.
    return call(upload, Request(repo_id, revision, token, "write to"), again=not create_pr)


def _refuse_secrets(folder: Path, paths: Sequence[str], token: str | bool | None) -> None:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = file.relative_to(folder).as_posix(), file.read_bytes()
        if path := named_path(content, paths):
            raise ModelError(f"{name} would publish the local path {path!r}; take it out of there first.")
        if holds_token(content, token):
            raise ModelError(f"{name} would publish what is, or looks like, a token; take it out first.")
