"""JSON files from anywhere, read strictly: one object, each key once, every number an ordinary one."""

import json
from pathlib import Path
from typing import Any

from ..errors import AdapterFileError
from .disk import read_regular

_MOST = 16 * 2**20  # bytes; the largest config seen holds 40 kB, an index of a thousand shards 10 MB


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises AdapterFileError, whatever the file holds instead."""
    raw = read_regular(path, _MOST + 1)
    if len(raw) > _MOST:
        raise AdapterFileError(f"{path} is larger than {_MOST:,d} bytes, which no config or index is.")
    return parse_object(raw, str(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Return the object that a JSON text in UTF-8 holds. where: what the text is, for the error.

    Raises AdapterFileError: for what is no JSON, for another value than an object, for a key that comes twice (which
    of them counts differs between readers), and for NaN, infinity and numbers beyond 64 bits.
    """
    try:
        numbers: dict[str, Any] = {"parse_int": _number, "parse_float": _number, "parse_constant": _number}
        value = json.loads(text := raw.decode("utf-8"), object_pairs_hook=_once, **numbers)
        if "\\u" in text:  # half a surrogate pair is a string that nobody can write
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError, MemoryError) as error:
        raise AdapterFileError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise AdapterFileError(f"{where} holds a JSON {type(value).__name__}, not an object.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:200]!r} comes more than once.")
        result[key] = value
    return result


def _number(text: str) -> float:
    value = int(text) if text.lstrip("-").isdigit() else float(text)
    if not abs(value) < 2**64:  # NaN is not either
        raise ValueError(f"the number {text[:24]} is not below 2^64.")
    return value
