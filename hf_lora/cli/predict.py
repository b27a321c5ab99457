"""`hf-lora predict`: what an adapter says of rows."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from typer import Argument, Option

from ..errors import DataError, ModelError
from .completing import tasks as task_names
from .showing import dumped, hush, remark
from .train import pairs

if TYPE_CHECKING:
    from ..training.run.using import TrainedRun

__all__ = ["predict"]


def predict(
    adapter: Annotated[str, Argument(metavar="DIR_OR_ID", help="a run's folder, or any adapter, also on the Hub")],
    rows: Annotated[
        str, Argument(metavar="ROWS", help="a file or folder of rows, or - for stdin: JSON or a text a line")
    ],
    output: Annotated[Path | None, Option(help="where to write JSON lines (default: print them)")] = None,
    keep: Annotated[
        bool, Option("--keep", help="write the row's own columns, and what is said under `prediction`")
    ] = False,
    batch_size: Annotated[int, Option(min=1, help="rows at once; 1 answers each line of a pipe as it comes")] = 16,
    column: Annotated[
        list[str] | None, Option(metavar="ROLE=NAME", help="which column is what, as text=review")
    ] = None,
    task: Annotated[
        str | None, Option(help="what the adapter learnt, where its folder does not say it", autocompletion=task_names)
    ] = None,
    options: Annotated[
        list[str] | None, Option("--set", metavar="NAME=VALUE", help="an option of the task, as max_new_tokens=50")
    ] = None,
    encoding: Annotated[str | None, Option(help="of a file of text that is not UTF-8, as cp1252")] = None,
    skip_bad_rows: Annotated[bool, Option("--skip-bad-rows", help="leave out rows that cannot be used")] = False,
) -> None:
    """Write what an adapter says of each row, as a line of JSON, in the rows' order.

    A batch is in memory at a time, and is written before the next one is read.

    Examples:

        hf-lora predict outputs/reviews new.csv --keep --output said.jsonl

        echo "what a film" | hf-lora predict outputs/reviews -
    """
    from ..training.run.using import LOOKED_AT, load_run  # not above: it imports torch

    hush()
    _check_output(output, rows)
    left_out: list[str] | None = [] if skip_bad_rows else None
    with tempfile.TemporaryDirectory() as scratch:
        found, source = _read(rows, Path(scratch), encoding)
        first = list(islice(found, 1 if rows == "-" else LOOKED_AT))
        if not first:
            raise DataError(f"{source}: it has no rows.")
        trained = load_run(adapter, task, pairs("set", options or []))
        if rows == "-":
            _refuse_header(first[0], trained.preparation.columns, source)
        run = trained.onto(first, source, pairs("column", column or []))
        with _written_to(output) as file:
            for line in _lines(run, chain(first, found), batch_size, keep, left_out):
                print(line, file=file, flush=output is None)
    if left_out:
        remark(f"{len(left_out):,} rows were left out, the first is {left_out[0]}.")


def _check_output(output: Path | None, rows: str) -> None:
    if output is not None and output.exists() and Path(rows).exists() and output.samefile(rows):
        raise DataError(f"--output {output} is the file of the rows, which it would replace; name another one.")


def _read(rows: str, scratch: Path, encoding: str | None) -> tuple[Iterator[dict[str, Any]], str]:
    """Return the rows one after the other, and what they are called."""
    from ..training.data.reading import read_rows
    from ..training.data.streaming import rows_of_lines

    if rows != "-":
        return iter(read_rows(rows, scratch, encoding=encoding)), rows
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")
    return rows_of_lines(sys.stdin, "stdin"), "stdin"


def _refuse_header(row: Mapping[str, Any], columns: Mapping[str, str], source: str) -> None:
    """Raise DataError where a text is a table's first line: one of its cells is a column that was trained on."""
    from ..training.data.columns import PLACE

    cells = re.split(r"[,;\t|]", row["text"]) if row.keys() == {"text", PLACE} else []
    if not {cell.strip('"') for cell in cells}.isdisjoint(columns.values()):
        raise DataError(
            f"{source}, line 1: it reads as the header of a table, and lines of a pipe are JSON or texts; give the "
            "table as a file."
        )


def _lines(
    run: TrainedRun, rows: Iterable[dict[str, Any]], batch_size: int, keep: bool, left_out: list[str] | None
) -> Iterator[str]:
    from ..training.data.columns import PLACE, place_of

    for row, prediction in run.pairs(rows, batch_size, left_out):
        if keep and "prediction" in row:
            raise DataError(f"{place_of(row)}: --keep writes a column 'prediction', which it has already; rename it.")
        kept = {name: None if value != value else value for name, value in row.items() if name != PLACE}
        try:
            yield dumped({**kept, "prediction": prediction} if keep else prediction)
        except ValueError as error:  # json's, of NaN and infinity
            raise ModelError(
                f"{place_of(row)}: what the model says is no finite number; was it trained in half?"
            ) from error


@contextmanager
def _written_to(output: Path | None) -> Iterator[TextIO]:
    """Give a file that takes its place when all of it is written; stdout where there is none."""
    if output is None:
        yield sys.stdout
        return
    from ..files.disk import temporary

    output.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(output)
    try:
        with beside.open("w", encoding="utf-8") as file:
            yield file
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)
