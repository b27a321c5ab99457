"""The text of a card that hf_lora generates, between two markers; all other text is the owner's.

    <!-- hf_lora: generated HASH. ... -->
    ...
    <!-- hf_lora: end of what is generated -->

HASH is of the text between: where somebody edited that, or took a marker away, all of the card's text is the owner's.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["join", "section", "split"]

_BEGIN = (
    "<!-- hf_lora: generated {digest}. Every save renews it. What you write above and below stays; what you edit in it "
    "is yours from then on, and none of it is renewed. -->"
)
_END = "<!-- hf_lora: end of what is generated -->"
_BLOCK = re.compile(rf"<!-- hf_lora: generated ([0-9a-f]{{8}})\.[^>]*-->\r?\n(.*?){re.escape(_END)}", re.DOTALL)


def split(body: str) -> tuple[str, str | None, str]:
    """Return the text before, between and behind the markers of a card's body.

    What is generated is None where all text is the owner's, and empty where the card has none yet.
    """
    for found in _BLOCK.finditer(body):
        text = found[2].replace("\r\n", "\n")
        if _digest(text) == found[1]:
            return body[: found.start()], text, body[found.end() :]
    return body, None if body.strip() else "", ""


def join(before: str, text: str, after: str, newline: str) -> str:
    """Return a card's body with a generated text, which ends with a line break, between its markers."""
    block = f"{_BEGIN.format(digest=_digest(text))}\n{text}{_END}"
    return (before or newline) + block.replace("\n", newline) + (after or newline)


def section(text: str, heading: str) -> str | None:
    """Return what a generated text has under a heading; None where it lacks that.

    >>> section("# A\\n\\n## Results\\n\\nGood.\\n\\n## Papers\\n", "Results")
    'Good.'
    """
    found = re.search(rf"^## {heading}\n\n(.*?)\s*(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
