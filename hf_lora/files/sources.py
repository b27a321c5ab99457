"""Where an adapter's files lie: in a directory, in a repo of the Hub, or in one file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AdapterFileError, ArgumentError
from . import hub_files
from .privacy import is_repo_id
from .tensors import read_noted

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def place_of(given: object) -> str:
    """Return the name that a caller gave for a place with files.

    Raises ArgumentError for what is no name, AdapterFileError for a directory that this user may not look into.
    """
    if not isinstance(given, str | os.PathLike) or not isinstance(name := os.fspath(given), str):
        order = ": from_model(model, config) adapts a model, from_pretrained(name, base_model=model) loads an adapter"
        raise ArgumentError(
            f"a {type(given).__name__} is given where a name is wanted, which is a Hub id or a path"
            f"{order if hasattr(given, 'named_modules') else ''}."
        )
    if not name:
        raise AdapterFileError(
            "'' is neither a directory or file of this machine nor the id of a Hub repo (owner/name)."
        )
    if os.path.isdir(name) and not os.access(name, os.R_OK | os.X_OK):
        raise AdapterFileError(f"{name} cannot be looked into by this user; change its permissions, or copy it.")
    return name


@dataclass(frozen=True)
class Source:
    """A place to read files from, by their plain names.

    name: what the caller gave: a directory, a file or a Hub id. hub: the arguments that the Hub's client takes, of
    HUB_KWARGS, those that are not None; `subfolder` counts for a directory too.
    """

    name: str
    hub: Mapping[str, Any]

    @classmethod
    def of(cls, name: str | os.PathLike[str], kwargs: Mapping[str, Any]) -> Source:
        """Return the source that a name stands for; kwargs may hold other things than Hub arguments."""
        return cls(place_of(name), {key: kwargs[key] for key in HUB_KWARGS if kwargs.get(key) is not None})

    @property
    def is_file(self) -> bool:
        """Whether the name is one file, rather than a place with files in it."""
        return os.path.isfile(self.name)

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine by the caller's own word, so that nothing is asked of the Hub.

        What came from the Hub, by contrast, may not make anybody read a local path.
        """
        return os.path.exists(self.name)

    @property
    def missing(self) -> str:
        """Why nothing was found, for the error where an adapter is required."""
        if self.is_file:
            return f"{self.name} is no adapter in one file"
        if self.is_local or is_repo_id(self.name):
            where = f"the folder {self.hub['subfolder']} of {self.name}" if "subfolder" in self.hub else self.name
            return f"{where} holds no adapter"
        meant = [os.path.expanduser(self.name), self.name.removeprefix("https://huggingface.co/").strip("/")]
        hint = next((f" (did you mean {m!r}?)" for m in meant if os.path.exists(m) or is_repo_id(m)), "")
        return (
            f"{self.name!r} is neither a directory or file of this machine nor the id of a Hub repo (owner/name){hint}"
        )

    def tensors(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors of a file that `find` found, and what hf_lora noted in it. Raises AdapterFileError."""
        return read_noted(path)

    def find(self, file: str) -> Path | None:
        """Return where a file lies on this machine, downloaded and verified if need be; None where there is none.

        file: its plain name, never one that a stranger's file gave unchecked. Raises HubError where the repo cannot be
        read. What is there and no regular file is refused when it is read.
        """
        if not self.is_local:
            return hub_files.fetch(self.name, file, **self.hub)
        path = Path(self.name, self.hub.get("subfolder", ""), file)
        return path if os.path.lexists(path) else None
