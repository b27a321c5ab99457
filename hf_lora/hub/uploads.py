"""Which files of a training run go to the Hub: by name only, and free of what names this machine.

Everything is copied into a folder of its own first, because the training goes on, writes its logs, and deletes old
checkpoints while that folder is uploaded.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import HubError
from ..files.disk import write_atomically
from ..files.names import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, places_of
from ..files.privacy import holds_token, named_path

__all__ = ["private_names", "scrub_configs", "stage_adapters", "stage_checkpoint", "stage_logs"]

STATE_NAME = "trainer_state.json"
# What resuming reads besides the adapter. Never training_args.bin: a pickle that holds the token and local paths.
RESUMING = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_*.pth")
# TensorBoard calls a run <time>_<host>, and its files events.out.tfevents.<time>.<host>.<process>.<number>.
_RUN = re.compile(r"(.*\d\d_\d\d-\d\d-\d\d)_.+")
_EVENTS = re.compile(r"(events\.out\.tfevents\.\d+)\..+")


def private_names(folder: str | os.PathLike[str]) -> list[str]:
    """Return what nothing of a run may name: its folder as an absolute path, and this machine, as runs are called."""
    place, host = os.path.abspath(folder), platform.node()
    # Every path has the root in it, and every text a name of no letters.
    return [name for name in (place, host and f"_{host}") if name and name != os.path.dirname(name)]


def stage_adapters(source: Path, target: Path, names: Sequence[str], cards: Sequence[Path] = ()) -> None:
    """Take adapters' files along, and each one's card from the first folder of `cards` that has it.

    Raises HubError where a file is missing.
    """
    for name, place in places_of(names).items():
        wanted = (CONFIG_NAME, WEIGHTS_NAME)
        missing = [file for file in wanted if not _take(source / place / file, target / place / file)]
        if missing:
            raise HubError(f"{source / place} lacks {' and '.join(missing)} of the adapter {name!r}: nothing to push.")
        any(_take(folder / place / CARD_NAME, target / place / CARD_NAME) for folder in cards)


def stage_checkpoint(source: Path, target: Path, names: Sequence[str], private: Sequence[str]) -> None:
    """Take along what resuming from a checkpoint needs; its state names no place of this machine."""
    stage_adapters(source, target, names)
    for pattern in RESUMING:
        for path in source.glob(pattern):
            _take(path, target / path.name)
    if (source / STATE_NAME).is_file():
        state = _scrubbed(json.loads((source / STATE_NAME).read_text(encoding="utf-8")), private)
        state["best_model_checkpoint"] = None  # it is not there where this one is downloaded to
        _write_json(target / STATE_NAME, state)


def stage_logs(source: Path, target: Path, private: Sequence[str], token: str | None) -> None:
    """Take TensorBoard's logs along under names without the machine's, except those that hold something private."""
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        if path.is_file():
            content = path.read_bytes()
            if not holds_token(content, token) and not named_path(content, private):
                copy = _public_log(target, path.relative_to(source))
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)


def scrub_configs(folder: Path, private: Sequence[str]) -> None:
    """Take private names out of the configs in a staged folder, as where a tokenizer keeps its cache's place."""
    for path in folder.rglob("*_config.json"):
        content = path.read_bytes()
        if named_path(content, private):
            _write_json(path, _scrubbed(json.loads(content), private))


def _public_log(target: Path, path: Path) -> Path:
    *folders, name = path.parts
    public = target.joinpath(*(_RUN.sub(r"\1", folder) for folder in folders), _EVENTS.sub(r"\1", name))
    number, free = 0, public
    while free.exists():  # another file that was begun in the same second
        number += 1
        free = public.with_name(f"{public.name}.{number}")
    return free


def _scrubbed(value: Any, private: Sequence[str]) -> Any:
    """Return a JSON value without texts that hold a private name."""
    if isinstance(value, dict):
        return {key: _scrubbed(each, private) for key, each in value.items()}
    if isinstance(value, list):
        return [_scrubbed(each, private) for each in value]
    return None if isinstance(value, str) and named_path(value.encode(errors="replace"), private) else value


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _take(source: Path, target: Path) -> bool:
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return True
