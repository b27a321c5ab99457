"""Rows on disk: written as an Arrow file in batches, and mapped into memory, so that none is held twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 10_000  # rows held in memory at once


@dataclass(frozen=True)
class Wanted:
    """How to read: in which encoding (None to find out), at most how many rows, and whether to leave bad ones out."""

    encoding: str | None = None
    limit: int | None = None
    skip_bad_rows: bool = False


@dataclass
class Found:
    """What was read: the rows, what was found out (format, encoding), and the rows left out, each with why."""

    rows: Dataset
    about: dict[str, str]
    left_out: list[str] = field(default_factory=list)


def write_batches(batches: Iterable[Any], schema: Any, table: Path, limit: int | None) -> Dataset:
    """Write record batches of a schema to an Arrow file, and return its rows, mapped. limit: at most so many."""
    import pyarrow as pa
    from datasets import Dataset

    with pa.OSFile(str(table), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _limited(batches, limit):
            writer.write_batch(batch)
    return Dataset.from_file(str(table))


def _limited(batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
    left = limit
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None:
            left -= batch.num_rows
            if left <= 0:
                return
