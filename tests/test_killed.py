"""Killed at any point, again and again, a training resumes and ends in the same bits and the same folders.

A child kills itself before a certain one of its steps on the disk, so no test depends on how fast the machine is.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from .trainings import bert, same, trainer, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:resuming from .* is not whole:UserWarning"),  # killed between folder and mark
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes that it kills"),
]

KILLS, CHAIN = 14, 3  # of each limit; of one training
_MOVES = {"mkdir", "rename", "replace", "rmdir", "unlink"}
# What changes something on the disk, or brings it there: Python's functions, torch's, safetensors'.
_STEPS = {"fsync", "open", "serialize_file", "utime", "write", "write_end_of_file", "write_record"} | _MOVES


class Steps:
    """Notes a training's steps on the disk inside a `with` block; kills its process before the one of a number."""

    def __init__(self, last: int | None = None) -> None:
        self.names: list[str] = []
        self.last = last

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if event != "c_call":
            return
        name = arg.__name__
        if name in _STEPS and not isinstance(arg.__self__, str):  # str.replace
            if len(self.names) == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(name)

    def __enter__(self) -> Steps:
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)


def run_of(folder: Path, limit: int | None, **changes: Any) -> Trainer:
    return trainer(bert("x"), folder, **{"max_steps": 6, "save_total_limit": limit, **changes})


def checkpoints(folder: Path) -> dict[str, set[str]]:
    """Return the names of the files of each checkpoint."""
    return {p.name: {f.name for f in p.iterdir()} for p in folder.glob("checkpoint-*")}


def whole(folder: Path) -> list[str]:
    """Return the checkpoints that say that they are whole."""
    return [name for name, files in checkpoints(folder).items() if "_COMPLETE" in files]


def killed(run: Trainer, last: int, resume: bool | None = None) -> bool:
    """Train in a fork, which has imported everything; return whether it was killed before it was done."""
    folder = Path(run.args.output_dir)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Steps(last):
                run.train(resume_from_checkpoint=bool(whole(folder)) if resume is None else resume)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the training failed"
    return status != 0


@pytest.mark.parametrize("limit", [1, 2, None])
def test_killed_again_and_again_a_training_ends_in_the_same_bits_and_folders(limit: int | None, tmp_path: Path) -> None:
    straight = run_of(tmp_path / "straight", limit)
    with Steps() as steps:
        straight.train()
    want, kept = weights(straight.model), checkpoints(tmp_path / "straight")
    assert len(kept) == (limit or 3)
    assert len(steps.names) > 300, "the profiler no longer sees what saving does on the disk"

    moments, kills, resumed, chain = random.Random(f"limit {limit}"), 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / str(chain)
        chain += 1
        for _ in range(CHAIN):
            had = whole(folder)
            if not killed(run_of(folder, limit), moments.randrange(len(steps.names) * 3 // 4)):
                break
            kills += 1
            for name, files in checkpoints(folder).items():
                half = "_INCOMPLETE" in files or not files
                assert files == kept["checkpoint-6"] if name in whole(folder) else half, (name, files)
            assert whole(folder) or not had, f"after kill {kills} no whole checkpoint is left"
        resumed += bool(whole(folder))
        ends(run_of(folder, limit), bool(whole(folder)), want, kept)
    assert resumed, "no training had anything to resume from"


def ends(run: Trainer, resume: bool, want: dict[str, torch.Tensor], kept: dict[str, set[str]]) -> None:
    """Assert that a training ends as it would have without kills."""
    run.train(resume_from_checkpoint=resume)
    same(run.model, want)
    assert checkpoints(Path(run.args.output_dir)) == kept
    assert {p.name for p in Path(run.args.output_dir).iterdir()} == set(kept)


@pytest.mark.parametrize("before", ["an older one of its step", "one more than the limit"])
def test_killed_between_any_two_moves_there_is_a_whole_checkpoint_and_none_too_many(
    before: str, tmp_path: Path
) -> None:
    """A checkpoint is saved where an older one of its step lies, or where another one has to go."""

    def prepared(folder: Path) -> Trainer:
        start = 4 if before == "an older one of its step" else 2
        run_of(folder, 1, max_steps=start).train()
        return run_of(folder, 1, max_steps=4, save_steps=4)

    resume = before == "one more than the limit"
    straight = prepared(tmp_path / "straight")
    with Steps() as steps:
        straight.train(resume_from_checkpoint=resume)
    want, kept = weights(straight.model), checkpoints(tmp_path / "straight")
    assert list(kept) == ["checkpoint-4"]
    moves = [number for number, name in enumerate(steps.names) if name in _MOVES]
    moves = [n for n in moves if not steps.names[n] == steps.names[n - 1] == "unlink"]  # the first of a folder does
    assert len(moves) > 8
    for number in moves:
        folder = tmp_path / str(number)
        assert killed(prepared(folder), number, resume)
        ends(run_of(folder, 1, max_steps=4, save_steps=4), True, want, kept)
