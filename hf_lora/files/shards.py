"""Tensors in one file or in several: which file an index names for what, checked before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import AdapterFileError
from ..wording import some
from .sources import Source
from .strict_json import read_json
from .tensors import read_tensors

__all__ = ["find_weights", "read_weights"]

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def find_weights(source: Source, names: Iterable[str]) -> Path | None:
    """Return the first of these files that there is, each before the index of its shards; None where none is."""
    return next((path for name in names for file in (name, f"{name}.index.json") if (path := source.find(file))), None)


def read_weights(source: Source, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, or of all the shards of an index.

    Raises AdapterFileError where the index names a file that is no plain name beside it, or where files or tensors are
    missing, there twice or there without being named.
    """
    if path.suffix != ".json":
        return read_tensors(path)
    promised = _index(path)
    files = {file: source.find(file) for file in sorted(set(promised.values()))}
    if missing := [file for file, found in files.items() if found is None]:
        raise AdapterFileError(f"{source.name}: {path.name} names {len(missing)} missing files: {some(missing)}.")
    result: dict[str, Tensor] = {}
    problems = []
    for file, found in files.items():
        assert found is not None
        tensors = read_tensors(found)
        problems += [
            f"{key} is not in {file}" for key, place in promised.items() if place == file and key not in tensors
        ]
        problems += [f"{key} is in {file} without being named" for key in tensors if promised.get(key) != file]
        result |= tensors
    if problems:
        said = some(problems, between="; ")
        raise AdapterFileError(f"{source.name}: {path.name} does not say what its files hold: {said}.")
    return result


def _index(path: Path) -> dict[str, str]:
    """Return file by tensor name, each file a plain name with the ending that the index has."""
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    content = read_json(path).get("weight_map")
    if not isinstance(content, Mapping) or not content:
        raise AdapterFileError(f"{path} has no weight_map from tensors to files.")
    odd = [v for v in content.values() if not (isinstance(v, str) and _PLAIN.fullmatch(v) and v.endswith(suffix))]
    if odd:
        raise AdapterFileError(
            f"{path} names files that cannot be shards: {some(sorted({repr(v)[:80] for v in odd}))}. A shard is a "
            f"{suffix} file beside the index, named without any directory."
        )
    return dict(content)
