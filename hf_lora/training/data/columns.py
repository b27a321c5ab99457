"""Which column of somebody's file is what: by the names that people use, and by what stands in them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DataError

__all__ = ["PLACE", "Role", "choose_columns", "is_empty", "place_of", "plain_name"]

PLACE = "__place__"  # the column that every reader adds: "ratings.csv, line 17"


@dataclass(frozen=True)
class Role:
    """What a task needs a column for.

    names: what people call such a column, as `plain_name` gives them, the most telling first. holds: whether a value
    can be one; empty values are not asked about. is_required: whether the task cannot do without. is_label: it is what
    is learnt, which rows to predict lack. preference: of several columns that could be it, the one with the largest.
    """

    name: str
    names: tuple[str, ...]
    holds: Callable[[Any], bool]
    is_required: bool = True
    is_label: bool = False
    preference: Callable[[Sequence[Any]], float] | None = None


def choose_columns(
    rows: Sequence[Mapping[str, Any]],
    roles: Sequence[Role],
    given: Mapping[str, str],
    source: str,
    labelled: bool = True,
) -> dict[str, str]:
    """Return the column of each role: the given one, or one of a role's name, or the one that its values tell.

    rows: the first ones of a file, whose columns are looked at. labelled: whether the rows have to have what is learnt.
    Raises DataError that names the file, its columns and how to say which is which.
    """
    columns = [name for name in rows[0] if name != PLACE]
    wanted = [role for role in roles if labelled or not role.is_label]
    values = {name: [row[name] for row in rows if not is_empty(row[name])] for name in columns}
    chosen = _given(columns, roles, given, source)
    for role in wanted:
        named = (c for n in role.names for c in columns if plain_name(c) == n and c not in chosen.values())
        fitting = next((c for c in named if all(map(role.holds, values[c]))), None)
        if role.name not in chosen and fitting is not None:
            chosen[role.name] = fitting
    for role in wanted:
        if role.name in chosen or not role.is_required:
            continue
        left = [c for c in columns if c not in chosen.values() and values[c] and all(map(role.holds, values[c]))]
        if role.preference is not None:
            left.sort(key=lambda c, prefer=role.preference: -prefer(values[c]))  # type: ignore[misc]
            left = left[:1]
        if len(left) != 1:
            among = f"{', '.join(map(repr, left))} could each be it" if left else "none can be it"
            raise DataError(
                f"{source}: no column for {role.name!r}: it has the columns {', '.join(map(repr, columns))}, and "
                f"{among}. Say which one with --column {role.name}=NAME."
            )
        chosen[role.name] = left[0]
    return chosen


def _given(columns: Sequence[str], roles: Sequence[Role], given: Mapping[str, str], source: str) -> dict[str, str]:
    names = [role.name for role in roles]
    for name, column in given.items():
        if name not in names:
            raise DataError(f"--column {name}={column}: this task has no {name!r}, but {', '.join(names)}.")
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"--column {name}={column}: {source} has no such column, but {', '.join(map(repr, columns))}.{hint}"
            )
    return dict(given)


def is_empty(value: Any) -> bool:
    """Return whether a cell holds nothing: None, a text of spaces, an empty list, a NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or (isinstance(value, list | dict) and not value)


def plain_name(column: str) -> str:
    """Return a column's name as roles spell it.

    >>> plain_name(" Review_Text "), plain_name("reviewText")
    ('review text', 'review text')
    """
    spaced = "".join(f" {c}" if c.isupper() and before.islower() else c for before, c in zip(" " + column, column))  # noqa: B905
    return " ".join(spaced.replace("_", " ").replace("-", " ").replace(".", " ").split()).casefold()


def place_of(row: Mapping[str, Any]) -> str:
    """Return where a row stands, as "ratings.csv, line 17"."""
    return str(row.get(PLACE, "a row"))
