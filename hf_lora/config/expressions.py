"""Regular expressions in others' configs: which could take for ever to match."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants, _parser  # type: ignore[attr-defined]
else:
    import sre_constants as _constants
    import sre_parse as _parser

__all__ = ["may_hang"]

_REPEATS = tuple(getattr(_constants, name) for name in ("MAX_REPEAT", "MIN_REPEAT"))


def may_hang(pattern: str) -> bool:
    """Return whether a pattern repeats without bound what itself repeats without bound and need not end somewhere.

    Such a pattern can try a number of ways that doubles with every letter. A repeat inside another is harmless where
    each round has to take a certain letter that the inner repeat cannot: `(\\w+\\.)+`.

    >>> may_hang(r"(.*a)+b"), may_hang(r"(\\w+\\.)+q_proj"), may_hang(r".*\\.(q|v)_proj")
    (True, False, False)
    """
    try:
        return _any_hangs(_parser.parse(pattern))
    except re.error:  # no expression at all, which is told elsewhere
        return False
    except (RecursionError, OverflowError):
        return True


def _any_hangs(items: Any) -> bool:
    for op, value in items:
        if op in _REPEATS and value[1] == _constants.MAXREPEAT and not _ends(value[2]):
            return True
        if any(_any_hangs(part) for part in _parts(op, value)):
            return True
    return False


def _ends(body: Any) -> bool:
    """Return whether a round of a repeat holds no unbounded repeat, or a letter that none of those can take."""
    items = list(_opened(body))
    inner = [part for op, value in items for part in _unbounded(op, value)]
    letters = [chr(value) for op, value in items if op is _constants.LITERAL]
    return not inner or any(all(not _takes(part, letter) for part in inner) for letter in letters)


def _opened(body: Any) -> Iterator[Any]:
    """Yield the items of a sequence, those of its groups in their place."""
    for op, value in body:
        if op is _constants.SUBPATTERN:
            yield from _opened(value[-1])
        else:
            yield op, value


def _unbounded(op: Any, value: Any) -> list[Any]:
    own = [value[2]] if op in _REPEATS and value[1] == _constants.MAXREPEAT else []
    return own + [each for part in _parts(op, value) for item in part for each in _unbounded(*item)]


def _parts(op: Any, value: Any) -> list[Any]:
    """Return the sequences inside one item of a parsed pattern."""
    if op in _REPEATS:
        return [value[2]]
    found = value if isinstance(value, tuple | list) else [value]
    nested = [part for each in found for part in (each if isinstance(each, list) else [each])]
    return [part for part in nested if isinstance(part, _parser.SubPattern)]


def _takes(body: Any, letter: str) -> bool:
    """Return whether a part can take a letter; a part that is not a single letter or class may."""
    if len(body) != 1:
        return True
    op, value = body[0]
    if op is _constants.LITERAL:
        return chr(value) == letter
    if op is not _constants.IN:
        return True
    known = {_constants.CATEGORY_WORD: r"\w", _constants.CATEGORY_DIGIT: r"\d", _constants.CATEGORY_SPACE: r"\s"}
    for kind, what in value:
        if kind is _constants.LITERAL and chr(what) == letter:
            return True
        if kind is _constants.RANGE and what[0] <= ord(letter) <= what[1]:
            return True
        if kind is _constants.NEGATE or (
            kind is _constants.CATEGORY and (what not in known or re.match(known[what], letter))
        ):
            return True
    return False
