"""A Trainer's checkpoint of a LoRAModel is whole once it holds `_COMPLETE`, and that comes last.

    1. what a killed save left is cleared (`clear`)
    2. run/checkpoint-N begins with `_INCOMPLETE`; an older one of its name waits in run/_saving
    3. the Trainer writes into it, and removes no other checkpoint
    4. every process has written, the files are on the disk: `_INCOMPLETE` is renamed to `_COMPLETE`
    5. the checkpoints that are too many are removed, each in one step (`rotate`)

All processes wait for each other after 2 and before 4.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import disk

COMPLETE, INCOMPLETE, STATE = "_COMPLETE", "_INCOMPLETE", "trainer_state.json"
_ASIDE, _REPLACED = "_saving", ".replaced"  # what begins with "_" Transformers never uploads
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def by_step(run: Path) -> list[Path]:
    """Return a run's checkpoints, the last one first."""
    return sorted((path for path in run.glob("checkpoint-*") if _step(path) >= 0), key=_step, reverse=True)


def is_half(path: Path) -> bool:
    """Return whether a checkpoint lacks the mark of a whole one and should have it.

    Earlier versions and PEFT write no marks, so one without any is half only where an older one of its run has one.
    """
    if (path / COMPLETE).exists() or (path / INCOMPLETE).exists():
        return not (path / COMPLETE).exists()
    return any(_step(other) < _step(path) and (other / COMPLETE).exists() for other in by_step(path.parent))


@contextmanager
def whole(place: Path, saves: bool, wait: Callable[[], None]) -> Iterator[None]:
    """Have a checkpoint whole at the end of a `with` block, or, where it raises, the run's folder as it was.

    saves: whether this process sees to it. wait: returns once every process is there. Raises OSError.
    """
    try:
        if saves:
            clear(place.parent)
            if (place / STATE).is_file():  # and not what a subclass of the Trainer has written for this save
                _move(place, _REPLACED)
            place.mkdir(parents=True, exist_ok=True)
            (place / INCOMPLETE).touch()
            disk.sync_directory(place)
        wait()
        yield
        wait()
        if saves:
            disk.sync_tree(place)
            disk.sync_directory(place.parent)
            os.rename(place / INCOMPLETE, place / COMPLETE)
            disk.sync_directory(place)
    except BaseException:
        if saves:
            clear(place.parent)
        raise


def clear(run: Path) -> list[Path]:
    """Remove the checkpoints that a killed save began, put back what they were to replace; return those gone."""
    begun = [path for path in by_step(run) if (path / INCOMPLETE).exists() and is_half(path)]
    for path in begun:
        _move(path)
    for aside in (run / _ASIDE / _REPLACED).glob("*"):
        if not (run / aside.name / COMPLETE).exists():
            shutil.rmtree(run / aside.name, ignore_errors=True)  # killed before it had a mark
            os.rename(aside, run / aside.name)
    shutil.rmtree(run / _ASIDE, ignore_errors=True)
    return [path for path in begun if not path.exists()]


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beside the newest and the best one, down to the limit.

    As Transformers does, but by step, and half ones go first, so that a whole one never makes room for them.
    """
    kept = {path.resolve() for path in (newest, Path(best or newest))}
    found = by_step(newest.parent)
    others = [path for path in found if path.resolve() not in kept]
    others.sort(key=lambda path: (not is_half(path), _step(path)))
    excess = len(found) - max(limit, len(kept)) if limit and limit > 0 else 0
    for path in others[: max(excess, 0)]:
        _move(path)
    shutil.rmtree(newest.parent / _ASIDE, ignore_errors=True)


def _move(path: Path, where: str = "") -> None:
    """Move a checkpoint aside in one step, so that a kill leaves no part of it."""
    aside = path.parent / _ASIDE / where
    aside.mkdir(parents=True, exist_ok=True)
    os.rename(path, aside / (path.name if where else secrets.token_hex(4)))


def _step(path: Path) -> int:
    """Return a checkpoint's step by its name, -1 where it is none."""
    return int(match[1]) if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir() else -1
