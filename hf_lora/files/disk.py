"""Files on this machine: only regular ones are read, and what is written is there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import AdapterFileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "locked",
    "open_regular",
    "remove",
    "sweep",
    "sync_directory",
    "sync_tree",
    "temporary",
    "write_atomically",
    "write_new",
]

_REAL = (errno.EIO, errno.ENOSPC, errno.EDQUOT)  # any other error of fsync on a directory says that it takes none


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; links are followed, pipes and devices, which could block, are refused.

    Raises AdapterFileError where there is none or it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise AdapterFileError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise AdapterFileError(f"{path} cannot be opened: {error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise AdapterFileError(f"{path} is no regular file (a directory, a pipe or a device), so it is not read.")
    return os.fdopen(handle, "rb")


def write_new(path: Path, parts: Iterable[Any]) -> None:
    """Write a file that is not there yet and bring it onto the disk; what fails leaves none. Raises OSError.

    parts: objects of bytes (bytes, memoryviews), written one after the other.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        remove(path)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that a crash leaves the old file whole. Raises OSError."""
    beside = temporary(path)
    write_new(beside, [content])
    try:
        os.replace(beside, path)
    except BaseException:
        remove(beside)
        raise


def temporary(path: Path) -> Path:
    """Return a new name beside a file for its next content; `sweep` knows it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sweep(directory: Path, names: Iterable[str]) -> None:
    """Delete what crashed writers of files of these names have left in a directory."""
    for name in names:
        for path in directory.glob(f".{name}.*.tmp"):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, where there is one."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries onto the disk, where its file system can."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows opens none
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _REAL:
            raise
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """Bring all files and folders below a directory, and its own entries, onto the disk; not what links lead to."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            if not stat.S_ISREG(os.lstat(Path(folder, name)).st_mode):
                continue
            handle = os.open(Path(folder, name), os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_directory(Path(folder))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other writers of a directory waiting inside a `with` block, where its file system has locks.

    The lock is the directory's own: it leaves no file behind and ends with the process.
    """
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows opens none
        yield
        return
    try:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
