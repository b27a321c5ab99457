"""A Trainer's pushes: one after the other in the background, the newest save never lost, failures kept to be told."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

__all__ = ["Job", "Pushes"]


class Job(NamedTuple):
    """What is to be pushed: a staged folder, which is removed once it has arrived, and the commit's message."""

    folder: TemporaryDirectory[str]
    message: str


class Pushes:
    """The pushes of one Trainer.

    upload: takes a staged folder and a commit message; it is called in another thread, huggingface_hub's own, which
    does one thing after the other. always: every save is pushed on its own; otherwise a save that finds a push in
    flight waits, and a newer one takes its place, along with the checkpoint folders that it brought. What fails waits
    too. failures: (message, error) of what went wrong so far.
    """

    def __init__(self, upload: Callable[[Path, str], Any], always: bool = False) -> None:
        self.failures: list[tuple[str, BaseException]] = []
        self.futures: list[concurrent.futures.Future[Any]] = []
        self._upload, self._always = upload, always
        self._waiting: list[Job] = []  # oldest first
        self._missed = False
        self._lock = threading.Lock()

    def offer(self, job: Job) -> None:
        """Push a staged folder, now or as soon as the Hub has the one before it."""
        from huggingface_hub import run_as_future  # not above: `import hf_lora` leaves it alone

        self._missed = False
        with self._lock:
            self._waiting = self._kept([*self._waiting, job])
        self.futures = [*(future for future in self.futures if not future.done()), run_as_future(self._push_next)]

    def miss(self, message: str, error: BaseException) -> None:
        """Note a save that could not even be staged; until another is offered, the newest is not on the Hub."""
        self.failures.append((message, error))
        self._missed = True

    def settle(self) -> bool:
        """Wait until everything has arrived; what has failed is pushed once more and then given up.

        Returns whether the newest save is on the Hub.
        """
        concurrent.futures.wait(self.futures)
        if self._waiting:
            self._waiting = [_joined(self._waiting)]
            self._push_next()
        arrived = not self._waiting and not self._missed
        while self._waiting:
            self._waiting.pop().folder.cleanup()
        return arrived

    def _push_next(self) -> None:
        with self._lock:
            if not self._waiting:  # a newer one has brought it
                return
            job = self._waiting.pop(0)
        try:
            self._upload(Path(job.folder.name), job.message)
        except Exception as error:
            self.failures.append((job.message, error))
            with self._lock:
                self._waiting = self._kept([job, *self._waiting])
        else:
            job.folder.cleanup()

    def _kept(self, jobs: list[Job]) -> list[Job]:
        return jobs if self._always else [_joined(jobs)]


def _joined(jobs: list[Job]) -> Job:
    """Return the newest of some jobs, which now brings the checkpoints of the older ones too."""
    *older, newest = jobs
    for job in older:
        for folder in Path(job.folder.name).glob("checkpoint-*"):
            if not (place := Path(newest.folder.name, folder.name)).exists():
                folder.rename(place)
        job.folder.cleanup()
    return newest
