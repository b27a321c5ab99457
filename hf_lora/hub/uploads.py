"""Which files of a training run go to the Hub, and how: by name only, free of secrets, with errors as ours.

Everything is put into a folder of its own first (hard links where the disk allows it), because the training goes on
and old checkpoints are deleted while that folder is uploaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub

from ..errors import HubError
from ..files.disk import write_atomically
from ..files.names import CARD_NAME, CONFIG_NAME, WEIGHTS_NAMES, places_of
from ..files.privacy import holds_token, names_path
from .commits import commit

__all__ = [
    "Private",
    "stage_adapters",
    "stage_checkpoint",
    "stage_logs",
    "upload",
]

ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAMES[0])
STATE_NAME = "trainer_state.json"
# What resuming reads besides the adapter. Never training_args.bin: a pickle that holds the token and local paths.
RESUMING = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_*.pth")


@dataclass(frozen=True)
class Private:
    """What a run must not publish: a token, and a folder of this machine as an absolute path ("" for none)."""

    token: str | None
    folder: str

    @classmethod
    def of(cls, token: str | None, folder: str | os.PathLike[str]) -> Private:
        """Take a call's token, and a Trainer's folder."""
        place = os.path.abspath(folder)
        return cls(token, "" if place == os.path.dirname(place) else place)  # every path has the root in it

    def scrubbed(self, value: Any) -> Any:
        """Return a JSON value without tokens, and without texts that name the folder or something in it."""
        if isinstance(value, dict):
            return {k: self.scrubbed(v) for k, v in value.items() if not self.is_in(k.encode())}
        if isinstance(value, list):
            return [self.scrubbed(item) for item in value]
        return None if isinstance(value, str) and self.is_in(value.encode()) else value

    def is_in(self, content: bytes) -> bool:
        """Return whether a file's content holds a token or the folder's path."""
        return holds_token(content, self.token) or self.names_folder(content)

    def names_folder(self, content: bytes) -> bool:
        """Return whether a file's content names the folder."""
        return bool(self.folder) and names_path(content, self.folder)


def stage_adapters(source: Path, target: Path, names: Sequence[str], *, cards: bool = True) -> None:
    """Take adapters' files along, and their cards where there are some. Raises HubError where one is missing."""
    for name, place in places_of(names).items():
        missing = [file for file in ADAPTER_FILES if not _take(source / place / file, target / place / file)]
        if missing:
            raise HubError(f"{source / place} lacks {' and '.join(missing)} of the adapter {name!r}: nothing to push.")
        if cards:
            _take(source / place / CARD_NAME, target / place / CARD_NAME)


def stage_checkpoint(source: Path, target: Path, names: Sequence[str], private: Private) -> None:
    """Take along what resuming from a checkpoint needs; its state names no place of this machine."""
    stage_adapters(source, target, names, cards=False)
    for pattern in RESUMING:
        for path in source.glob(pattern):
            _take(path, target / path.name)
    if (source / STATE_NAME).is_file():
        state = private.scrubbed(json.loads((source / STATE_NAME).read_text(encoding="utf-8")))
        state["best_model_checkpoint"] = None  # it is not there where this one is downloaded to
        write_atomically(target / STATE_NAME, (json.dumps(state, indent=2, sort_keys=True) + "\n").encode())


def stage_logs(source: Path, target: Path, private: Private) -> None:
    """Take TensorBoard's logs along, except those that name the folder they were written to.

    As copies: the training goes on writing them, and what is uploaded has to keep its checksum.
    """
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        copy = target / path.relative_to(source)
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            if private.is_in(copy.read_bytes()):
                copy.unlink()


def upload(
    folder: Path, repo_id: str, message: str, *, token: Any, revision: str | None, private: Private
) -> huggingface_hub.CommitInfo:
    """Upload a staged folder in one commit. Raises HubError; also where a file holds a token."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".json" and path.name.endswith("_config.json"):
            text = path.read_bytes()
            if private.names_folder(text) and not holds_token(text, private.token):
                path.write_text(json.dumps(private.scrubbed(json.loads(text)), indent=2) + "\n", encoding="utf-8")
        if holds_token(path.read_bytes(), private.token):
            name = path.relative_to(folder)
            raise HubError(
                f"{name} holds the token that it would be uploaded with, or what looks like one, so nothing was pushed "
                f"to {repo_id}."
            )
        files[path.relative_to(folder).as_posix()] = path
    return commit(files, repo_id, message=message, token=token, revision=revision)


def _take(source: Path, target: Path) -> bool:
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if source.name in (CARD_NAME, CONFIG_NAME):  # written anew in the staged folder, and small
        shutil.copyfile(source, target)
    else:
        try:
            os.link(source, target)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, target)
    return True
