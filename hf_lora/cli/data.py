"""`hf-lora data`: what is understood of a file of rows, before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ..errors import printable
from .completing import tasks as task_names
from .showing import hush, remark, show_json, show_table
from .train import pairs

_MOST = 20  # classes that are listed


def data(
    rows: Annotated[str, Argument(metavar="ROWS", help="a file, a folder or a Hub data set, as --train takes it")],
    model: Annotated[str | None, Option(help="the base: lengths are its tokens, and rows are checked for it")] = None,
    task: Annotated[str | None, Option(help="what to learn; else told by columns", autocompletion=task_names)] = None,
    column: Annotated[list[str] | None, Option(metavar="ROLE=NAME", help="which column is what")] = None,
    eval: Annotated[str | None, Option(help="rows to choose by")] = None,
    test: Annotated[str | None, Option(help="rows to test on")] = None,
    limit: Annotated[int | None, Option(help="look at so many rows of each file")] = None,
    max_length: Annotated[int | None, Option(help="tokens of a row; what is longer is cut")] = None,
    encoding: Annotated[str | None, Option(help="of text that is not UTF-8, as cp1252")] = None,
    skip_bad_rows: Annotated[bool, Option("--skip-bad-rows", help="go on behind rows that cannot be read")] = False,
    as_json: Annotated[bool, Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Show what is understood of rows: columns, task, lengths, classes, samples, and what will be cut.

    Nothing is written. Exit status: 0 they can be read, 2 they cannot.

    Examples:

        hf-lora data ratings.csv

        hf-lora data ratings.csv --model answerdotai/ModernBERT-base --test more.csv
    """
    from ..training.run.describing import describe  # not above: they import torch
    from ..training.run.settings import RunSettings

    hush()
    given = {
        "train": rows, "eval": eval, "test": test, "model": model, "task": task, "limit": limit, "encoding": encoding,
        "column": pairs("column", column or []), "max_length": max_length, "skip_bad_rows": skip_bad_rows,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        told = describe(RunSettings.load(None, given), Path(scratch))
    show_json(told) if as_json else _show(told)


def _show(told: dict[str, Any]) -> None:
    splits = told["splits"]
    keys = list(dict.fromkeys(key for split in splits.values() for key in split if key != "left_out"))
    values = [[name, *(split.get(key) for key in keys)] for name, split in splits.items()]
    show_table(["", *keys], values, told["source"])
    header = ["column", "holds", "is the", "empty", "for example"]
    show_table(header, [[c["name"], c["type"], c["role"], c["empty"], c["example"]] for c in told["columns"]])
    print(printable(f"Task: {told['task'] or 'not told'}: {told['why']}") + "\n")
    if lengths := told.get("lengths"):
        names = [name for name in lengths if name not in ("unit", "rows", "cut", "lost")]
        show_table(
            names, [[lengths[name] for name in names]], f"Lengths of {lengths['rows']:,} rows in {lengths['unit']}"
        )
    if classes := told.get("classes"):
        rows = [[label, *counts.values()] for label, counts in list(classes.items())[:_MOST]]
        more = f", the first {_MOST} of {len(classes):,}" if len(classes) > _MOST else ""
        show_table(["label", *splits], rows, f"Rows of each class{more}")
    for title, key in (("Three rows", "samples"), ("As the model sees them", "seen")):
        if found := told.get(key):
            values = [[name, *(sample.get(name) for sample in found)] for name in found[0]]
            show_table(["", *map(str, range(1, len(found) + 1))], values, title)
    for line in _remarks(told):
        remark(line)


def _remarks(told: dict[str, Any]) -> list[str]:
    """Return what is odd, a sentence each."""
    lengths, problems = told.get("lengths", {}), told.get("problems", {"count": 0})
    said = []
    if lengths.get("cut"):
        lost = f", {lengths['lost']:.1%} so far that nothing is left to learn from" if lengths["lost"] else ""
        said.append(f"{lengths['cut']:.1%} of the rows are cut at {lengths['limit']} tokens{lost}.")
    for name, count in told.get("odd", {}).items():
        said.append(f"{count:,} rows are {name.replace('_', ' ')}.")
    for split, about in told["splits"].items():
        if about["left_out"]:
            said.append(f"{about['left_out']:,} rows of {split} cannot be read.")
    said += told.get("remarks", ())
    if problems["count"]:
        said.append(f"{problems['count']:,} rows cannot be used: {'; '.join(problems['first'])}.")
    return said
