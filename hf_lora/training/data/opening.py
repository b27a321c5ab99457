"""Files of text, opened in the encoding that they have: UTF-8, or UTF-16 and UTF-32 by their marks; else as is said.

Other encodings cannot be told apart by their bytes: a French text in Windows' letters is good Central European, too. So
a file in one of them is refused, with the line and with what it would read in each.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from ...errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
# Files that are called after rows, but are something else: their first bytes, and what to do.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; unpack it, or save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file; save it as CSV UTF-8"),
    (b"PAR1", "a Parquet file; let its name end in .parquet"),
    (b"%PDF", "a PDF; bring its text into a table first"),
    (b"\x89PNG", "a picture; name a folder of pictures, or a table with their paths"),
    (b"\xff\xd8\xff", "a picture; name a folder of pictures, or a table with their paths"),
    (b"SQLite format 3", "an SQLite database; export its table as CSV"),
)
# Tried in this order where a file is no UTF-8: those with more than a byte a letter rarely fit by chance.
_CANDIDATES = (
    "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255",
    "cp1256", "cp874",
)  # fmt: skip
_OTHER_LETTER = r"[^\W\d_a-zA-Z\u00c0-\u024f]"  # no Latin one
# Signs of a wrong encoding: letters of two scripts side by side, and what nobody writes.
_MIXED = re.compile(f"[a-zA-Z]{_OTHER_LETTER}|{_OTHER_LETTER}[a-zA-Z]|[\x80-\x9f\ue000-\uf8ff\ufffd]")
_LOOKED_AT = 1 << 16  # bytes from the first line that is no UTF-8 on
_CHUNK = 1 << 20


def encoding_of(path: Path, given: str | None = None) -> str:
    """Return a file's encoding, and read all of it to be sure. given: what the user says.

    Raises DataError with the line that is written otherwise, and with the encodings in which it makes sense.
    """
    if given is not None:
        try:
            name = codecs.lookup(given).name
        except LookupError:
            raise DataError(f"--encoding {given}: there is no such encoding; try cp1252 or gb18030.") from None
        given = "utf-8-sig" if name == "utf-8" else given  # which reads a mark, where there is one
    with _raw(path) as file:
        start = file.read(4096)
        for mark, what in _OTHERS:
            if start.startswith(mark):
                raise DataError(f"{path}: it is {what}.")
        marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
        encoding = given or marked or _without_mark(start)
        lines, decoder, chunk = 1, codecs.getincrementaldecoder(encoding)(), start
        while True:
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise DataError(_otherwise(path, encoding, error, lines)) from error
            except UnicodeError as error:  # UTF-16 and UTF-32 need a mark, or "-le" or "-be" behind their names
                raise DataError(
                    f"{path}, line 1: it is not {encoding} ({error}). Name its encoding with --encoding, or leave that "
                    "out where it is UTF-8."
                ) from error
            if "\0" in text:
                line = lines + text[: text.index("\0")].count("\n")
                raise DataError(
                    f"{path}, line {line}: it holds a zero byte, so it is no text; is it of another format?"
                )
            if not chunk:
                return encoding
            lines += text.count("\n")
            chunk = file.read(_CHUNK)


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open a text file, unpacked where it ends in .gz; line ends are left as they are. Raises DataError."""
    with _raw(path) as file, io.TextIOWrapper(file, encoding=encoding, newline="") as text:
        yield text


@contextmanager
def _raw(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: it cannot be unpacked: {error}. Pack it again, or give it unpacked.") from error
    except IsADirectoryError:
        raise DataError(f"{path}: it is a folder.") from None
    except PermissionError as error:
        raise DataError(f"{path}: it may not be read ({error.strerror}); change its permissions.") from error


def _without_mark(start: bytes) -> str:
    """Return UTF-16 where every other byte is zero, as in Western text without a mark; else UTF-8."""
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) > len(start) / 5:
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8"


def _otherwise(path: Path, encoding: str, error: UnicodeDecodeError, lines: int) -> str:
    """Say which line is not in an encoding, and what it would be in others. lines: the number of the chunk's first."""
    before = error.object[: error.start]
    place = f"{path}, line {lines + before.count(10)}"
    rest = error.object[before.rfind(b"\n") + 1 :][:_LOOKED_AT]
    if encoding != "utf-8" or b"\0" in rest:
        return (
            f"{place}: it is not {encoding} ({error.reason}). Name its encoding with --encoding, or save it as UTF-8."
        )
    rest = rest[: rest.rfind(b"\n")] if b"\n" in rest else rest
    read = {name: text for name in _CANDIDATES if (text := _decoded(rest, name)) is not None}
    order = sorted(read, key=lambda name: (name != _guess(rest), len(_MIXED.findall(read[name])) > len(rest) / 50))
    said = [f"{name} {_around(read[name].splitlines()[0])!r}" for name in order[:5]]
    found = f" It reads in {', in '.join(said)}." if said else ""
    return f"{place}: it is not UTF-8.{found} Name its encoding with --encoding, or save it as UTF-8."


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _guess(data: bytes) -> str | None:
    """Return what charset-normalizer takes an encoding for, where it is installed."""
    try:
        from charset_normalizer import from_bytes
    except ModuleNotFoundError:
        return None
    best = from_bytes(data, cp_isolation=list(_CANDIDATES)).best()
    return None if best is None else str(best.encoding)


def _around(line: str, most: int = 40) -> str:
    """Return a line's part with the first letter that is no ASCII."""
    first = next((at for at, letter in enumerate(line) if not letter.isascii()), 0)
    return line[max(first - most // 2, 0) :][:most]
