"""Tensors in one file or in several: which file an index names for what."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AdapterFileError, some
from .sources import Source
from .strict_json import read_json

_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)


def find_weights(source: Source, names: Iterable[str]) -> Path | None:
    """Return the first of these files that there is, each before the index of its shards; None where none is."""
    return next((path for name in names for file in (name, f"{name}.index.json") if (path := source.find(file))), None)


def read_weights(source: Source, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, or of all the shards of an index, and what hf_lora, which writes one, noted there.

    Raises AdapterFileError where the index names a file that is no plain name beside it, or where tensors are missing,
    there twice or there without being named.
    """
    if path.suffix != ".json":
        return source.tensors(path)
    places = _index(path)
    result: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        found = source.find(file)
        if found is None:
            raise AdapterFileError(f"{source.name}: {path.name} names a missing file: {file}.")
        tensors, _ = source.tensors(found)
        if odd := tensors.keys() ^ {key for key, place in places.items() if place == file}:
            raise AdapterFileError(
                f"{source.name}: {some(sorted(odd))}: either {file} lacks them or {path.name} does not name them there."
            )
        result |= tensors
    return result, {}


def _index(path: Path) -> dict[str, str]:
    """Return file by tensor name, each file a plain name with the ending that the index has."""
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise AdapterFileError(f"{path} has no weight_map from tensors to files.")
    for file in places.values():
        if not (isinstance(file, str) and _PLAIN.fullmatch(file) and file.endswith(suffix)):
            raise AdapterFileError(
                f"{path} names {file!r:.80}, which cannot be a shard: that is a {suffix} file beside the index, named "
                "without any directory."
            )
    return places
