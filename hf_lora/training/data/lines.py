"""Plain text as rows: a line each, blank ones left out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .columns import PLACE
from .opening import encoding_of, open_text
from .written import BATCH, Found, Wanted, write_batches


def read_text(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return the lines of a text file in a column "text", written to `table` as Arrow. Raises DataError."""
    import pyarrow as pa

    encoding = encoding_of(path, wanted.encoding)
    schema = pa.schema([("text", pa.string()), (PLACE, pa.string())])

    def batches() -> Iterator[Any]:
        with open_text(path, encoding) as file:
            lines = ((n, text) for n, line in enumerate(file, start=1) if (text := line.strip("\ufeff\r\n")).strip())
            while batch := list(islice(lines, BATCH)):
                columns = [[text for _, text in batch], [f"{path}, line {number}" for number, _ in batch]]
                yield pa.record_batch([pa.array(each, pa.string()) for each in columns], schema=schema)

    return Found(write_batches(batches(), schema, table, wanted.limit), {"format": "text", "encoding": encoding})
