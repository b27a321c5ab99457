"""`.bin` files: pickled tensors, read without running a pickle's code, and without taking more memory than they hold.

`torch.load(weights_only=True)` builds tensors only. Before it sees anything, the archive is taken apart: entries must
be stored as they are, and the pickle may name nothing that saving a dictionary of tensors does not name.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterFileError
from .disk import open_regular

__all__ = ["read_pickled"]

_HOW = (
    "Where you trust it, convert it: safetensors.torch.save_file(torch.load(old, weights_only=True), "
    "'adapter_model.safetensors')."
)
_GLOBALS = {
    "collections OrderedDict", "torch.serialization _get_layout", "torch.storage UntypedStorage",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
}  # fmt: skip
_MOST_ENTRIES = 100_000
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `torch.save` wrote of a dictionary of them, each in memory of its own.

    Raises AdapterFileError for anything else; nothing in the file is executed.
    """
    try:
        with open_regular(path) as file:
            entries = _entries(file, path)
        for name, raw in entries.items():
            if name.endswith("data.pkl"):
                _check_pickle(raw)
        loaded = torch.load(_packed(entries), map_location="cpu", weights_only=True)
        return _own(loaded, sum(map(len, entries.values())))
    except AdapterFileError:
        raise
    except Exception as error:  # zipfile, pickletools and torch raise their own kinds for a damaged file
        raise AdapterFileError(f"{path} cannot be read, it is damaged or not a tensor file: {error}") from None


def _entries(file: Any, path: Path) -> dict[str, bytes]:
    """Return the archive's entries. Raises AdapterFileError where they would unfold to more than the file."""
    if file.read(4) != b"PK\x03\x04":
        raise AdapterFileError(
            f"{path} is damaged, or no archive of torch.save: a bare pickle, as PyTorch wrote before 1.6, says nothing "
            f"of its sizes and is not read. {_HOW}"
        )
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        size = path.stat().st_size
        if len(infos) > _MOST_ENTRIES or len({i.filename for i in infos}) != len(infos):
            raise AdapterFileError(f"{path} is damaged: {len(infos)} entries, or two of one name.")
        if any(i.compress_type != zipfile.ZIP_STORED for i in infos) or sum(i.file_size for i in infos) > size:
            raise AdapterFileError(
                f"{path} is compressed, or claims more than its {size:,d} bytes hold; torch.save writes no such file. "
                f"{_HOW}"
            )
        return {i.filename: archive.read(i) for i in infos}


def _check_pickle(raw: bytes) -> None:
    """Raise ValueError where a pickle names what no dictionary of tensors needs, or could keep its reader busy.

    A tuple that is used twice is such a thing: a hundred of them, each holding the one before twice, as the key of a
    dictionary take for ever to hash.
    """
    tuples: set[object] = set()
    before = ""
    memo = 0
    for opcode, argument, _ in pickletools.genops(raw):
        name = opcode.name
        if name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            if name != "GLOBAL" or not _is_known(str(argument)):
                raise ValueError(
                    f"its pickle asks for {argument or name}, which no dictionary of tensors needs. {_HOW}"
                )
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = memo if name == "MEMOIZE" else argument
            memo += 1
            (tuples.add if before in _TUPLES else tuples.discard)(key)
        elif name == "DUP" or (name in ("GET", "BINGET", "LONG_BINGET") and argument in tuples):
            raise ValueError(f"its pickle uses a tuple twice, which no dictionary of tensors does. {_HOW}")
        before = name


def _is_known(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    is_own = module == "torch" and (
        attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
    )
    return name in _GLOBALS or is_own


def _packed(entries: dict[str, bytes]) -> io.BytesIO:
    """Return the entries as an archive of our own, so that torch's reader sees just what was checked."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, raw in entries.items():
            archive.writestr(zipfile.ZipInfo(name), raw)
    packed.seek(0)
    return packed


def _own(loaded: Any, size: int) -> dict[str, Tensor]:
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) and v.layout is torch.strided and not v.is_meta
        for k, v in loaded.items()
    ):
        raise ValueError("it does not hold a dictionary of tensors by name.")
    total = sum(tensor.numel() * tensor.element_size() for tensor in loaded.values())
    if total > 8 * size:  # views may share memory; a tensor that repeats one number a billion times is a trap
        raise ValueError(f"its tensors would take {total:,d} bytes, the file holds {size:,d}.")
    return {name: tensor.detach().contiguous().clone() for name, tensor in loaded.items()}
