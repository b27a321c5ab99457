"""Killed at any moment, also while a checkpoint is written or removed, a training resumes and ends in the same bits."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from .peek import specialised
from .trainings import bert, trainer, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning"),  # the steps are too quick for it
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes that it kills"),
]

RUNS = specialised(Trainer)  # the class of a LoRAModel's Trainer
KILLS = 20  # half of them at any time, half of them inside a save
# What writes, moves or removes something on the disk, or brings it there: Python's functions, torch's, safetensors'.
_STEPS = {
    "fsync", "mkdir", "open", "rename", "replace", "rmdir", "serialize_file", "unlink", "utime", "write",
    "write_end_of_file", "write_record",
}  # fmt: skip


def run_of(folder: Path, callbacks: Any = None) -> Trainer:
    return trainer(bert("x"), folder, callbacks, max_steps=6, save_total_limit=1)


def checkpoints(folder: Path) -> dict[str, set[str]]:
    """Return the names of the files of each checkpoint."""
    return {p.name: {f.name for f in p.iterdir()} for p in folder.glob("checkpoint-*")}


class Tells(TrainerCallback):
    """Writes a byte when the first step begins."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        os.write(self.pipe, b".")


class Saves:
    """Counts the steps on the disk that saving takes; `at` is called before each with its number."""

    def __init__(self, at: Callable[[int], None]) -> None:
        self.count, self._at, self._save = 0, at, RUNS._save_checkpoint

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if event == "c_call" and getattr(arg, "__name__", "") in _STEPS:
            self.count += 1
            self._at(self.count)

    def __enter__(self) -> Saves:
        def save(run: Trainer, *args: Any) -> None:
            sys.setprofile(self)
            try:
                self._save(run, *args)
            finally:
                sys.setprofile(None)

        RUNS._save_checkpoint = save
        return self

    def __exit__(self, *error: object) -> None:
        RUNS._save_checkpoint = self._save


def killed(work: Callable[[int], None], wait: float | None) -> None:
    """Run in a process that kills itself, or is killed some seconds after it has written a byte to the pipe.

    It is a fork of this one, which has imported everything.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(write)
            while wait is not None:  # it has ended before its time
                signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    if wait is not None:
        assert os.read(read, 1) == b"."
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the training failed, or ended, before it was killed"


@pytest.fixture
def _frozen() -> Iterator[None]:
    """Spare the collections of garbage, of which each training does some, everything that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_frozen")
def test_killed_at_any_moment_a_training_resumes_from_a_whole_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    straight = run_of(tmp_path / "straight")
    with Saves(lambda number: None) as saves:
        straight.train()
    want, whole = weights(straight.model), checkpoints(tmp_path / "straight")["checkpoint-6"]
    begun = time.perf_counter()
    run_of(tmp_path / "timed").train()
    duration = time.perf_counter() - begun
    assert saves.count > 100, "the profiler no longer sees what saving does on the disk"

    moments, inside, resumed = random.Random(0), 0, 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        if number % 2:
            last = moments.randint(1, saves.count)

            def die(at: int, last: int = last) -> None:
                if at == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            def work(pipe: int, folder: Path = folder, die: Callable[[int], None] = die) -> None:
                with Saves(die):
                    run_of(folder).train()

            killed(work, None)
        else:
            killed(lambda pipe, f=folder: run_of(f, [Tells(pipe)]).train(), moments.uniform(0, 1) * duration)
        inside += number % 2 or (folder / "_saving").exists()
        found = checkpoints(folder)
        assert all(files == whole for files in found.values()), f"kill {number} left half a checkpoint: {found}"
        again = run_of(folder)
        again.train(resume_from_checkpoint=bool(found))
        resumed += bool(found)
        assert again.state.global_step == 6
        got = weights(again.model)
        assert all(torch.equal(got[k], want[k]) for k in want), f"kill {number}"
        assert {p.name for p in folder.iterdir()} == {"checkpoint-6"}, f"kill {number}"
    assert inside > KILLS // 2, "too few kills fell inside a save"
    assert resumed >= KILLS // 2, "too few trainings were resumed"
