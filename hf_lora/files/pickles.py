"""`.bin` files: pickled tensors, read without running a pickle's code, and without taking more memory than they hold.

`torch.load(weights_only=True)` builds what tensors are made of and nothing else. That can still be told to build
something huge, or to hash for ever, so the archive and the pickle are looked through first.
"""

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterFileError

_HOW = (
    "Where you trust it, convert it: safetensors.torch.save_file(torch.load(old, weights_only=True), "
    "'adapter_model.safetensors')."
)
# What the pickle of a dictionary of tensors names; torch.load would take more, such as bytearrays of any length.
_NAMED = re.compile(
    r"collections OrderedDict|torch \w*Storage|torch\.storage UntypedStorage|torch\.serialization _get_layout|"
    r"torch (b?float|complex|u?int|bool)\w*|torch\._utils _rebuild_(tensor(_v[23])?|parameter)"
)


def read_pickled(raw: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `torch.save` wrote of a dictionary of them, each in memory of its own.

    raw: the file's content; path: for the error. Raises AdapterFileError for anything else; nothing is executed.
    """
    if not raw.startswith(b"PK\x03\x04"):
        raise AdapterFileError(
            f"{path} is damaged, or no archive of torch.save: a bare pickle, as PyTorch wrote before 1.6, says nothing "
            f"of its sizes and is not read. {_HOW}"
        )
    try:
        _check_archive(raw)
        loaded = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        return _own(loaded, len(raw))
    except Exception as error:  # zipfile, pickletools and torch raise their own kinds for a damaged file
        raise AdapterFileError(f"{path} cannot be read, it is damaged or no tensor file: {error} {_HOW}") from None


def _check_archive(raw: bytes) -> None:
    """Raise ValueError where an archive unfolds to more than it is, has a wrong checksum, or pickles other things."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(raw):
            raise ValueError("it is compressed, or claims more than it holds; torch.save writes no such file.")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong.")
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                _check_pickle(archive.read(name))


def _check_pickle(code: bytes) -> None:
    """Raise ValueError where a pickle names what no dictionary of tensors needs, or uses a tuple twice."""
    # A hundred tuples, each holding the one before twice, take for ever to hash as the key of a dictionary.
    tuples: set[Any] = set()
    before = ""
    for opcode, argument, _ in pickletools.genops(code):
        if opcode.name == "GLOBAL" and not _NAMED.fullmatch(str(argument)):
            raise ValueError(f"its pickle asks for {argument}, which no dictionary of tensors needs.")
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            (tuples.add if before.startswith("TUPLE") else tuples.discard)(argument)
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument in tuples:
            raise ValueError("its pickle uses a tuple twice, which no dictionary of tensors does.")
        before = opcode.name


def _own(loaded: Any, size: int) -> dict[str, Tensor]:
    """Return a dictionary of tensors with its views copied. Raises ValueError where it is another thing, or a trap."""
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) and v.layout is torch.strided and not v.is_meta
        for k, v in loaded.items()
    ):
        raise ValueError("it does not hold a dictionary of tensors by name.")
    total = sum(tensor.nbytes for tensor in loaded.values())
    if total > 8 * size:  # views may share memory; a tensor that repeats one number a billion times is a trap
        raise ValueError(f"its tensors would take {total:,d} bytes, the file holds {size:,d}.")
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in loaded.items()}
