"""CSV and TSV as rows: any delimiter and encoding, cells of several lines, every fault with its line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, some
from .columns import PLACE
from .opening import encoding_of, open_text
from .written import BATCH, Found, Wanted, write_batches

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_LOOKED_AT = 100  # rows that tell the delimiter, and whether there is a header
_NUMBER = re.compile(r"\s*[-+]?[\d.,]*\d[\d.,]*%?\s*")
# Numbers with a decimal comma, and points between thousands; those whose comma is none between thousands.
_WITH_COMMA = r"^\s*([-+]?(\d+|[1-9]\d{0,2}(\.\d{3})+)(,\d+)?)?\s*$"
_SURELY = r"^\s*[-+]?(0\d*,\d+|\d{4,},\d+|\d+,(\d{1,2}|\d{4,})|[\d.]*\.\d{3},\d+)\s*$"


def read_csv(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return the rows of a CSV or TSV, all cells as texts, written to `table` as Arrow.

    Numbers in a file with semicolons and decimal commas get decimal points, and lose those between thousands. Raises
    DataError.
    """
    import pyarrow as pa

    csv.field_size_limit(2**31 - 1)  # a cell may hold a book
    encoding = encoding_of(path, wanted.encoding)
    with open_text(path, encoding) as file:
        lines = list(islice(file, 10 * _LOOKED_AT))
        delimiter, skipped = _delimiter_of(path, lines)
    is_spaced = _is_spaced(lines, delimiter)
    left_out: list[str] = []
    with open_text(path, encoding) as file:
        next(islice(file, skipped, skipped), None)
        read = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
        rows = _rows(path, read, skipped, wanted, left_out)
        header = next(rows)[1:]
        schema = pa.schema([(name, pa.string()) for name in [*header, PLACE]])
        found = write_batches(_batches(path, rows, schema), schema, table, wanted.limit)
    if delimiter == ";":
        found = _with_points(found, header, table)
    about = {"format": "CSV", "encoding": encoding, "delimiter": _DELIMITERS.get(delimiter, delimiter)}
    return Found(found, about, left_out)


def _is_spaced(lines: list[str], delimiter: str) -> bool:
    """Return whether quotes come behind a space, as in `"a", "b"`: they are no part of the cell."""
    return any(f'{delimiter} "' in line for line in lines)


def _delimiter_of(path: Path, lines: list[str]) -> tuple[str, int]:
    """Return the delimiter, and how many lines stand before the header: Excel's own line "sep=;" is one.

    It is the one that most rows have as often as the header has it.
    """
    if lines and (said := re.fullmatch(r"sep=(.)\s*", lines[0].lstrip("\ufeff"))):
        return said[1], 1
    best, most = "\t" if ".tsv" in path.name.lower() else ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        try:
            found = csv.reader(lines, delimiter=delimiter, skipinitialspace=_is_spaced(lines, delimiter))
            rows = [row for row in found if row][:_LOOKED_AT]
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 0
        if width > 1:
            fitting = sum(len(row) == width for row in rows) / len(rows)
            if (fitting, width) > most:
                best, most = delimiter, (fitting, width)
    return best, 0


def _rows(path: Path, reader: Any, skipped: int, wanted: Wanted, left_out: list[str]) -> Iterator[list[Any]]:
    """Yield [line, *cells] for the header and for each row below it, the same number of cells each."""
    names: list[str] | None = None
    for line, cells in _parsed(path, reader, skipped):
        if not any(cells) or (names is None and not any(cell.strip("\ufeff ") for cell in cells)):
            continue
        if names is None:
            names = _header(path, line, cells)
            yield [line, *names]
            continue
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()
        if len(cells) == len(names) and cells != names:
            yield [line, *cells]
            continue
        problem = (
            f"{path}, line {line}: it repeats the header" if cells == names else
            f"{path}, line {line}: it has {len(cells)} cells, and the header {len(names)}: {some(names)}"
        )  # fmt: skip
        if not wanted.skip_bad_rows:
            cure = "Remove it" if cells == names else "Quote cells that hold the delimiter, fill in what is missing"
            raise DataError(f"{problem}. {cure}, or leave such rows out with --skip-bad-rows.")
        left_out.append(problem)
    if names is None:
        raise DataError(f"{path}: it is empty. It needs a line that names the columns, and a row a line below it.")


def _parsed(path: Path, reader: Any, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line at which a row begins, and its cells."""
    while True:
        line = reader.line_num + skipped + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = f"{error}".replace("unexpected end of data", "a quote that opens here is never closed")
            raise DataError(f'{path}, line {line}: {why}. Inside quoted cells, write "" for a quote.') from error


def _header(path: Path, line: int, cells: Sequence[str]) -> list[str]:
    """Return the names of the columns; those without one are "column 3". Raises DataError for what is no header."""
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(
            f"{path}, line {line}: several columns are called {some(map(repr, sorted(twice)))}; rename them."
        )
    if PLACE in names:
        raise DataError(f"{path}, line {line}: the column name {PLACE} is taken; rename it.")
    if odd := [name for name in names if _NUMBER.fullmatch(name) or len(name) > 200]:
        raise DataError(
            f"{path}, line {line}: {str(odd[0])[:60]!r} looks like data and not like a column's name. The first line "
            "has to name the columns, as text,label: add one, or rename that column."
        )
    return names


def _batches(path: Path, rows: Iterator[list[Any]], schema: Any) -> Iterator[RecordBatch]:
    """Yield Arrow batches of rows. Raises DataError where the header is a row itself: its cells come again below."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_first = True
    while batch := list(islice(rows, BATCH)):
        lines, *columns = zip(*batch, strict=True)
        if is_first:
            _check_header(path, schema.names, [column[:_LOOKED_AT] for column in columns])
            is_first = False
        places = pc.binary_join_element_wise(f"{path}, line", pc.cast(pa.array(lines), pa.string()), " ")
        yield pa.record_batch([*(pa.array(column, pa.string()) for column in columns), places], schema=schema)


def _check_header(path: Path, names: Sequence[str], columns: Sequence[Sequence[str]]) -> None:
    for name, column in zip(names, columns, strict=False):
        if name in column and len(set(column)) <= max(2, len(column) // 2):  # labels come again, texts may be a word
            raise DataError(
                f"{path}: the first line says {name!r}, which stands in rows of the same column, too, so it is a row "
                "and no header. Add a first line that names the columns, as text,label."
            )


def _with_points(rows: Any, header: Sequence[str], table: Path) -> Any:
    """Return the rows with decimal points in the columns of numbers, where any of these surely has a decimal comma."""
    import pyarrow.compute as pc

    def matches(name: str, pattern: str, which: Any) -> list[bool]:
        cells = [chunk for chunk in rows.data.column(name).chunks if len(chunk)]
        return [which(pc.match_substring_regex(cell, pattern)).as_py() for cell in cells]

    numbers = [name for name in header if all(matches(name, _WITH_COMMA, pc.all))]
    changed = [name for name in numbers if any(matches(name, "[.,]", pc.any))]
    if not any(any(matches(name, _SURELY, pc.any)) for name in changed):
        return rows

    def batches() -> Iterator[RecordBatch]:
        for batch in rows.data.to_batches():
            for name in changed:
                at = batch.schema.get_field_index(name)
                whole = pc.replace_substring(batch.column(name), ".", "")
                batch = batch.set_column(at, name, pc.replace_substring(whole, ",", "."))
            yield batch

    return write_batches(batches(), rows.data.schema, table.with_suffix(".points.arrow"), None)
