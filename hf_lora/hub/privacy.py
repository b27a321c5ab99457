"""What must not be published: tokens, paths of a machine, the names of its user and of itself."""

from __future__ import annotations

import os
import platform
import re
from datetime import date, datetime
from pathlib import Path
from typing import Any

from .places import is_local_base

__all__ = ["hub_id", "is_private", "public_name", "public_setting", "scrubbed"]

# The prefixes that token makers give their tokens, passwords in addresses, JSON web tokens.
_TOKEN = re.compile(
    r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{10,}|sk-(?:[a-z]+-)?[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|xox[abpr]-[\w-]{10,}|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{20,}|eyJ[\w-]{10,}|Bearer\s+\S+)"
    r"|://[^/\s]+@"
)
# A run of letters and digits that is no word.
_KEY = re.compile(r"(?=[A-Za-z]*\d)[A-Za-z0-9]{32,}")
_PATH = re.compile(
    r"""(?:^|[\s"'`=:,;(\[{<>|])(?:~\w*|\.{1,2})?/(?=[^/\s])"""  # /x, ~/x, ~me/x, ./x, ../x
    r"""|\b[A-Za-z]:[\\/](?!/)|\\\\|\bfile:|^~\w*$|^\.{1,2}$|/checkpoint-\d+\b"""  # C:\x, C:/x, \\host\x, file://x, ~
)
_SECRET_KEYS = {
    *("token", "secret", "password", "passwd", "key", "credential", "credentials", "auth", "cookie"),
    *("path", "dir", "directory", "folder", "file", "user", "username", "host", "hostname", "url", "endpoint", "hub"),
}


def is_private(text: str) -> bool:
    """Return whether a text holds what looks like a token or a path."""
    return bool(_TOKEN.search(text) or _PATH.search(text))


def hub_id(name: str | None) -> str | None:
    """Return a model's or data set's id where it can be one of the Hub's, else None.

    What exists here as a file or directory is local, whatever it looks like, and so is a Trainer's checkpoint.
    """
    return None if not name or is_private(name) or is_local_base(name) else name


def public_name(name: str) -> str | None:
    """Return a name as it may be published: of a path its last component, of a token nothing."""
    if is_private(name) or os.path.exists(name) or "\\" in name:
        name = re.split(r"[\\/]", name.rstrip("\\/"))[-1]
    return None if not name or is_private(name) else name


def public_setting(name: str, value: Any) -> str | int | float | bool | None:
    """Return a hyperparameter's value as it may be published, None where it may not.

    Withheld are settings whose name speaks of secrets or places, and texts with a slash or a backslash in them, with
    what could be a key, or with the name of this machine or its user. (Ids of the Hub may hold the user's: they are
    chosen to be public.)
    """
    if _SECRET_KEYS & set(re.split(r"[^a-z]+", name.lower())) or is_private(name):
        return None
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    looks_private = re.search(r"[\\/]", text) or _KEY.search(text) or is_private(text) or _names_this_machine(text)
    return None if looks_private or len(text) > 300 else text


def scrubbed(value: Any) -> Any:
    """Return metadata without its private texts: those of lists and mappings are dropped, a private text is None.

    What YAML has no form for becomes plain: NumPy's and torch's numbers (YAML would write them as Python's pickled
    objects, which no reader of a card takes) numbers, and anything else its text.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        return None if is_private(value) else str.__str__(value)
    if isinstance(value, list | tuple | set):
        return [kept for kept in map(scrubbed, value) if kept is not None]
    if isinstance(value, dict):
        kept = {k: scrubbed(v) for k, v in value.items() if not (isinstance(k, str) and is_private(k))}
        return {k: v for k, v in kept.items() if v is not None}
    return value if value is None or type(value) in (bool, int, float, date, datetime) else scrubbed(str(value))


def _names_this_machine(text: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) for name in _own_names())


def _own_names() -> list[str]:
    """Return the user's name (the home directory's) and this machine's, where they tell anything."""
    names = {Path(os.path.expanduser("~")).name, platform.node()}
    return [name for name in names if len(name) > 2 and name.lower() not in _COMMON]


# Names of many machines' users that are also words of settings.
_COMMON = {"root", "user", "users", "home", "admin", "ubuntu", "localhost", "main", "test", "default", "model", "base"}
