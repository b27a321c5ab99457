"""Reading a JSON object from a file: the object, or an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import AdapterFileError

__all__ = ["read_json"]

LIMIT = 32 * 2**20  # bytes; the largest index of a sharded model is a fraction of it


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds. Raises AdapterFileError where it holds anything else."""
    try:
        if path.stat().st_size > LIMIT:
            raise AdapterFileError(f"{path} cannot be JSON of an adapter: it is larger than {LIMIT} bytes.")
        values = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise AdapterFileError(f"{path} does not exist.") from None
    except AdapterFileError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterFileError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise AdapterFileError(f"{path} holds a JSON {type(values).__name__}, not an object.")
    return values


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's content; a key with two values is neither of them."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result and result[key] != value:
            raise ValueError(f"the key {key!r} stands there twice, with different values.")
        result[key] = value
    return result
