"""A Trainer's checkpoint of a LoRAModel is whole once it holds `_COMPLETE`, and that comes last.

    1. what a killed save left is cleared (`clear`)
    2. run/checkpoint-N begins as a folder with `_INCOMPLETE`; an older one of its name waits in run/_saving
    3. the Trainer writes into it, and removes no other checkpoint
    4. every process has written, the files are on the disk: `_INCOMPLETE` is renamed to `_COMPLETE`
    5. it is pushed; the checkpoints that are too many are removed, each in one step (`rotate`)

All processes wait for each other after 2 and before 4.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .patches import answering
from .trained_model import for_lora

__all__ = ["BEGAN", "COMPLETE", "by_step", "clear", "is_half", "rotate", "saves_whole"]

COMPLETE, INCOMPLETE = "_COMPLETE", "_INCOMPLETE"
BEGAN = "_hf_lora_began"  # a Trainer's: when its training did
_ASIDE, _REPLACED = "_saving", ".replaced"  # what begins with "_" Transformers never uploads
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"


def saves_whole(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._save_checkpoint for a LoRAModel."""

    @for_lora(original)
    def save_checkpoint(target: Any, self: Any, model: Any, trial: Any) -> None:
        place = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        pushed: list[str] = []
        with _whole(self, place), _rotating_later(self), answering(self, _push_from_checkpoint=pushed.append):
            original(self, model, trial)
        for folder in pushed:
            self._push_from_checkpoint(folder)
        if self.args.should_save:
            rotate(place, self.args.save_total_limit, self.state.best_model_checkpoint)

    return save_checkpoint


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


def clear(run: Path) -> list[str]:
    """Remove the checkpoints that a killed save began, put back what they were to replace; return the names gone."""
    begun = [path for path in by_step(run) if (path / INCOMPLETE).exists() and is_half(path)]
    for path in begun:
        _remove(path)
    for aside in (run / _ASIDE / _REPLACED).glob("*"):
        if not os.path.lexists(run / aside.name):
            os.rename(aside, run / aside.name)
    shutil.rmtree(run / _ASIDE, ignore_errors=True)
    return [path.name for path in begun if not path.exists()]


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
        _remove(path)
    shutil.rmtree(newest.parent / _ASIDE, ignore_errors=True)


@contextmanager
def _whole(trainer: Any, place: Path) -> Iterator[None]:
    """Have a checkpoint whole at the end of a `with` block, or, where it raises, everything as it was.

    Raises AdapterFileError where the folder is no longer the one that was begun.
    """
    saves, state, wait = trainer.args.should_save, trainer.state, trainer.accelerator.wait_for_everyone
    best, token, begun = state.best_model_checkpoint, secrets.token_hex(8), False
    try:
        if saves:
            clear(place.parent)
            _begin(place, token, trainer.__dict__.get(BEGAN, math.inf))
            begun = True
        wait()
        yield
        wait()
        if saves:
            _complete(place, token)
    except BaseException as error:
        state.best_model_checkpoint = best
        is_taken = begun and not _holds(place, token)
        if saves and not is_taken:
            clear(place.parent)
        if is_taken and isinstance(error, (OSError, RuntimeError)):  # torch's, where a folder is not there
            from ..errors import AdapterFileError  # not above: `import hf_lora` leaves it alone

            raise AdapterFileError(
                f"{place.name} was not saved: its files in {place} were removed meanwhile, perhaps by another "
                "training with the same output_dir. Give each training its own."
            ) from error
        raise


@contextmanager
def _rotating_later(trainer: Any) -> Iterator[None]:
    """Keep a Trainer from removing checkpoints in a `with` block; its training_args.bin holds the limit as it is."""
    args, save, limit = trainer.args, trainer.save_model, trainer.args.save_total_limit

    def save_model(*given: Any, **named: Any) -> None:
        save(*given, **named)
        args.save_total_limit = None

    try:
        with answering(trainer, save_model=save_model):
            yield
    finally:
        args.save_total_limit = limit


def _begin(place: Path, token: str, began: float) -> None:
    """Put a new folder, marked as incomplete, in a checkpoint's place; what lay there is moved aside.

    began: when the training did. What a subclass of the Trainer wrote into the folder since then comes along.
    """
    from ..files.disk import sync_directory  # not above: errors of ours that `import hf_lora` leaves alone

    aside, since = place.parent / _ASIDE, began if (place / _STATE).is_file() else 0

    def old(folder: str, names: list[str]) -> list[str]:
        marks = (COMPLETE, INCOMPLETE)
        return [n for n in names if Path(folder) == place and (n in marks or (place / n).lstat().st_mtime < since)]

    fresh = aside / place.name
    fresh.mkdir(parents=True)
    (fresh / INCOMPLETE).write_text(token, encoding="ascii")
    if place.is_dir():
        shutil.copytree(place, fresh, symlinks=True, ignore=old, dirs_exist_ok=True)
    sync_directory(fresh)
    if os.path.lexists(place):
        (aside / _REPLACED).mkdir()
        os.rename(place, aside / _REPLACED / place.name)
    os.rename(fresh, place)


def _complete(place: Path, token: str) -> None:
    """Bring a checkpoint onto the disk and mark it as whole. Raises OSError."""
    from ..files.disk import sync_directory, sync_tree  # not above: errors of ours that `import hf_lora` leaves alone

    if not _holds(place, token):
        raise FileNotFoundError(place / INCOMPLETE)
    sync_tree(place)
    sync_directory(place.parent)
    os.rename(place / INCOMPLETE, place / COMPLETE)
    sync_directory(place)


def _holds(place: Path, token: str) -> bool:
    """Return whether a folder is the one that was begun with a token, and not another training's."""
    with suppress(OSError):
        return (place / INCOMPLETE).read_text(encoding="ascii") == token
    return False


def _remove(path: Path) -> None:
    """Remove a checkpoint in one step: a kill leaves no part of it in its place."""
    (aside := path.parent / _ASIDE).mkdir(exist_ok=True)
    with suppress(FileNotFoundError):  # somebody removed it already
        os.rename(path, aside / secrets.token_hex(4))


def _step(path: Path) -> int:
    """Return a checkpoint's step by its name, -1 where it is none."""
    return int(match[1]) if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir() else -1
