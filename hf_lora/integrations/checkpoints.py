"""A Trainer's checkpoint of a LoRAModel is there whole or not at all: written aside, moved into place in one step.

    1. what a killed save left is put right (`put_right`)
    2. the Trainer writes run/_saving/checkpoint-N; empty stand-ins for the run's other checkpoints lie beside it, so
       that its own rules say which of them is the best and which are too many
    3. every process has written, and the files are brought onto the disk
    4. run/_saving/checkpoint-N is renamed to run/checkpoint-N: from here on it is there
    5. it is pushed; the checkpoints that were too many are moved aside, each in one step, and deleted

All processes wait for each other after 1, 2 and 4. On machines with disks of their own each moves its part.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .patches import answering
from .trained_model import for_lora

__all__ = ["BEGAN", "SAVING", "put_right", "saves_whole"]

SAVING = "_saving"  # nobody takes it for a checkpoint, and what begins with "_" Transformers never uploads
_REPLACED, _REMOVED = ".replaced", ".removed"
_STATE = "trainer_state.json"
BEGAN = "_hf_lora_began"  # a Trainer's: when its training did
_APART = 2  # seconds; Transformers believes no times that are less than one second apart


def saves_whole(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._save_checkpoint for a LoRAModel."""

    @for_lora(original)
    def save_checkpoint(target: Any, self: Any, model: Any, trial: Any) -> None:
        save = _Save(self, self._get_output_dir(trial=trial))
        pushed: list[str] = []
        with (
            save.prepared(),
            answering(self, _get_output_dir=lambda trial=None: save.folder, _push_from_checkpoint=pushed.append),
        ):
            original(self, model, trial)
        save.publish()
        for _ in pushed:
            self._push_from_checkpoint(os.path.join(save.run, save.name))
        save.clear()

    return save_checkpoint


def put_right(run: Path) -> None:
    """Finish what a killed save left in a run's folder: a checkpoint it had moved aside is back, the rest is gone."""
    for aside in (run / SAVING / _REPLACED).glob("*"):
        if not os.path.lexists(run / aside.name):
            os.rename(aside, run / aside.name)
    shutil.rmtree(run / SAVING, ignore_errors=True)


class _Save:
    """One checkpoint on its way. run: the folder that it goes to; folder: the one that it is written in."""

    def __init__(self, trainer: Any, run: str) -> None:
        self.run, self.folder = run, os.path.join(run, SAVING)
        self.name = f"checkpoint-{trainer.state.global_step}"
        self._trainer, self._stand_ins = trainer, []  # type: tuple[Any, list[str]]

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Have the folder ready inside a `with` block; a save that fails leaves everything as it was."""
        args, state = self._trainer.args, self._trainer.state
        if args.local_process_index == 0:  # of every machine, which may have a disk of its own
            put_right(Path(self.run))
        self._wait()
        if args.should_save:
            self._make_stand_ins()
        best = state.best_model_checkpoint
        state.best_model_checkpoint = _moved(best, self.run, self.folder)
        try:
            yield
        except BaseException as error:
            state.best_model_checkpoint = best
            if isinstance(error, (OSError, RuntimeError)):  # torch's, where a folder is not there
                self._tell_if_taken(self.folder)
            if args.should_save:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def publish(self) -> None:
        """Move the checkpoint into its place, once every process has written its part."""
        args, state = self._trainer.args, self._trainer.state
        written = Path(self.folder, self.name)
        best = _moved(state.best_model_checkpoint, self.folder, self.run)
        is_named = best != state.best_model_checkpoint
        state.best_model_checkpoint = best
        self._wait()
        if args.should_save:
            self._tell_if_taken(written)
            if is_named:
                state.save_to_json(os.fspath(written / _STATE))
            _move(written, Path(self.run, self.name), self._trainer.__dict__.get(BEGAN))
        self._wait()
        if args.local_process_index == 0 and written.is_dir():  # this machine's part, on a disk of its own
            _move(written, Path(self.run, self.name))
            shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove the checkpoints whose stand-ins are gone, and the folder."""
        if not self._trainer.args.should_save:
            return
        removed = Path(self.folder, _REMOVED)
        removed.mkdir(parents=True, exist_ok=True)
        for name in self._stand_ins:
            if not Path(self.folder, name).is_dir():
                with suppress(FileNotFoundError):  # somebody removed it already
                    os.rename(Path(self.run, name), removed / name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_stand_ins(self) -> None:
        """Make an empty folder for each other checkpoint of the run, of the same order, and older than the new one.

        By times as they are the new one may be taken for the oldest, and be removed: where they lie in the future, or
        so close together that Transformers goes by the numbers, and the run's folder held higher ones.
        """
        os.makedirs(self.folder, exist_ok=True)  # another process may write there already
        others = [path for path in _by_age(Path(self.run)) if path.name != self.name]
        for age, path in enumerate(reversed(others), 1):
            stand_in, then = Path(self.folder, path.name), time.time() - age * _APART
            stand_in.mkdir()
            os.utime(stand_in, (then, then))
            self._stand_ins.append(path.name)

    def _tell_if_taken(self, folder: str | Path) -> None:
        """Raise AdapterFileError where a folder of the save is gone: the Trainer would tell of some file alone."""
        from ..errors import AdapterFileError  # not above: `import hf_lora` leaves it alone

        if self._trainer.args.should_save and not os.path.isdir(folder):
            raise AdapterFileError(
                f"{self.name} was not saved: its files in {self.folder} were removed meanwhile, perhaps by another "
                "training with the same output_dir. Give each training its own."
            )

    def _wait(self) -> None:
        self._trainer.accelerator.wait_for_everyone()


def _moved(path: str | None, source: str, target: str) -> str | None:
    """Return where a checkpoint in the folder `source` lies in `target`; other paths, and None, as they are."""
    return os.path.join(target, Path(path).name) if path and Path(path).parent == Path(source) else path


def _by_age(run: Path) -> list[Path]:
    """Return a run's checkpoints, the oldest first; by their numbers where times tell nothing, as Transformers does."""
    found = []
    for path in run.glob("checkpoint-*"):
        with suppress(FileNotFoundError):
            if path.is_dir():
                found.append((path.stat().st_mtime, path))
    found.sort()
    if found and found[-1][0] - found[0][0] < 1:
        found.sort(key=lambda each: int(match[1]) if (match := re.match(r"checkpoint-(\d+)", each[1].name)) else -1)
    return [path for _, path in found]


def _move(written: Path, place: Path, began: float | None = None) -> None:
    """Bring a folder's files onto the disk and give it its place, where an older one may lie.

    began: when the training did, so that what was written there since is told from what lay there.
    """
    from ..files.disk import sync_directory, sync_tree  # not above: errors of ours that `import hf_lora` leaves alone

    _take_along(place, written, began if (place / _STATE).is_file() else 0)
    sync_tree(written)
    if os.path.lexists(place):
        aside = written.parent / _REPLACED
        aside.mkdir()
        os.rename(place, aside / place.name)
    os.rename(written, place)
    sync_directory(place.parent)


def _take_along(place: Path, written: Path, since: float | None) -> None:
    """Keep what a subclass of the Trainer wrote into a checkpoint's folder before it was saved; links stay links."""
    if since is None or not place.is_dir():
        return
    for path in place.iterdir():
        if os.path.lexists(target := written / path.name) or path.lstat().st_mtime < since:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target, follow_symlinks=False)
