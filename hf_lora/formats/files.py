"""Tensor files on disk: safetensors written atomically with the same bytes every time, pickles never executed."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import AdapterFileError

__all__ = ["read_metadata", "read_tensors", "write_atomically", "write_tensors"]


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
    """Return the tensors of a .safetensors or .bin file, on the CPU.

    A .bin is a pickle: it is read with `weights_only=True`, which runs no code, and refused where that fails.
    Raises AdapterFileError.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AdapterFileError(f"{path} does not exist.") from None
    except Exception as error:  # safetensors and torch raise their own kinds for a damaged file
        raise AdapterFileError(f"{path} cannot be read, it is damaged or not a tensor file: {error}") from None
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise AdapterFileError(f"{path} does not hold a dictionary of tensors.")
    return loaded


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise AdapterFileError(f"{path} cannot be read, it is damaged or not a tensor file: {error}") from None


def _without_metadata(header: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in header.items() if key != "__metadata__"}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
