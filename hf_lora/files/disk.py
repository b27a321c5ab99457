"""Files on this machine: only regular ones are read, and what is written is there whole or not at all."""

import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import AdapterFileError, ArgumentError

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


def free_place(path: str | os.PathLike[str], suffix: str = "") -> Path:
    """Return the path of a file to make, whose name ends in a suffix, or without one of a folder, which may be empty.

    Raises ArgumentError for what is no path, AdapterFileError where something is there or nothing could be made.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ArgumentError(f"output={path!r}: it is the path of what to make, a str or a Path.")
    place = Path(path)
    if suffix and place.suffix != suffix:
        raise AdapterFileError(f"{place}: it will be one file, whose name ends in {suffix}, as {place}{suffix}.")
    if os.path.lexists(place) and (suffix or not place.is_dir() or any(place.iterdir())):
        raise AdapterFileError(f"{place} is there already; name one that is not, or remove it.")
    check_place(place)
    return place


def check_place(folder: Path, flag: str = "") -> None:
    """Raise AdapterFileError where a folder is none, or could not be made or written into. flag: what names it."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is None or not there.is_dir():
        what = "that is a file" if there == folder else f"{there or folder.anchor} is no folder"
        raise AdapterFileError(f"{flag}{folder}: {what}; name another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise AdapterFileError(f"{flag}{folder}: nothing may be written into {there}; name another.")


@contextmanager
def room_beside(place: Path) -> Iterator[Path]:
    """Give a new name beside a file or folder to make; what is still there by it afterwards goes.

    Raises AdapterFileError for an OSError of the disk in the block (it is full, nothing may be written).
    """
    beside = temporary(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent, [place.name])
        yield beside
    except OSError as error:
        if error.errno is None:  # of a reader, which says what it could not read
            raise
        raise AdapterFileError(f"{place} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(beside) if beside.is_dir() else beside.unlink(missing_ok=True)


@contextmanager
def made_whole(place: Path) -> Iterator[Path]:
    """Give a name beside a file or folder to make, of which what is written takes its place, or goes where that fails.

    place: as `free_place` returns it. Raises AdapterFileError as `room_beside` does.
    """
    with room_beside(place) as beside:
        yield beside
        if place.is_dir():
            place.rmdir()  # empty: a rename would not replace it on every system
        beside.rename(place)


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
