"""JSON files from anywhere, read strictly: one object, each key once, every number an ordinary one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import AdapterFileError
from .disk import open_regular

__all__ = ["MAX_BYTES", "parse_object", "read_json"]

MAX_BYTES = 16 * 2**20  # the largest config seen holds 40 kB; an index of a thousand shards 10 MB
_LARGEST = 2**63


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises AdapterFileError, whatever the file holds instead."""
    with open_regular(path) as file:
        try:
            raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise AdapterFileError(f"{path} cannot be read: {error}") from error
    if len(raw) > MAX_BYTES:
        raise AdapterFileError(f"{path} is larger than {MAX_BYTES:,d} bytes, which no config or index is.")
    return parse_object(raw, str(path))


def parse_object(raw: bytes, where: str, numbers: bool = True) -> dict[str, Any]:
    """Return the object that a JSON text in UTF-8 holds.

    where: what the text is, for the error. numbers: False where the caller bounds every number itself, which saves
    half of the time. Raises AdapterFileError: for what is no JSON, for another value than an object, for a key that
    comes twice (which of them counts differs between readers), for NaN and infinity, for numbers beyond 64 bits, and
    for nesting that no reader takes.
    """
    try:
        text = raw.decode("utf-8")
        checks: dict[str, Any] = {"parse_int": _integer, "parse_float": _float} if numbers else {}
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, **checks)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is a string nobody can write
    except RecursionError:
        raise AdapterFileError(f"{where} cannot be read as JSON: it is nested too deeply.") from None
    except (ValueError, MemoryError) as error:
        raise AdapterFileError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise AdapterFileError(f"{where} holds a JSON {type(value).__name__}, not an object.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:200]!r} comes more than once.")
    return result


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number.")


def _integer(text: str) -> int:
    if len(text) > 20 or not -_LARGEST <= int(text) < 2 * _LARGEST:
        raise ValueError(f"the number {text[:24]}{'...' if len(text) > 24 else ''} does not fit into 64 bits.")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:24]} is beyond any float.")
    return value
