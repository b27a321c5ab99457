"""Where an adapter's files lie: in a directory, in a repo of the Hub, or in one file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import hub

__all__ = ["HUB_KWARGS", "Source"]

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


@dataclass(frozen=True)
class Source:
    """A place to read files from, by their plain names.

    name: what the caller gave: a directory, a file or a Hub id. hub: the arguments that the Hub's client takes, of
    HUB_KWARGS, those that are not None; `subfolder` counts for a directory too.
    """

    name: str
    hub: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, kwargs: Mapping[str, Any]) -> Source:
        """Return the source that a name stands for; kwargs may hold other things than Hub arguments."""
        return cls(name, {key: kwargs[key] for key in HUB_KWARGS if kwargs.get(key) is not None})

    @property
    def is_file(self) -> bool:
        """Whether the name is one file, rather than a place with files in it."""
        return Path(self.name).is_file()

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be asked of the Hub."""
        return Path(self.name).exists()

    def find(self, file: str) -> Path | None:
        """Return where a file lies on this machine, downloaded and verified if need be; None where there is none.

        Raises HubError where the repo cannot be read.
        """
        if not self.is_local:
            return hub.fetch(self.name, file, **self.hub)
        path = Path(self.name, self.hub.get("subfolder", ""), file)
        return path if path.is_file() else None
