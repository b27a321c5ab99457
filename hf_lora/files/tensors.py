"""Tensor files: safetensors written and read again; a `.bin` is read in `pickles.py`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import AdapterFileError, some
from ..maths.low_rank import not_finite
from .disk import read_regular, write_new
from .names import NOTES_KEY
from .pickles import read_pickled
from .safetensors_header import Header, header_size, read_header


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a new safetensors file and read every byte again; the caller deletes one that failed.

    The same tensors and metadata give the same bytes. Raises AdapterFileError where the file does not hold what was
    written, OSError.
    """
    content = _serialised(tensors, metadata)
    write_new(path, content)
    if read_regular(path) != content:
        raise AdapterFileError(
            f"{path} does not hold what was just written to it (bytes came back changed): the disk or its driver is at "
            "fault. Save elsewhere."
        )


def _serialised(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    own = {n: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for n, tensor in tensors.items()}
    raw = safetensors.torch.save(own, dict(metadata))
    size = header_size(raw, len(raw))
    head = json.loads(raw[8:size])
    head["__metadata__"] = dict(sorted(metadata.items()))  # safetensors writes the keys in any order
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(raw)[size:]))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .bin file, on the CPU, each in memory of its own, every value finite.

    What happens to the file later changes none of them. Raises AdapterFileError; of a .bin no code is run.
    """
    return read_noted(path)[0]


def read_noted(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `read_tensors` does, and what hf_lora noted in the file."""
    raw, notes = read_regular(path), dict[str, Any]()
    if path.suffix == ".safetensors":
        header = read_header(raw, len(raw), str(path))  # safetensors takes the last one of two of a name
        tensors, notes = _unpacked(raw, path, header), notes_of(header)
    else:
        tensors = read_pickled(raw, path)
    if wrong := not_finite(tensors):
        raise AdapterFileError(
            f"{path} holds values that are not finite (NaN or infinity) in {some(wrong)}: the training that made it "
            "diverged, or the file is damaged. Take an earlier checkpoint."
        )
    return tensors, notes


def _unpacked(raw: bytes, path: Path, header: Header) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(raw)
    except Exception as error:  # SafetensorError, KeyError for a dtype of tomorrow, RuntimeError for a shape
        raise AdapterFileError(f"{path} is damaged, or of a later version of safetensors: {error!r}.") from None
    return {name: tensors[name] for name in header.tensors}  # safetensors returns them in any order


def read_file_header(path: Path) -> Header:
    """Return what the head of a .safetensors file says. Raises AdapterFileError."""
    start, size = read_regular(path, 8), path.stat().st_size
    return read_header(read_regular(path, header_size(start, size, str(path))), size, str(path))


def read_notes(path: Path) -> dict[str, Any]:
    """Return what hf_lora noted in a .safetensors file; empty for other files. Raises AdapterFileError."""
    return notes_of(read_file_header(path)) if path.suffix == ".safetensors" else {}


def notes_of(header: Header) -> dict[str, Any]:
    """Return what hf_lora noted in a file's metadata; empty where nothing readable is."""
    try:
        notes = json.loads(header.metadata.get(NOTES_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}
