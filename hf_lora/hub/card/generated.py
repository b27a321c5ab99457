"""The text of a card that hf_lora generates, between two markers; all other text is the owner's.

    <!-- hf_lora: generated HASH for weights HASH. ... -->
    ...
    <!-- hf_lora: end of what is generated -->

The first hash is of the text between, and tells whether somebody edited it. Earlier versions had several parts, each
between `<!-- hf_lora:begin NAME HASH -->` and `<!-- hf_lora:end NAME -->`, and a comment `<!-- hf_lora:card {...} -->`.
"""

import hashlib
import re
from itertools import pairwise
from typing import NamedTuple

_BEGIN = (
    "<!-- hf_lora: generated {} for weights {}. Every save renews all from here to the end marker; write above or "
    "below. -->"
)
_END = "<!-- hf_lora: end of what is generated -->"
_PART = re.compile(
    r"<!-- hf_lora:(?: generated|begin (?P<name>[a-z_-]+))"
    r"(?: (?P<digest>[0-9a-f]{8})(?: for weights (?P<weights>\w+))?)?\b[^>]*-->\r?\n"
    r"(?P<text>(?:(?!<!-- hf_lora:).)*?)<!-- hf_lora:(?(name)end (?P=name)| end of what is generated) -->",
    re.DOTALL,
)
_RECORD = re.compile(r"\s*<!-- hf_lora:card \{.*?-->", re.DOTALL)
# What a generated text leaves behind where a marker is gone.
_LEFT = re.compile(r"<!-- hf_lora:(?!card )|; everything else comes from the base\.|^\| rank `r` \|", re.MULTILINE)


class Body(NamedTuple):
    """A card's body: the owner's text above and below, and the generated one between.

    text: None where all is the owner's, and empty where the card has none yet. is_edited: whether somebody edited it.
    weights: a hash of the weights that it was written for, where it is known.
    """

    above: str
    text: str | None
    below: str = ""
    is_edited: bool = False
    weights: str | None = None

    @property
    def looks_generated(self) -> bool:
        """Whether the owner's text has something of a generated one, whose markers are gone."""
        return bool(_LEFT.search(self.above) or _LEFT.search(self.below))

    def with_text(self, text: str, weights: str, newline: str) -> str:
        """Return the body with a generated text, which ends with a line break, between its markers."""
        block = f"{_BEGIN.format(_digest(text), weights)}\n{text}{_END}"
        return (self.above or newline) + block.replace("\n", newline) + (self.below or newline)


def split(body: str) -> Body:
    """Return what of a card's body is generated and what is its owner's."""
    found = list(_PART.finditer(body))
    if not found:
        return Body(body, None if body.strip() else "")
    texts = [part["text"].replace("\r\n", "\n") for part in found]
    is_edited = any(_digest(text) != part["digest"] for text, part in zip(texts, found, strict=True))
    pieces = [body[one.end() : other.start()] for one, other in pairwise(found)]
    below = "".join(piece for piece in pieces if piece.strip()) + body[found[-1].end() :]
    return Body(body[: found[0].start()], "\n".join(texts), _RECORD.sub("", below), is_edited, found[0]["weights"])


def section(text: str, heading: str) -> str | None:
    """Return what a generated text has under a heading; None where it lacks that.

    >>> section("# A\\n\\n## Results\\n\\nGood.\\n\\n## Papers\\n", "Results")
    'Good.'
    """
    found = re.search(rf"^## {heading}\n\n(.*?)\s*(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
