"""The output folder of a run: whether it is free, holds a run that is over, or one that goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import AdapterFileError, ConfigError, some
from ...files.disk import check_place
from ...files.strict_json import read_json
from .record import CHECKPOINTS, METRICS, SETTINGS, write_json
from .settings import RunSettings

__all__ = ["begin", "check_output", "check_resumable"]


def check_output(folder: Path, overwrite: bool, reads: Iterable[str] = ()) -> None:
    """Raise AdapterFileError where a new run cannot write into a folder. overwrite: it may take a run's place, unless
    what it reads lies there: reads, the paths of that."""
    if inside := [name for name in reads if folder.is_dir() and Path(name).exists() and _is_within(Path(name), folder)]:
        raise AdapterFileError(
            f"--output {folder}: {inside[0]}, which the run reads, lies there; name another folder for the output."
        )
    check_place(folder, "--output ")
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


def begin(folder: Path, settings: RunSettings, record: Mapping[str, Any]) -> None:
    """Make a folder that of a run which has not trained yet: its settings and its record, and nothing else.

    Of an earlier run all is kept until the record is written; it goes before anything could mix the two.
    """
    earlier = (folder / SETTINGS).is_file()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / METRICS, record)  # from here on the earlier run counts as unfinished
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    settings.save(folder / SETTINGS)
    for path in folder.iterdir() if earlier else ():
        if path.name not in (METRICS, SETTINGS):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
