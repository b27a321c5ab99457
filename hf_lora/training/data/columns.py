"""Which column of somebody's file is what: by the names that people use, and by what stands in them."""

from __future__ import annotations

import ast
import difflib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError

# What people and programs write where there is nothing, casefolded; "NA" in capitals alone.
_NO_VALUE = ("n/a", "#n/a", "<na>", "nan", "null", "-", "--", "\u2013", "\u2014")
PLACE = "__place__"  # the column that every reader adds: "ratings.csv, line 17"


@dataclass(frozen=True)
class Role:
    """What a task needs a column for.

    names: what people call such a column, as `plain_name` gives them, the most telling first. holds: whether a value
    can be one; empty values are not asked about. is_required: whether the task cannot do without. is_label: it is what
    is learnt, which rows to predict lack. preference: of several columns that could be it, the one with the largest.
    unless: roles that replace this one where a file has columns for all of them.
    """

    name: str
    names: tuple[str, ...]
    holds: Callable[[Any], bool]
    is_required: bool = True
    is_label: bool = False
    preference: Callable[[Sequence[Any]], float] | None = None
    unless: tuple[str, ...] = ()


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
    values = values_of(rows)
    columns = list(values)
    wanted = [role for role in roles if labelled or not role.is_label]
    chosen = columns_by_name(values, wanted, _given(values, roles, given, source))
    for role in wanted:
        if role.name in chosen or not role.is_required or is_replaced(role, wanted, chosen):
            continue
        free = [c for c in columns if c not in chosen.values() and values[c] and not is_key(c)]
        left = [c for c in free if all(map(role.holds, values[c]))]
        if role.preference is not None and left:
            liking = {c: role.preference(values[c]) for c in left}
            left = [c for c in left if liking[c] == max(liking.values())]
        if len(left) != 1:
            raise DataError(_missing(role, roles, source, columns, left, values))
        chosen[role.name] = left[0]
    for one, other in itertools.combinations(chosen, 2):
        if chosen[one] == chosen[other]:
            raise DataError(
                f"{source}: the column {chosen[one]!r} is taken for {one!r} and for {other!r}; say which each is, "
                f"with --column {one}=NAME --column {other}=NAME."
            )
    return {role.name: chosen[role.name] for role in roles if role.name in chosen}


def values_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return what stands in each column of some rows, without what is missing."""
    return {name: [row[name] for row in rows if not is_missing(row[name])] for name in rows[0] if name != PLACE}


def columns_by_name(
    values: Mapping[str, Sequence[Any]], roles: Sequence[Role], given: Mapping[str, str]
) -> dict[str, str]:
    """Return the given columns, and those that are called after a role and hold what it needs."""
    chosen = dict(given)
    for matches in (_is_called, _is_called_like):
        for role in roles:
            called = [c for c in values if c not in chosen.values() and matches(c, role)]
            called.sort(key=lambda c, role=role: _rank(c, role))  # type: ignore[misc]
            fitting = [c for c in called if all(map(role.holds, values[c]))]
            if role.name not in chosen and fitting:
                chosen[role.name] = fitting[0]
    return chosen


def _is_called(column: str, role: Role) -> bool:
    return plain_name(column) in role.names


def _is_called_like(column: str, role: Role) -> bool:
    """Return whether one of the words of a column's name is the role's, as in "customer_review"."""
    return not is_key(column) and not set(plain_name(column).split()).isdisjoint(role.names)


def _rank(column: str, role: Role) -> int:
    words = {plain_name(column), *plain_name(column).split()}
    return next((number for number, name in enumerate(role.names) if name in words), len(role.names))


def is_replaced(role: Role, wanted: Sequence[Role], chosen: Mapping[str, str]) -> bool:
    """Return whether a file has columns for all the roles that stand for this one."""
    instead = [other.name for other in wanted if other.name in role.unless]
    return bool(instead) and all(name in chosen for name in instead)


def _missing(
    role: Role, roles: Sequence[Role], source: str, columns: Sequence[str], left: Sequence[str],
    values: Mapping[str, Sequence[Any]],
) -> str:  # fmt: skip
    """Say that a role has no column, or several that could be it."""
    among = f"{', '.join(map(repr, left))} could each be it" if left else "none of them can be it"
    for column in columns:
        wrong = [value for value in values[column] if not role.holds(value)]
        if _is_called(column, role) and wrong:
            among = f"{column!r} holds {str(wrong[0])[:60]!r}, which is none"
    other = " and ".join(f"--column {each.name}=NAME" for each in roles if each.name in role.unless)
    return (
        f"{source}: no column for {role.name!r}: it has the columns {', '.join(map(repr, columns))}, and {among}. "
        f"Say which one with --column {role.name}=NAME{f', or {other}' if other else ''}."
    )


def _given(
    values: Mapping[str, Sequence[Any]], roles: Sequence[Role], given: Mapping[str, str], source: str
) -> dict[str, str]:
    columns = list(values)
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
        role = next(role for role in roles if role.name == name)
        odd = [each for each in values[column] if isinstance(each, list | dict)]
        if odd and not any(map(role.holds, values[column])):  # where some can be it, the checks of rows name the others
            raise DataError(
                f"--column {name}={column}: {source} has {str(odd[0])[:60]!r} there, which is no {name} of this task."
            )
    return dict(given)


def is_empty(value: Any) -> bool:
    """Return whether a cell holds nothing: None, a text of spaces, an empty list, a NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or (isinstance(value, list | dict) and not value)


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing, or says that it does.

    >>> is_missing("N/A"), is_missing(" - "), is_missing("NA"), is_missing("na"), is_missing("none")
    (True, True, True, False, False)
    """
    said = value.strip() if isinstance(value, str) else None
    return is_empty(value) or said == "NA" or (said is not None and said.casefold() in _NO_VALUE)


def written_out(cell: str) -> Any:
    """Return what a text says as JSON or Python writes lists, numbers and names with values; else the text itself.

    >>> written_out('["a", null]'), written_out("['a', None]"), written_out("[a film]")
    (['a', None], ['a', None], '[a film]')
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return read(cell)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # ast's, of what is too deep, too
            continue
    return cell


def plain_name(column: str) -> str:
    """Return a column's name as roles spell it.

    >>> plain_name(" Review_Text "), plain_name("reviewText")
    ('review text', 'review text')
    """
    spaced = "".join(f" {c}" if c.isupper() and before.islower() else c for before, c in zip(" " + column, column))  # noqa: B905
    return " ".join(spaced.replace("_", " ").replace("-", " ").replace(".", " ").split()).casefold()


def is_key(column: str) -> bool:
    """Return whether a column's name says that it only counts or names rows.

    >>> is_key("id"), is_key("text_id"), is_key("reviewId"), is_key("idea")
    (True, True, True, False)
    """
    return plain_name(column).split()[-1:] in ([word] for word in ("id", "ids", "idx", "index", "uuid", "nr", "number"))


def place_of(row: Mapping[str, Any]) -> str:
    """Return where a row stands, as "ratings.csv, line 17"."""
    return str(row.get(PLACE, "a row"))


def folder_of(row: Mapping[str, Any]) -> Path:
    """Return the folder of the file that a row stands in, where the paths in it begin.

    >>> folder_of({PLACE: "birds/table.csv, line 17"}).name
    'birds'
    """
    return Path(place_of(row).rpartition(", ")[0]).parent
