"""Tensor files on disk: safetensors written atomically with the same bytes every time, pickles never executed."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import AdapterFileError

__all__ = ["read_metadata", "read_tensors", "write_atomically", "write_tensors"]

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: the old file or the new one is there at any moment, never half of one.

    The header is written with sorted keys, because safetensors orders several metadata entries by chance.
    """
    content = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    raw = safetensors.torch.save(content, metadata=dict(metadata))
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **_without_metadata(header)}).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, struct.pack("<Q", len(text)) + text + raw[8 + length :])


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that a crash leaves the old file whole."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .bin file, on the CPU, each in memory of its own.

    What happens to the file later changes none of them. A .bin is a pickle: it is read with `weights_only=True`, which
    runs no code, and refused where that fails. Raises AdapterFileError.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AdapterFileError(f"{path} does not exist.") from None
    except Exception as error:  # safetensors and torch raise their own kinds for a damaged file
        raise AdapterFileError(f"{path} cannot be read, it is damaged or not a tensor file: {error}") from None
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise AdapterFileError(f"{path} does not hold a dictionary of tensors.")
    return {name: tensor.detach().clone() for name, tensor in loaded.items()}  # a pickle's may share their memory


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a file in one piece; every tensor is a storage of its own in it.

    `safetensors.torch.load_file` maps the file instead: what is used without a copy changes with it, and copying a
    hundred small tensors one by one starts torch's threads for each, which on a busy machine costs 100 times more.
    """
    with safetensors.safe_open(path, framework="pt"), open(path, "rb") as file:  # the first one checks the header
        (length,) = struct.unpack("<Q", file.read(8))
        header = _without_metadata(json.loads(file.read(length)))
        data = torch.empty(os.fstat(file.fileno()).st_size - file.tell(), dtype=torch.uint8)
        if file.readinto(data.numpy().data) != data.numel():
            raise EOFError("it became shorter while it was read.")
    tensors = {}
    for name, entry in header.items():
        own = data.untyped_storage()[slice(*entry["data_offsets"])]
        tensors[name] = torch.empty(0, dtype=_DTYPES[entry["dtype"]]).set_(own).view(entry["shape"])
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise AdapterFileError(f"{path} cannot be read, it is damaged or not a tensor file: {error}") from None


def _without_metadata(header: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in header.items() if key != "__metadata__"}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
