"""Where the card's template lies: inside an installed package, or in `model_cards/` at the top of a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .sections import parts

__all__ = ["template"]

_NAME = "adapter.md"


@cache
def template() -> dict[str, str]:
    """Return the template's parts by name, in their order."""
    here = Path(__file__)
    places = (here.parent / _NAME, here.parents[3] / "model_cards" / "templates" / _NAME)
    found = next(place for place in places if place.is_file())
    return parts(found.read_text(encoding="utf-8"))
