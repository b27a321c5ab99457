"""The head of a safetensors file: which tensors lie where. Read and checked before memory is taken for them.

    8 bytes, little-endian: the length N of the JSON    N bytes of JSON    the tensors' bytes, one after the other
    {"__metadata__": {str: str}, name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}

https://huggingface.co/docs/safetensors. Offsets count from the end of the JSON. Stricter than the reference reader:
no key twice, no name or shape that no adapter has.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import AdapterFileError
from .strict_json import parse_object

__all__ = ["DTYPE_BYTES", "Header", "TensorEntry", "header_size", "read_header", "write_header"]

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_NAME, MAX_AXES, MAX_NUMBERS = 1000, 16, 2**56
_KEYS = {"dtype", "shape", "data_offsets"}


class TensorEntry(NamedTuple):
    """One tensor: its dtype by the format's name, its shape, and where its bytes lie behind the head."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """What the head says: every tensor by name, in the file's order of names, the metadata, the head's own bytes."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    size: int


def header_size(start: bytes, file_size: int, where: str = "this file") -> int:
    """Return how many bytes the head takes, from a file's first 8 and its size in bytes.

    Raises AdapterFileError where no safetensors file begins like this.
    """
    if len(start) < 8:
        raise AdapterFileError(f"{where} is damaged: {len(start)} bytes are no safetensors file.")
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(MAX_HEADER, file_size - 8):
        raise AdapterFileError(
            f"{where} is damaged, truncated or no safetensors file: its head would be {length:,d} bytes long, the file "
            f"has {file_size:,d}."
        )
    return 8 + int(length)


def read_header(head: bytes, file_size: int, where: str = "this file") -> Header:
    """Return what the head of a safetensors file says, after checking all of it.

    head: the file's first `header_size` bytes, or more. file_size: of the whole file, in bytes. where: what the file
    is, for the error. Raises AdapterFileError, naming what is wrong in which tensor.
    """
    size = header_size(head, file_size, where)
    if len(head) < size:
        raise AdapterFileError(f"{where} is truncated: its head takes {size:,d} bytes, {len(head):,d} are there.")
    if head[8:9] != b"{":
        raise AdapterFileError(f"{where} is damaged: a safetensors head begins with '{{', not {head[8:9]!r}.")
    values = parse_object(head[8:size], f"{where} is damaged: its head", numbers=False)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterFileError(f"{where} is damaged: its __metadata__ is no object of strings.")
    tensors, problems = {}, []
    for name, value in values.items():
        entry = _entry(value)
        if not 0 < len(name) <= MAX_NAME:
            problems.append(f"a tensor's name has {len(name)} characters")
        elif isinstance(entry, str):
            problems.append(f"{name}: {entry}")
        else:
            tensors[name] = entry
    problems = problems or _layout(tensors, file_size - size)
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise AdapterFileError(f"{where} is damaged: {'; '.join(problems[:4])}{more}.")
    return Header(tensors, metadata, size)


def _entry(value: Any) -> TensorEntry | str:
    """Return a tensor's entry, or what is wrong with it."""
    if not isinstance(value, dict) or value.keys() != _KEYS:
        return "its entry is no object of dtype, shape and data_offsets"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"its dtype {str(dtype)[:40]!r} is none of {', '.join(DTYPE_BYTES)}"
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        return f"its shape {str(shape)[:80]} is no list of at most {MAX_AXES} sizes"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"its data_offsets {str(offsets)[:80]} are no [begin, end]"
    if math.prod(max(n, 1) for n in shape) > MAX_NUMBERS:
        return f"its shape {str(shape)[:80]} is larger than any memory"
    needed = math.prod(shape) * DTYPE_BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        return f"{shape} of {dtype} takes {needed} bytes, which its data_offsets {str(offsets)[:80]} do not hold"
    return TensorEntry(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _layout(tensors: Mapping[str, TensorEntry], size: int) -> list[str]:
    """Return where the tensors leave a hole, overlap, or end elsewhere than the file."""
    at, problems = 0, []
    for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if entry.begin != at:
            problems.append(f"{name} begins at byte {entry.begin}, but what lies before it ends at {at}")
        at = max(at, entry.end)
    if at != size:
        problems.append(f"its tensors take {at:,d} bytes, the file holds {size:,d} (truncated, or extended)")
    return problems


def write_header(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Return the head for tensors and metadata: the same bytes for the same content; a multiple of 8 long."""
    values: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    for name, entry in tensors.items():
        values[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(values).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
