"""Rows checked one after the other, never all in memory: which can be used, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import DataError, some
from .columns import is_empty, place_of

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 1000  # rows in memory at once
_TOLD = 4  # rows that an error names

Problem = Callable[[Mapping[str, Any]], str | None]


def stream_rows(rows: Any) -> Iterator[Mapping[str, Any]]:
    """Yield rows of a data set, a batch at a time, ten times as fast as one by one; or of any other iterable."""
    if not hasattr(rows, "column_names"):
        yield from rows
        return
    for batch in rows.iter(_BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def usable_rows(rows: Dataset, problem: Problem, source: str, skip: bool = False) -> tuple[Dataset, list[str]]:
    """Return the rows that have no problem, and what is wrong with the first of the others.

    problem: says what is wrong with a row, None for nothing. skip: leave such rows out. Raises DataError that names
    them otherwise, and where no row is left.
    """
    good: list[int] = []
    told: list[str] = []
    for number, row in enumerate(stream_rows(rows)):
        if (wrong := problem(row)) is None:
            good.append(number)
        elif len(told) < _TOLD:
            told.append(f"{place_of(row)}: {wrong}")
    bad = len(rows) - len(good)
    if bad > len(told):
        told.append(f"and {bad - len(told):,} more rows")
    if bad and not good:
        raise DataError(f"{source}: none of its {len(rows):,} rows can be used. {'; '.join(told)}.")
    if bad and not skip:
        raise DataError(f"{'; '.join(told)}. Mend or remove these rows, or leave them out with --skip-bad-rows.")
    return (rows.select(good) if bad else rows), told


def check_columns(rows: Dataset, columns: Mapping[str, str], source: str, trained: str) -> None:
    """Raise DataError where rows lack a column that those to train on have. columns: the column of each role."""
    missing = [column for column in columns.values() if column not in rows.column_names]
    if missing:
        there = some(map(repr, (name for name in rows.column_names if not name.startswith("__"))), most=12)
        raise DataError(
            f"{source}: it has no column {some(map(repr, missing))}, which {trained} has, but {there}. Call the "
            "columns of all files alike."
        )


def label_remarks(labels: Iterable[tuple[str, str]]) -> list[str]:
    """Return what is odd about labels, a sentence each: those written in two ways, and those of a single row.

    labels: each with the place of its row.

    >>> label_remarks([("good", "a.csv, line 2"), ("good", "a.csv, line 3"), ("Good", "a.csv, line 4")])[0]
    "the labels 'good' (2 rows) and 'Good' (1: a.csv, line 4) are 2 classes; write them alike if they are one."
    """
    counts: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    for label, place in labels:
        counts[label] += 1
        if counts[label] <= _TOLD:
            places.setdefault(label, []).append(place)
    alike: dict[str, list[str]] = {}
    for label, _ in counts.most_common():
        alike.setdefault(" ".join(label.split()).casefold(), []).append(label)
    said = []
    for first, *others in (each for each in alike.values() if len(each) > 1):
        rare = [f"{label!r} ({counts[label]:,}: {some(places[label], between='; ')})" for label in others]
        told = f"the labels {first!r} ({counts[first]:,} rows) and {' and '.join(rare)}"
        said.append(f"{told} are {len(others) + 1} classes; write them alike if they are one.")
    if single := [f"{label!r} ({places[label][0]})" for label, count in counts.items() if count == 1]:
        said.append(
            f"one row alone has the label {some(single, between=' or ')}: too little to learn and to measure it."
        )
    return said


def count_different(rows: Dataset, columns: Sequence[str]) -> int:
    """Return how many different rows there are, as far as these columns tell."""
    return len(_digests(rows, columns))


def count_shared(rows: Dataset, others: Dataset, columns: Sequence[str]) -> int:
    """Return how many different rows stand in both, as far as these columns tell."""
    return len(_digests(rows, columns) & _digests(others, columns))


def count_empty(rows: Dataset, column: str) -> int:
    """Return how many cells of a column hold nothing."""
    return sum(is_empty(row[column]) for row in stream_rows(rows.select_columns([column])))


def _digests(rows: Dataset, columns: Sequence[str]) -> set[int]:
    """Return the hashes of what columns say: eight bytes a row, however long the texts."""
    return {hash(repr([row[name] for name in columns])) for row in stream_rows(rows.select_columns(list(columns)))}
