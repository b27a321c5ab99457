"""An adapter's two files, changed as one: whenever the process dies, the old adapter or the new one is there.

    1. the new config is written as `.adapter_config.json.pending`
    2. the new weights are written beside the old ones and read back; their metadata holds the config's SHA-256
    3. they take the old ones' place: from here on the adapter is the new one
    4. the pending config takes the old one's place

Between 3 and 4 the weights name the pending config, not the one in place, and every reader follows them (`settled`).
A config that somebody edited is none that any pending file competes with: it counts.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AdapterFileError
from .disk import locked, read_regular, sweep, sync_directory, temporary, write_new
from .names import CARD_NAME, CONFIG_NAME, NOTES_KEY, PENDING_NAME, WEIGHTS_NAME, WEIGHTS_NAMES
from .sources import Source
from .tensors import read_notes, write_tensors

_CONFIG_NOTE = "config_sha256"
# What other formats and versions leave in a folder; beside new weights it would be another adapter's.
_OLDER = re.compile(r"adapter_model(-\d+-of-\d+\.(safetensors|bin)|\.safetensors\.index\.json|\.bin(\.index\.json)?)")


def commit(directory: Path, config: bytes, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write an adapter into a directory that is there, `locked` by the caller, in the place of the one in it.

    config: the content of adapter_config.json. notes: what the weights' metadata holds under NOTES_KEY, JSON values.
    Raises AdapterFileError or OSError; the old adapter is then still there, or the new one complete.
    """
    weights, pending = directory / WEIGHTS_NAME, directory / PENDING_NAME
    text = json.dumps({**notes, _CONFIG_NOTE: hashlib.sha256(config).hexdigest()}, sort_keys=True)
    for path in (weights, directory / CONFIG_NAME):
        if path.is_dir():
            raise AdapterFileError(f"{path} is a directory where an adapter has a file; save elsewhere.")
    sweep(directory, (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME))
    _settle(directory)
    beside = temporary(weights)
    try:
        write_new(pending, config)
        write_tensors(beside, tensors, {"format": "pt", NOTES_KEY: text})
        sync_directory(directory)
        os.replace(beside, weights)
    finally:
        beside.unlink(missing_ok=True)
        sync_directory(directory)
        _settle(directory)  # whatever happened: an interrupt may come after the weights have changed
    for path in directory.iterdir():
        if _OLDER.fullmatch(path.name):
            path.unlink()
    sync_directory(directory)


def withdraw(directory: Path) -> None:
    """Remove the adapter that a directory holds at its top, if it does; other files stay."""
    if settled(directory) is None:
        return
    with locked(directory):
        for name in (PENDING_NAME, CONFIG_NAME, *WEIGHTS_NAMES):  # without a config it is no adapter any more
            (directory / name).unlink(missing_ok=True)
        sync_directory(directory)


def find_config(source: Source) -> Path | None:
    """Return where a source's config lies, None where it has none; on this machine the one that `settled` says."""
    pending = source.find(PENDING_NAME) if source.is_local else None
    return source.find(CONFIG_NAME) if pending is None else settled(pending.parent)


def settled(directory: Path) -> Path | None:
    """Return the config file that belongs to a directory's weights; None where there is none.

    It is the pending one where a save was cut off between its two last steps; nothing is changed.
    """
    config, pending = directory / CONFIG_NAME, directory / PENDING_NAME
    if pending.is_file() and _is_due(directory):
        return pending
    return config if config.is_file() else None


def folders_of_adapters(directory: Path) -> list[str]:
    """Return the paths in a directory of its folders that hold an adapter's config, and of those inside them, sorted.

    An adapter's name has one slash at most.
    """
    folders = [path for path in directory.iterdir() if path.is_dir()]
    inside = [path for folder in folders if os.access(folder, os.R_OK | os.X_OK) for path in folder.iterdir()]
    found = (path for path in (*folders, *inside) if path.is_dir() and settled(path) is not None)
    return sorted(path.relative_to(directory).as_posix() for path in found)


def lacks_config(source: Source) -> bool:
    """Return whether a directory is no model's, but holds an adapter's weights, or adapters in folders below."""
    top = Path(source.name, source.hub.get("subfolder", ""))
    if not top.is_dir() or (top / "config.json").exists():
        return False
    return any((top / name).is_file() for name in WEIGHTS_NAMES) or bool(folders_of_adapters(top))


def _settle(directory: Path) -> None:
    """Finish what an earlier save left: put the pending config in its place, or away where its weights never came."""
    pending = directory / PENDING_NAME
    if not os.path.lexists(pending):
        return
    if _is_due(directory):
        os.replace(pending, directory / CONFIG_NAME)
    else:
        pending.unlink()


def _is_due(directory: Path) -> bool:
    """Return whether the weights name the pending config as theirs, and not the one in place."""
    try:
        noted = read_notes(directory / WEIGHTS_NAME).get(_CONFIG_NOTE)
    except AdapterFileError:
        return False
    return noted is not None and _hash(directory / PENDING_NAME) == noted != _hash(directory / CONFIG_NAME)


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except AdapterFileError:
        return None
