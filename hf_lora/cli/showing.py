"""What the commands print: tables and JSON on stdout, remarks on stderr, all of it safe for a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ..errors import printable

__all__ = ["dumped", "hush", "remark", "show_json", "show_table"]


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None, whole: Sequence[str] = ()
) -> None:
    """Print a table on stdout, as wide as the terminal at most. Numbers stand to the right; None is a dash.

    whole: columns whose lines are not broken, beside the first.
    """
    from rich import box  # not above: they take a tenth of a second
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    every = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        are_numbers = every and all(isinstance(row[number], int | float | None) for row in every)
        justify: Literal["left", "right"] = "right" if are_numbers else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=number == 0 or name in whole)
    for row in every:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(highlight=False, soft_wrap=False)
    if title:  # not the table's, which would break it to the table's width
        console.print(Text(printable(title), "bold"))
    console.print(table)


def show_json(values: Any) -> None:
    """Print JSON on stdout, indented."""
    print(dumped(values, indent=2))


def dumped(values: Any, indent: int | None = None) -> str:
    """Return JSON in letters that stdout can write; dates as texts, what JSON has not (pictures) as null.

    Raises ValueError for NaN and infinity.
    """
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    other = lambda value: value.isoformat() if hasattr(value, "isoformat") else None  # noqa: E731
    return json.dumps(values, indent=indent, ensure_ascii=not is_utf8, allow_nan=False, default=other)


def remark(text: str) -> None:
    """Print a line on stderr: scripts read stdout."""
    print("hf-lora:", printable(" ".join(text.split())), file=sys.stderr)


def hush() -> None:
    """Keep Transformers' progress bars of loading out of a command's output. It is imported."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))
