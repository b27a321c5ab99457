"""Tensor files: safetensors written and read strictly; a `.bin` is read in `pickles.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import AdapterFileError
from ..maths.low_rank import is_finite
from ..wording import some
from .disk import open_regular, remove, write_new
from .names import NOTES_KEY
from .pickles import read_pickled
from .safetensors_header import DTYPE_BYTES, Header, TensorEntry, header_size, read_header, write_header

__all__ = ["read_file_header", "read_metadata", "read_notes", "read_tensors", "write_tensors"]

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a new safetensors file, read it again, and compare every bit; what fails leaves no file.

    The same tensors and metadata give the same bytes: wider dtypes first, then by name, as the reference writer
    orders them. Raises AdapterFileError where the file does not hold what was written, OSError.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    order = sorted(content, key=lambda name: (-content[name].element_size(), name))
    entries: dict[str, TensorEntry] = {}
    at = 0
    for name in order:
        tensor = content[name]
        entries[name] = TensorEntry(_NAMES[tensor.dtype], tuple(tensor.shape), at, at + tensor.nbytes)
        at += tensor.nbytes
    head = write_header(entries, metadata)
    write_new(path, _parts(head, [content[name] for name in order]))
    try:
        _verify(path, content, metadata)
    except BaseException:
        remove(path)
        raise


def _parts(head: bytes, tensors: Iterable[Tensor]) -> Iterator[Any]:
    yield head
    for tensor in tensors:
        yield _bytes(tensor).numpy().data


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _verify(path: Path, content: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    header, data = _read_safetensors(path)
    got = _split(header, data)
    wrong = [name for name in content.keys() | got.keys() if not _same(content.get(name), got.get(name))]
    if wrong or header.metadata != dict(metadata):
        what = ", ".join(sorted(wrong)[:4]) or "its metadata"
        raise AdapterFileError(
            f"{path} does not hold what was just written to it ({what} came back changed): the disk or its driver is "
            "at fault. Save elsewhere."
        )


def _same(want: Tensor | None, got: Tensor | None) -> bool:
    if want is None or got is None or want.dtype is not got.dtype or want.shape != got.shape:
        return False
    return torch.equal(_bytes(want), _bytes(got))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .bin file, on the CPU, each in memory of its own, every value finite.

    What happens to the file later changes none of them. Raises AdapterFileError, before memory is taken where what a
    file says of its tensors is wrong; of a .bin no code is run.
    """
    if path.suffix != ".safetensors":
        tensors = read_pickled(path)
        _check_finite(path, tensors)
        return tensors
    header, data = _read_safetensors(path)
    tensors = _split(header, data)
    dtypes = {entry.dtype for entry in header.tensors.values()}
    dtype = _DTYPES[dtypes.pop()] if len(dtypes) == 1 else torch.bool
    # One sum over all numbers takes a tenth of the time of one for each tensor.
    if not (dtype.is_floating_point and _in_range(data.view(dtype))):
        _check_finite(path, tensors)
    return tensors


def read_file_header(path: Path) -> Header:
    """Return what the head of a .safetensors file says. Raises AdapterFileError."""
    with open_regular(path) as file:
        return _read_head(file, path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; empty for other files. Raises AdapterFileError."""
    return read_file_header(path).metadata if path.suffix == ".safetensors" else {}


def read_notes(path: Path) -> dict[str, Any]:
    """Return what hf_lora noted in a file's metadata; empty where nothing readable is. Raises AdapterFileError."""
    try:
        notes = json.loads(read_metadata(path).get(NOTES_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _read_head(file: BinaryIO, path: Path) -> Header:
    try:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        head = start + file.read(header_size(start, size, str(path)) - 8)
    except AdapterFileError:
        raise
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read: {error}") from error
    return read_header(head, size, str(path))


def _read_safetensors(path: Path) -> tuple[Header, Tensor]:
    """Return a file's head and its numbers' bytes, read in one piece."""
    with open_regular(path) as file:
        header = _read_head(file, path)
        data = torch.empty(
            max((entry.end for entry in header.tensors.values()), default=0), dtype=torch.uint8, device="cpu"
        )
        try:
            count = file.readinto(data.numpy().data) if len(data) else 0  # type: ignore[attr-defined]
        except OSError as error:
            raise AdapterFileError(f"{path} cannot be read: {error}") from error
    if count != len(data):
        raise AdapterFileError(f"{path} became shorter while it was read; another program writes it.")
    return header, data


def _split(header: Header, data: Tensor) -> dict[str, Tensor]:
    """Return a file's tensors; every one is a storage of its own in the bytes.

    `safetensors.torch.load_file` maps the file instead: what is used without a copy changes with it, and copying a
    hundred small tensors one by one starts torch's threads for each, which on a busy machine costs 100 times more.
    """
    tensors = {}
    whole = data.untyped_storage()
    for name, entry in header.tensors.items():
        own = whole[entry.begin : entry.end]
        if entry.begin % DTYPE_BYTES[entry.dtype]:  # where files of several dtypes are packed carelessly
            own = own.clone()
        tensors[name] = torch.empty(0, dtype=_DTYPES[entry.dtype], device="cpu").set_(own).view(entry.shape)
    return tensors


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    wrong = [name for name, tensor in tensors.items() if tensor.dtype.is_floating_point and not _in_range(tensor)]
    if wrong:
        raise AdapterFileError(
            f"{path} holds values that are not finite (NaN or infinity) in {some(wrong)}: the training that made it "
            "diverged, or the file is damaged. Take an earlier checkpoint."
        )


def _in_range(values: Tensor) -> bool:
    """Return whether every number is finite, in float32 as well, which adapters are computed in."""
    return is_finite(values if values.dtype.itemsize in (2, 4) else values.float())
