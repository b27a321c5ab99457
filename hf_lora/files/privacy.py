"""What others may see: ids of the Hub, and texts without tokens, paths, or the names of this machine and its user."""

import json
import os
import platform
import re
from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import ModelError

# What a token looks like: too long to be a word. Large files are searched for these, which is fast where a pattern
# begins with letters.
_TOKENS = (
    r"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}[\w.-]*",  # Hugging Face
    r"api_org_[A-Za-z0-9]{20,}",
    r"sk-(?:[a-z0-9]+-){0,2}(?=[A-Za-z]*\d)[A-Za-z0-9]{20,}[\w-]*",  # OpenAI, Anthropic
    r"gh[opsur]_[A-Za-z0-9]{30,}",  # GitHub
    r"github_pat_\w{22,}",
    r"glpat-[\w-]{20,}",  # GitLab
    r"xox[abpr]-[\w-]{10,}",  # Slack
    r"AKIA[A-Z0-9]{12,}",  # AWS
    r"ASIA[A-Z0-9]{12,}",
    r"AIza[\w-]{30,}",  # Google
    r"npm_[A-Za-z0-9]{30,}",
    r"pypi-[\w-]{40,}",
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"wandb_v\d+_\w{20,}",
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}[\w.-]*",  # JSON web tokens
)
_IN_FILES = [re.compile(pattern.encode()) for pattern in _TOKENS]
# In a text also what a header or an address holds before its "@".
_SECRET = re.compile("|".join((*_TOKENS, r"(?<=Bearer )\s*\S+", r"(?<=://)[^/\s]+(?=@)")))
_SIGNATURE = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")  # of a presigned URL: as good as a token
# A run of letters and digits that is no word.
_KEY = re.compile(r"(?=[A-Za-z]*\d)[A-Za-z0-9]{32,}")
_PATH = re.compile(
    r"""(?:^|[\s"'`=:,;(\[{<>|])(?:~\w*|\.{1,2})?/(?=[^/\s])"""  # /x, ~/x, ~me/x, ./x, ../x
    r"""|\b[A-Za-z]:[\\/](?!/)|\\\\|\bfile:|^~\w*$|^\.{1,2}$|/checkpoint-\d+\b"""  # C:\x, C:/x, \\host\x, file://x, ~
)
# A text that is a path and nothing else. Expressions and tokens of a vocabulary begin likewise: "/", "..\.x", "</s>".
_WHOLE_PATH = re.compile(r"(?:/[^/\s<>]+/|(?:~\w*|\.{1,2}|file:)/|[A-Za-z]:[\\/]|\\\\[\w.-]+\\)[^<>\n]+")
_SECRET_KEYS = {
    *("token", "secret", "password", "passwd", "key", "credential", "credentials", "auth", "cookie"),
    *("path", "dir", "directory", "folder", "file", "user", "username", "host", "hostname", "url", "endpoint", "hub"),
}
# Names of many machines' users that are also words of settings.
_COMMON = {"root", "user", "users", "home", "admin", "ubuntu", "localhost", "main", "test", "default", "model", "base"}


def is_private(text: str) -> bool:
    """Return whether a text holds what looks like a token or a path."""
    return bool(_SECRET.search(text) or _PATH.search(text))


def is_path(text: str) -> bool:
    """Return whether a text is a path of a machine, as configs have them: from its beginning to its end.

    >>> [text for text in ("/home/me", "~/x", "C:\\\\me", "/", "</s>", "org/name", r"..\\.[qv]") if is_path(text)]
    ['/home/me', '~/x', 'C:\\\\me']
    """
    return bool(_WHOLE_PATH.fullmatch(text))


def holds_token(content: bytes, token: Any = None) -> bool:
    """Return whether a file's content holds this token, the one logged in, or anything of a token's form.

    >>> holds_token(b"from hf_lora import LoRAModel"), holds_token(b"login('hf_" + 34 * b"x" + b"')")
    (False, True)
    """
    known = any(each.encode() in content for each in _known(token))
    return known or any(pattern.search(content) for pattern in _IN_FILES)


def named_path(content: bytes, paths: Iterable[str]) -> str | None:
    """Return the first of some paths that a file's content names, as it is or as JSON escapes it; else None."""
    return next((p for p in paths if p.encode() in content or json.dumps(p)[1:-1].encode() in content), None)


def redacted(text: str, token: Any = None) -> str:
    """Return a text of upstream's in one line, without this token, the one logged in, anything like one, or signatures.

    >>> redacted("GET https://cdn/x?Signature=abc with Bearer secret")
    'GET https://cdn/x with Bearer ***'
    """
    for known in _known(token):
        text = text.replace(known, "***")
    return " ".join(_SIGNATURE.sub(r"\1", _SECRET.sub("***", text)).split())


def is_repo_id(name: str) -> bool:
    """Return whether a name can be the id of a repo: "name" or "owner/name".

    >>> is_repo_id("gpt2"), is_repo_id("me/gpt2-lora"), is_repo_id("./gpt2"), is_repo_id("a/b/c")
    (True, True, False, False)
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name)


def is_local_base(name: str) -> bool:
    """Return whether a base's name is a path of this machine, or no name that a repo can have."""
    return not is_repo_id(name) or os.path.exists(name)


def hub_id(name: str | None) -> str | None:
    """Return a model's or data set's id where it can be one of the Hub's, else None.

    What exists here as a file or directory is local, whatever it looks like, and so is a Trainer's checkpoint.
    """
    return None if not name or is_private(name) or is_local_base(name) else name


def public_base(
    base: str | None, base_model: str | None, whose: str, way: str = "pass base_model='org/name' with its Hub id"
) -> str:
    """Return the Hub id that an adapter's base is published by.

    base: what its config names; base_model: what the caller says instead; way: how a caller says it.
    Raises ModelError where neither is an id: nobody else could load the adapter.
    """
    name = base_model or base
    if name and not is_local_base(name):
        return name
    if base_model:
        raise ModelError(f"base_model={base_model!r} is not the id of a Hub repo; pass it as 'org/name'.")
    told = f"the local base {base!r}, which nobody else can load" if base else "a base without a name"
    raise ModelError(f"{whose} belongs to {told}; {way}.")


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


def _known(token: Any) -> list[str]:
    """Return the token of a call, where it is a text, and the one this machine is logged in with."""
    return [each for each in (token, get_token()) if isinstance(each, str) and each]


def _names_this_machine(text: str) -> bool:
    """Return whether a text has the user's name (the home directory's) or this machine's, where they tell anything."""
    names = {Path(os.path.expanduser("~")).name, platform.node()}
    telling = [re.escape(name) for name in names if len(name) > 2 and name.lower() not in _COMMON]
    return any(re.search(rf"(?<!\w){name}(?!\w)", text, re.IGNORECASE) for name in telling)
