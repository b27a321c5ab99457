"""The output folder of a run: whether it is free, holds a run that is over, or one that goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ...errors import AdapterFileError, ConfigError, some
from ...files.strict_json import read_json
from .record import METRICS, SETTINGS

__all__ = ["check_output", "check_resumable", "clear_output"]


def check_output(folder: Path, overwrite: bool, reads: Iterable[str] = ()) -> None:
    """Raise AdapterFileError where a new run cannot write into a folder. overwrite: it may take a run's place, unless
    what it reads lies there: reads, the paths of that."""
    if inside := [name for name in reads if folder.is_dir() and Path(name).exists() and _is_within(Path(name), folder)]:
        raise AdapterFileError(
            f"--output {folder}: {inside[0]}, which the run reads, lies there; name another folder for the output."
        )
    if folder.is_file():
        raise AdapterFileError(f"--output {folder}: that is a file; name a folder.")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not there or (overwrite and SETTINGS in there):
        return
    if SETTINGS not in there:
        raise AdapterFileError(
            f"--output {folder}: it holds {some(there)}, and no run of hf-lora's; name another folder."
        )
    if is_finished(folder):
        raise AdapterFileError(
            f"--output {folder}: it holds a finished run; name another folder, or replace that run with --overwrite."
        )
    raise AdapterFileError(
        f"--output {folder}: it holds an unfinished run; go on with `hf-lora train --resume --output {folder}`, name "
        "another folder, or replace that run with --overwrite."
    )


def _is_within(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute()) or path.resolve().is_relative_to(folder.resolve())


def check_resumable(folder: Path | None) -> Path:
    """Return the folder of a run that is not finished. Raises ConfigError and AdapterFileError for any other."""
    if folder is None:
        raise ConfigError("--resume: name the folder of the run to go on with, by --output DIR.")
    if not (folder / SETTINGS).is_file():
        raise AdapterFileError(f"--resume --output {folder}: it has no {SETTINGS}, so there is no run to go on with.")
    if is_finished(folder):
        raise AdapterFileError(
            f"--resume --output {folder}: that run is finished. `hf-lora train --config {folder / SETTINGS} --output "
            "OTHER` repeats it."
        )
    return folder


def is_finished(folder: Path) -> bool:
    """Return whether the record of a run says that all of it is written."""
    path = folder / METRICS
    return path.is_file() and bool(read_json(path).get("finished"))


def clear_output(folder: Path) -> None:
    """Remove the run that a folder holds, and with it all else there."""
    if (folder / SETTINGS).is_file():
        shutil.rmtree(folder)
