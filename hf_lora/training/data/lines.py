"""Plain text as rows: a line each, blank ones left out; or, in the form of CoNLL, a sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...errors import DataError
from .columns import PLACE
from .opening import encoding_of, open_text
from .written import BATCH, Found, Wanted, write_batches

_TAG = re.compile(r"O|[BIESLU]-\S+|-X-")


def read_text(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return the lines of a text file in a column "text", written to `table` as Arrow. Raises DataError.

    Where the first lines all end in a tag of words (O, B-PER), it is read as CoNLL.
    """
    import pyarrow as pa

    encoding = encoding_of(path, wanted.encoding)
    with open_text(path, encoding) as file:
        first = [parts for line in islice(file, 100) if (parts := line.split())]
    tags = {parts[-1] if len(parts) > 1 else "" for parts in first}
    if tags - {"O"} and all(map(_TAG.fullmatch, tags)):
        return read_conll(path, table, wanted)
    schema = pa.schema([("text", pa.string()), (PLACE, pa.string())])

    def batches() -> Iterator[Any]:
        with open_text(path, encoding) as file:
            lines = ((n, text) for n, line in enumerate(file, start=1) if (text := line.strip("\ufeff\r\n")).strip())
            while batch := list(islice(lines, BATCH)):
                columns = [[text for _, text in batch], [f"{path}, line {number}" for number, _ in batch]]
                yield pa.record_batch([pa.array(each, pa.string()) for each in columns], schema=schema)

    return Found(write_batches(batches(), schema, table, wanted.limit), {"format": "text", "encoding": encoding})


def read_conll(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return sentences as lists in the columns "tokens" and "tags", written to `table` as Arrow. Raises DataError.

    A line is a token, white space and its tag (what stands between them, in CoNLL 2003, is left out); a blank line ends
    a sentence. Tjong Kim Sang and De Meulder 2003, cs/0306050.
    """
    import pyarrow as pa

    encoding = encoding_of(path, wanted.encoding)
    words = pa.list_(pa.string())
    schema = pa.schema([("tokens", words), ("tags", words), (PLACE, pa.string())])

    def batches() -> Iterator[Any]:
        with open_text(path, encoding) as file:
            sentences = _sentences(file, path)
            while batch := list(islice(sentences, BATCH)):
                columns = zip(*batch, strict=True)
                yield pa.record_batch(
                    [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
                )

    return Found(write_batches(batches(), schema, table, wanted.limit), {"format": "CoNLL", "encoding": encoding})


def _sentences(lines: Iterable[str], path: Path) -> Iterator[tuple[list[str], list[str], str]]:
    """Yield (tokens, tags, place) of each sentence."""
    tokens: list[str] = []
    tags: list[str] = []
    place = ""
    for number, line in enumerate(chain(lines, [""]), start=1):
        parts = line.strip("\ufeff\r\n").split()
        if not parts or parts[0] == "-DOCSTART-":
            if tokens:
                yield tokens, tags, place
            tokens, tags = [], []
        elif len(parts) > 1:
            place = place if tokens else f"{path}, line {number}"
            tokens.append(parts[0])
            tags.append(parts[-1])
        else:
            raise DataError(f"{path}, line {number}: {parts[0]!r} has no tag behind it; a line is a token and its tag.")
