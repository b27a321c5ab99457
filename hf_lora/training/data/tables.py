"""CSV and TSV as a table on disk: any delimiter and encoding, cells of several lines, every fault with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DataError
from .columns import PLACE

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["read_csv"]

_BATCH = 10_000  # rows held in memory at once


def read_csv(path: Path, table: Path) -> Dataset:
    """Return the rows of a CSV or TSV, all cells as texts, written to `table` as Arrow. Raises DataError."""
    import pyarrow as pa
    from datasets import Dataset

    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = next(lines, None)
        if not header:
            raise DataError(f"{path}: it is empty.")
        schema = pa.schema([(name, pa.string()) for name in [*header, PLACE]])
        with pa.OSFile(str(table), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _batches(path, lines, header):
                writer.write_batch(pa.record_batch(list(zip(*batch, strict=True)), schema=schema))
    return Dataset.from_file(str(table))


def _batches(path: Path, lines: Iterator[list[str]], header: list[str]) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    for row in lines:
        line = lines.line_num  # type: ignore[attr-defined]
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} cells, but the header names {len(header)} columns.")
        batch.append([*row, f"{path.name}, line {line}"])
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
