"""Rows as they come in, a line each, without waiting for the end: what a pipe hands over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ...errors import DataError
from .columns import PLACE

__all__ = ["rows_of_lines"]


def rows_of_lines(lines: Iterable[str], source: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each line: an object of JSON where the first line is one, else a text in the column "text".

    Blank lines of JSON are left out; a blank text is a row, which has its prediction or is an error. source: what the
    lines are called in errors. Raises DataError with the line that is not like the first.

    >>> [row["text"] for row in rows_of_lines(["fine", "[so so]"], "stdin")]
    ['fine', '[so so]']
    """
    are_objects: bool | None = None
    for number, line in enumerate(lines, start=1):
        text, place = line.removeprefix("\ufeff").strip(), f"{source}, line {number}"
        if are_objects is None and text:
            are_objects = text.startswith("{")
        if not are_objects:
            yield {"text": text, PLACE: place}
        elif text:
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{place}: it is no JSON ({error}), though line 1 is; give an object a line."
                ) from error
            if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
                raise DataError(f"{place}: it has half a letter (an unpaired surrogate); mend or remove it.")
            if not isinstance(row, dict):
                raise DataError(f"{place}: it holds a {type(row).__name__}, not an object with the columns' values.")
            yield {**row, PLACE: place}
