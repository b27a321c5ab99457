"""A Trainer's pushes: one at a time in the background, the newest save never lost, failures kept to be told."""

from __future__ import annotations

import concurrent.futures
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Pushes"]


@dataclass
class _Job:
    """A staged folder on its way."""

    folder: Path
    message: str
    number: int = 0
    future: Any = None


class Pushes:
    """The pushes of one Trainer.

    upload: takes a staged folder and a commit message; it is called in another thread. always: every save is
    pushed on its own; otherwise a save that finds a push in flight waits, and a newer one takes its place, along with
    the checkpoint folders that it brought. failures: (message, error) of what went wrong so far.
    """

    def __init__(self, upload: Callable[[Path, str], Any], always: bool = False) -> None:
        self.failures: list[tuple[str, BaseException]] = []
        self._upload, self._always = upload, always
        self._jobs: list[_Job] = []
        self._waiting: _Job | None = None
        self._missed = False
        self._offered = self._arrived = 0  # numbers of the newest job
        self._folders: set[Path] = set()
        weakref.finalize(self, _remove_all, self._folders)  # also where the process ends in the middle

    def offer(self, folder: Path, message: str) -> None:
        """Push a staged folder, now or as soon as the Hub has the one before it. The folder is ours from now on."""
        self._folders.add(folder)
        self._missed = False
        self._offered += 1
        job = _Job(folder, message, self._offered)
        if not self._always and any(not job.future.done() for job in self._jobs):
            self._waiting = self._joined(job, self._waiting)
        else:
            self._collect()
            self._start(self._joined(job, self._waiting))

    def miss(self, message: str, error: BaseException) -> None:
        """Note a save that could not even be staged; until another is offered, the newest is not on the Hub."""
        self.failures.append((message, error))
        self._missed = True

    def settle(self) -> bool:
        """Wait until everything has arrived, what is waiting or has failed being pushed (again).

        Returns whether the newest save is on the Hub.
        """
        self._collect(wait=True)
        if self._waiting is not None:
            self._start(self._waiting)
            self._collect(wait=True)
        if self._waiting is None:
            return not self._missed
        self._remove(self._waiting)
        self._waiting = None
        return False

    def start(self, folder: Path, message: str) -> Any:
        """Push a staged folder in the background for somebody who waits for it: return the future of `run`."""
        from huggingface_hub import run_as_future

        self._folders.add(folder)
        return run_as_future(self.run, folder, message)

    def futures(self) -> list[Any]:
        """Return what is in flight, for those who look at Trainer.push_in_progress."""
        return [job.future for job in self._jobs]

    def run(self, folder: Path, message: str) -> Any:
        """Push a staged folder here and now and return what the Hub answers; the folder is removed."""
        self._folders.add(folder)
        try:
            return self._upload(folder, message)
        finally:
            self._remove(_Job(folder, message))

    def _start(self, job: _Job) -> None:
        from huggingface_hub import run_as_future  # not above: `import hf_lora` leaves it alone

        self._waiting = None
        job.future = run_as_future(self._push, job)
        self._jobs.append(job)

    def _push(self, job: _Job) -> Any:
        return self._upload(job.folder, job.message)  # a method, so that the folders stay as long as it runs

    def _collect(self, wait: bool = False) -> None:
        """Clear away what has ended; what failed waits for the next push."""
        if wait:
            concurrent.futures.wait(self.futures())
        for job in [job for job in self._jobs if job.future.done()]:
            self._jobs.remove(job)
            error = job.future.exception()
            if error is None:
                self._arrived = max(self._arrived, job.number)
                self._remove(job)
            else:
                self.failures.append((job.message, error))
                self._waiting = self._joined(job, self._waiting)
        if self._waiting is not None and self._waiting.number < self._arrived:
            self._waiting = self._only_checkpoints(self._waiting)

    def _joined(self, job: _Job, other: _Job | None) -> _Job:
        """Return the newer of two jobs, which now brings the checkpoints of the older one too."""
        if other is None:
            return job
        older, newer = sorted((job, other), key=lambda job: job.number)
        for folder in older.folder.glob("checkpoint-*"):
            if not (newer.folder / folder.name).exists():
                folder.rename(newer.folder / folder.name)
        self._remove(older)
        return newer

    def _only_checkpoints(self, job: _Job) -> _Job | None:
        """Return a job without what would take the place of something newer on the Hub; None if nothing is left."""
        kept = set(job.folder.glob("checkpoint-*"))
        for path in set(job.folder.iterdir()) - kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not kept:
            self._remove(job)
        return job if kept else None

    def _remove(self, job: _Job) -> None:
        shutil.rmtree(job.folder, ignore_errors=True)
        self._folders.discard(job.folder)


def _remove_all(folders: set[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
