"""Resuming the training of a LoRAModel: from a whole checkpoint, and never anew in parts without a word."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from ..errors import AdapterFileError
from .checkpoints import COMPLETE, STATE, by_step, clear, is_half, rotate

_CLEARED = f"{COMPLETE} (its save was interrupted, so it is removed)"
# What a Trainer reads besides weights and state, by how its names begin (FSDP's optimizer is a folder); all or nothing.
_STARTS_ANEW = {"optimizer": "the optimizer", "scheduler": "the learning-rate schedule", "rng_state": "random numbers"}


def choose(trainer: Any, model: Any, given: Any) -> str | None:
    """Return the checkpoint to resume from: the one that is named, or for True the last whole one of the run.

    What a killed save left in the run's folder is cleared. Raises AdapterFileError where the one that is named is not
    whole, or none is. None where there is none: Transformers says so.
    """
    run = Path(trainer.args.output_dir)
    partial = {path.absolute(): [_CLEARED] for path in (clear(run) if trainer.args.should_save else ())}
    if not given:
        return None
    trainer.accelerator.wait_for_everyone()
    if not isinstance(given, bool):
        path = Path(given)
        if lacking := partial.get(path.absolute()) or _lacking(trainer, model, path):
            mark = f" If you know that it is whole, make a file {COMPLETE} in it." if lacking == [COMPLETE] else ""
            raise AdapterFileError(
                f"{given} is not a whole checkpoint: it lacks {', '.join(lacking)}. Resume from another one, or pass "
                f"resume_from_checkpoint=True for the last whole one.{mark}"
            )
        return _told_anew(trainer, path)
    passed: dict[Path, list[str]] = {}
    for path in by_step(run):
        if not (lacking := _lacking(trainer, model, path)):
            if passed:
                warnings.warn(f"resuming from {path}; what came later is not whole: {_told(passed)}.", stacklevel=4)
            return _told_anew(trainer, path)
        passed[path] = lacking
    if partial or passed:
        raise AdapterFileError(
            f"no checkpoint in {run} is whole: {_told({**partial, **passed})}. Without resume_from_checkpoint training "
            "starts anew."
        )
    return None


def find_best(trainer: Any, chosen: Path) -> None:
    """Find the best checkpoint where the run's folder has moved, or warn that it is not on this machine.

    chosen: the checkpoint whose state the Trainer has read. Transformers knows the best one by its path of then only,
    and would end with the last weights where none is saved any more.
    """
    state, args = trainer.state, trainer.args
    if state.best_global_step and not os.path.isdir(state.best_model_checkpoint or ""):
        here = Path(args.output_dir, f"checkpoint-{state.best_global_step}")
        same = _state_of(here).get("best_metric") == state.best_metric  # and not another run's
        state.best_model_checkpoint = str(here) if same else None
        if args.load_best_model_at_end and not same:
            warnings.warn(
                f"the best checkpoint so far (step {state.best_global_step}, {args.metric_for_best_model} "
                f"{state.best_metric}) is not on this machine, so load_best_model_at_end can choose later ones only. "
                f"To have it count, put it at {here}.",
                stacklevel=3,
            )
    is_last = [chosen.resolve()] == [path.resolve() for path in by_step(Path(args.output_dir))[:1]]
    if args.should_save and is_last and (chosen / COMPLETE).exists():  # killed before it had removed what is too much
        rotate(chosen, args.save_total_limit, state.best_model_checkpoint)


def step_of(checkpoint: str | None) -> int:
    """Return the step that a checkpoint was saved at, 0 where there is none."""
    return int(_state_of(Path(checkpoint)).get("global_step", 0)) if checkpoint else 0


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of the training; nothing where it can't be read."""
    try:
        return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _lacking(trainer: Any, model: Any, checkpoint: Path) -> list[str]:
    """Return the files that a checkpoint should have and has not; what is kept of a saved model alone is whole."""
    if not checkpoint.is_dir():
        return ["the folder itself"]
    lacking = model.missing_weights(checkpoint) + ([] if "global_step" in _state_of(checkpoint) else [STATE])
    absent = _absent(trainer, checkpoint)
    lacking += [] if len(absent) == len(_STARTS_ANEW) else [f"{name}*" for name in absent]
    return lacking + ([COMPLETE] if is_half(checkpoint) else [])


def _absent(trainer: Any, checkpoint: Path) -> list[str]:
    """Return what of _STARTS_ANEW a checkpoint does not hold; DeepSpeed keeps it its own way, and checks it."""
    present = os.listdir(checkpoint)
    anew = () if trainer.is_deepspeed_enabled else _STARTS_ANEW
    return [start for start in anew if not any(name.startswith(start) for name in present)]


def _told_anew(trainer: Any, checkpoint: Path) -> str:
    """Return a checkpoint's path, with a warning where not everything goes on from it."""
    if absent := _absent(trainer, checkpoint):
        warnings.warn(
            f"{checkpoint} holds the adapter and the step, but no {', '.join(f'{name}*' for name in absent)} "
            f"(save_only_model=True): {', '.join(_STARTS_ANEW[name] for name in absent)} start anew.",
            stacklevel=5,
        )
    return os.fspath(checkpoint)


def _told(partial: dict[Path, list[str]]) -> str:
    return "; ".join(f"{path.name} lacks {', '.join(lacking)}" for path, lacking in partial.items())
