"""The generated parts of a card: delimited by comments, refreshed as long as nobody touched them.

    <!-- hf_lora:begin NAME HASH -->
    ...
    <!-- hf_lora:end NAME -->

The hash is of what was written. A part that somebody edited is theirs and stays; one whose markers are gone stays away;
what lies outside is never written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

__all__ = ["add", "digest", "holds_any", "parts", "refresh", "wrap"]

_PART = re.compile(
    r"<!-- hf_lora:begin (?P<name>[a-z_-]+)(?: (?P<hash>[0-9a-f]{8}))? -->\r?\n"
    r"(?P<body>(?:(?!<!-- hf_lora:(?:begin|end) ).)*?)<!-- hf_lora:end (?P=name) -->",
    re.DOTALL,
)


def digest(text: str) -> str:
    """Return a short hash of a text, the same for both kinds of line ends."""
    return hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()[:8]


def wrap(name: str, body: str) -> str:
    """Return a part with its markers, without a line end behind it."""
    body = body.strip("\n") + "\n" if body.strip() else ""
    return f"<!-- hf_lora:begin {name} {digest(body)} -->\n{body}<!-- hf_lora:end {name} -->"


def parts(text: str) -> dict[str, str]:
    """Return the parts of a text by name."""
    return {found["name"]: found["body"] for found in _PART.finditer(text)}


def holds_any(text: str) -> bool:
    """Return whether a text holds a marker, whole or not."""
    return "<!-- hf_lora:" in text


def refresh(text: str, bodies: Mapping[str, str]) -> str:
    """Return a text with these parts as they are now, but for those that somebody edited or took out."""
    newline = "\r\n" if "\r\n" in text else "\n"

    def fresh(found: re.Match[str]) -> str:
        name, body = found["name"], found["body"]
        if name not in bodies or digest(body) != found["hash"]:
            return found[0]
        new = wrap(name, bodies[name])
        return found[0] if new == found[0].replace("\r\n", "\n") else new.replace("\n", newline)

    return _PART.sub(fresh, text)


def add(text: str, bodies: Mapping[str, str]) -> str:
    """Return a text with these parts behind what it holds."""
    newline = "\r\n" if "\r\n" in text else "\n"
    joined = "\n\n".join(wrap(name, body) for name, body in bodies.items()) + "\n"
    if text and not text.endswith(("\n", "\r")):
        text += newline
    return text + (newline if text.strip() else "") + joined.replace("\n", newline)
