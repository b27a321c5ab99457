"""A file or folder of rows as a table on disk: one function a format, one table of formats.

Rows are written to an Arrow file and mapped into memory, so that a million of them take none twice. Every reader adds
the column PLACE, which says where a row stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DataError
from . import tables

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["READERS", "read_rows"]

# A file's ending -> what reads it: (path, an empty file to write Arrow into) to rows.
READERS = {".csv": tables.read_csv, ".tsv": tables.read_csv}


def read_rows(source: str, scratch: Path, limit: int | None = None) -> Dataset:
    """Return the rows of a file, a folder or a data set of the Hub.

    scratch: a folder for the Arrow files, which must stay as long as the rows are used. limit: at most so many rows,
    from the top. Raises DataError for what is not there, is empty or cannot be read, with the file, the line, and what
    to do.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source}: there is no such file or folder.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{source}: files of rows end in {', '.join(READERS)}.")
    rows = reader(path, scratch / f"{len(list(scratch.iterdir()))}.arrow")
    if not len(rows):
        raise DataError(f"{source}: it has no rows.")
    return rows.select(range(min(limit, len(rows)))) if limit else rows
