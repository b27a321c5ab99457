"""Files on this machine: only regular ones are read, and what is written is there whole or not at all."""

import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import AdapterFileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POINTER = b"version https://git-lfs.github.com/spec/"


def read_regular(path: Path, most: int = -1) -> bytes:
    """Return the first `most` bytes of a regular file, by default all of them.

    Links are followed; pipes and devices, which could block, are refused. Raises AdapterFileError where there is no
    such file, it cannot be read, or is a Git LFS pointer.
    """
    try:
        if is_regular := stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                if not file.peek(len(_POINTER)).startswith(_POINTER):
                    return file.read(most)
    except FileNotFoundError:
        what = "is a link that leads nowhere" if os.path.lexists(path) else "does not exist"
        raise AdapterFileError(f"{path} {what}.") from None
    except (OSError, ValueError, MemoryError) as error:
        raise AdapterFileError(f"{path} cannot be read: {error}") from error
    if is_regular:
        raise AdapterFileError(
            f"{path} is a pointer of Git LFS and not the file that it stands for: the repo was cloned without git-lfs. "
            "Run `git lfs pull` in it, or load it by its name on the Hub."
        )
    raise AdapterFileError(f"{path} is no regular file (a directory, a pipe or a device), so it is not read.")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet and bring it onto the disk; the caller deletes half of one. Raises OSError."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that a crash leaves the old file whole. Raises OSError."""
    beside = temporary(path)
    try:
        write_new(beside, content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """Return a new name beside a file for its next content; `sweep` knows it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sweep(directory: Path, names: Iterable[str]) -> None:
    """Delete what crashed writers of files or folders of these names have left in a directory."""
    for name in names:
        for path in directory.glob(f".{glob.escape(name)}.*.tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries onto the disk, where its file system can."""
    with suppress(OSError), ExitStack() as stack:
        handle = os.open(directory, os.O_RDONLY)
        stack.callback(os.close, handle)
        os.fsync(handle)


def sync_tree(directory: Path) -> None:
    """Bring all files and folders below a directory, and its own entries, onto the disk; not what links lead to."""
    for folder, _, names in os.walk(directory, topdown=False):
        for path in (Path(folder, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                with open(path, "rb+" if os.name == "nt" else "rb") as file:
                    os.fsync(file.fileno())
        sync_directory(Path(folder))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other writers of a directory waiting inside a `with` block, where its file system has locks.

    The lock is the directory's own: it leaves no file behind and ends with the process.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # Windows opens no directory
            handle = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, handle)
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8 so that a file of this name has all of it, or what it had before."""
    write_atomically(path, text.encode())
