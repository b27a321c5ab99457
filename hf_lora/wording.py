"""How messages and reports name things: lists cut short, layers without their numbers, parameters in full."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["full_name", "numberless", "some"]


def some(items: Iterable[object], most: int = 4, between: str = ", ") -> str:
    """Return the first items in a row, and how many there are besides.

    >>> some("abcdefg"), some("ab", between="; ")
    ('a, b, c, d, and 3 more', 'a; b')
    """
    every = [str(item) for item in items]
    return between.join(every[:most] + ([f"and {len(every) - most} more"] if len(every) > most else []))


def numberless(name: str) -> str:
    """Return a dotted name with "*" for each number, so that layers that are alike have one name.

    >>> numberless("model.layers.0.self_attn.q_proj")
    'model.layers.*.self_attn.q_proj'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def full_name(*parts: str) -> str:
    """Return the dotted name of a parameter or module inside others; the model itself has the name "".

    >>> full_name("encoder.layer.0", "weight"), full_name("", "weight")
    ('encoder.layer.0.weight', 'weight')
    """
    return ".".join(filter(None, parts))
