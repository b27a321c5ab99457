"""Tensor files: safetensors written and read again; a `.bin` is read in `pickles.py`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from ..errors import AdapterFileError, some
from ..maths.low_rank import not_finite
from .disk import read_regular, write_new
from .names import NOTES_KEY
from .pickles import read_pickled
from .strict_json import parse_object


class TensorEntry(NamedTuple):
    """What the head of a file says of one tensor: its dtype by the format's name, and its shape."""

    dtype: str
    shape: tuple[int, ...]


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
    size = head_size(raw)
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
        with _checked(path):
            found = safetensors.torch.load(raw)
        # Parsed here as well: safetensors takes the last one of two of a name, and returns them in any order.
        names = parse_object(raw[8 : head_size(raw)], f"{path} is damaged: its head")
        notes = notes_of(names.pop("__metadata__", {}))
        tensors = {name: found[name] for name in names}
    else:
        tensors = read_pickled(raw, path)
    if wrong := not_finite(tensors):
        raise AdapterFileError(
            f"{path} holds values that are not finite (NaN or infinity) in {some(wrong)}: the training that made it "
            "diverged, or the file is damaged. Take an earlier checkpoint."
        )
    return tensors, notes


def head_size(raw: bytes) -> int:
    """Return how many bytes the head of a safetensors file takes, as its first 8 say it."""
    return 8 + int.from_bytes(raw[:8], "little")


@contextmanager
def head_of(path: Path) -> Iterator[Any]:
    """Give a .safetensors file, of which only the head is read, inside a `with` block. Raises AdapterFileError."""
    read_regular(path, 1)  # and no pipe, which would be waited for
    with _checked(path), safetensors.safe_open(path, "pt") as file:
        yield file


@contextmanager
def _checked(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # SafetensorError, KeyError for a dtype of tomorrow, RuntimeError for a shape
        raise AdapterFileError(
            f"{path} is truncated, damaged, no safetensors file, or one of a later version: {error!r}."
        ) from None


def read_head(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Return what the head of a .safetensors file says of its tensors, and what hf_lora noted there."""
    with head_of(path) as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        entries = {name: TensorEntry(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        return entries, notes_of(file.metadata() or {})


def read_notes(path: Path) -> dict[str, Any]:
    """Return what hf_lora noted in a .safetensors file; empty for other files. Raises AdapterFileError."""
    return read_head(path)[1] if path.suffix == ".safetensors" else {}


def notes_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what hf_lora noted in a file's metadata; empty where nothing readable is."""
    try:
        notes = json.loads(metadata.get(NOTES_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}
