"""The head of a safetensors file: its tensors' names, dtypes and shapes, and its metadata, without the numbers.

    8 bytes, little-endian: the length N of the JSON    N bytes of JSON    the tensors' bytes, one after the other
    {"__metadata__": {str: str}, name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}

https://huggingface.co/docs/safetensors. Offsets count from the end of the JSON.
"""

from typing import Any, NamedTuple

from ..errors import AdapterFileError
from .strict_json import parse_object

_MOST = 100_000_000  # bytes; the format's own limit


class TensorEntry(NamedTuple):
    """One tensor: its dtype by the format's name, its shape, and where its bytes lie behind the head."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What the head says: every tensor by name, in the file's order of names, and the metadata."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def header_size(start: bytes, file_size: int, where: str = "this file") -> int:
    """Return how many bytes the head takes, from a file's first 8 and its size in bytes.

    Raises AdapterFileError where no safetensors file begins like this.
    """
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > min(_MOST, file_size - 8):
        raise AdapterFileError(
            f"{where} is damaged, truncated or no safetensors file: its head would be {length:,d} bytes long, the file "
            f"has {file_size:,d}."
        )
    return 8 + length


def read_header(head: bytes, file_size: int, where: str = "this file") -> Header:
    """Return what the head of a safetensors file says.

    head: the file's first `header_size` bytes, or more. file_size: of the whole file, in bytes. where: what the file
    is, for the error. Raises AdapterFileError where it is not readable, a name comes twice, or the file has another
    size; that the tensors lie without holes and have their sizes is left to safetensors.
    """
    size = header_size(head, file_size, where)
    values = parse_object(head[8:size], f"{where} is damaged: its head")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterFileError(f"{where} is damaged: its __metadata__ is no object of strings.")
    tensors = {name: _entry(value, f"{where} is damaged: {name}") for name, value in values.items()}
    end = max((entry.end for entry in tensors.values()), default=0)
    if size + end != file_size:
        raise AdapterFileError(
            f"{where} is truncated or damaged: its head and tensors take {size + end:,d} bytes, the file has "
            f"{file_size:,d}."
        )
    return Header(tensors, metadata)


def _entry(value: Any, where: str) -> TensorEntry:
    try:
        entry = TensorEntry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
    except (TypeError, KeyError):
        raise AdapterFileError(f"{where} has no dtype, shape and data_offsets: {str(value)[:80]}.") from None
    if not isinstance(entry.dtype, str) or not all(type(n) is int and n >= 0 for n in (*entry.shape, *entry[2:])):
        raise AdapterFileError(f"{where} has an impossible dtype, shape or data_offsets: {str(value)[:80]}.")
    return entry
