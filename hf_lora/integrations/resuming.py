"""Resuming the training of a LoRAModel: from a whole checkpoint, and never anew in parts without a word."""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .checkpoints import BEGAN, COMPLETE, by_step, clear, is_half, rotate
from .patches import answering
from .trained_model import lora_model

__all__ = ["resumes_whole", "tell_missing_best"]

_STATE = "trainer_state.json"
_CLEARED = f"{COMPLETE} (its save was interrupted, so it is removed)"
# What a Trainer reads besides weights and state, by how its names begin (FSDP's optimizer is a folder); all or nothing.
_STARTS_ANEW = {"optimizer": "the optimizer", "scheduler": "the learning-rate schedule", "rng_state": "random numbers"}


def resumes_whole(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.train: of a LoRAModel's checkpoints only whole ones are resumed from."""

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        setattr(self, BEGAN, time.time())
        model = None if self.model is None else lora_model(self)  # none yet in a search
        chosen = None if model is None else _chosen(self, model, resume_from_checkpoint)
        if chosen is None:
            return original(self, resume_from_checkpoint, *args, **kwargs)
        answers: dict[str, Callable[..., Any]] = {}  # what this version of Transformers has of the two
        if plan := getattr(self, "set_initial_training_values", None):
            answers["set_initial_training_values"] = functools.partial(
                _planned, plan, _state_of(Path(chosen))["global_step"]
            )
        if load := getattr(self, "_load_callback_state", None):
            answers["_load_callback_state"] = functools.partial(_load_callback_state, self, load, Path(chosen))
        with answering(self, **answers):
            return original(self, chosen, *args, **kwargs)

    return train


def tell_missing_best(args: Any, checkpoint: Path) -> None:
    """Warn where the best model is wanted at the end and the best one so far is not on this machine.

    args: the TrainingArguments. checkpoint: a folder with trainer_state.json; without one nothing is said.
    """
    if not args.load_best_model_at_end or not (checkpoint / _STATE).is_file():
        return
    state = _state_of(checkpoint)
    best, step = state.get("best_model_checkpoint"), state.get("best_global_step")
    expected = Path(args.output_dir, f"checkpoint-{step}")
    if not step or expected.is_dir() or (best and Path(best).is_dir()):
        return
    warnings.warn(
        f"the best checkpoint so far (step {step}, {args.metric_for_best_model} {state.get('best_metric')}) is not on "
        f"this machine, so load_best_model_at_end can choose later ones only. To have it count, put it at {expected}.",
        stacklevel=3,
    )


def _load_callback_state(trainer: Any, load: Callable[[], None], chosen: Path) -> None:
    """Find the best checkpoint where the run's folder has moved; Transformers calls this once the state is read.

    It knows the best one by its path of then only, and would end with the last weights where none is saved any more.
    """
    state = trainer.state
    if state.best_model_checkpoint and not os.path.isdir(state.best_model_checkpoint):
        state.best_model_checkpoint = None  # as later versions of Transformers do
    if not state.best_model_checkpoint and state.best_global_step:
        here = os.path.join(trainer.args.output_dir, f"checkpoint-{state.best_global_step}")
        with suppress(OSError, ValueError, LookupError):
            if _state_of(Path(here))["best_metric"] == state.best_metric:  # and not another run's
                state.best_model_checkpoint = here
    _rotate_last(trainer, chosen)
    load()


def _rotate_last(trainer: Any, chosen: Path) -> None:
    """Remove what the run's last save, killed right after its checkpoint was whole, had no time to."""
    args = trainer.args
    is_last = [chosen.resolve()] == [path.resolve() for path in by_step(Path(args.output_dir))[:1]]
    if args.should_save and is_last and (chosen / COMPLETE).exists():
        rotate(chosen, args.save_total_limit, trainer.state.best_model_checkpoint)


def _planned(plan: Callable[..., tuple[Any, ...]], done: int, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return a training's numbers of epochs, steps and so on; no epoch is left where the last step is done.

    Transformers would train one step more, wherever the last step is in the middle of an epoch.
    """
    epochs, steps_per_epoch, *others = plan(*args, **kwargs)
    return (epochs if done < others[-1] else done // steps_per_epoch, steps_per_epoch, *others)


def _state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))


def _chosen(trainer: Any, model: Any, given: Any) -> str | None:
    """Return the checkpoint to resume from: the one that is named, or for True the last whole one of the run.

    What a killed save left in the run's folder is cleared. Raises AdapterFileError where the one that is named is not
    whole, or none is. None where there is none: Transformers says so.
    """
    from ..errors import AdapterFileError  # not above: `import hf_lora` leaves it alone

    run = Path(trainer.args.output_dir)
    partial = {name: [_CLEARED] for name in (clear(run) if trainer.args.should_save else ())}
    if not given:
        return None
    trainer.accelerator.wait_for_everyone()
    if not isinstance(given, bool):
        path = Path(given)
        is_cleared = path.name in partial and path.absolute().parent == run.absolute()
        if lacking := partial[path.name] if is_cleared else _lacking(trainer, model, path):
            mark = f" If you know that it is whole, make a file {COMPLETE} in it." if lacking == [COMPLETE] else ""
            raise AdapterFileError(
                f"{given} is not a whole checkpoint: it lacks {', '.join(lacking)}. Resume from another one, or pass "
                f"resume_from_checkpoint=True for the last whole one.{mark}"
            )
        _tell_what_starts_anew(trainer, path)
        return os.fspath(given)
    passed: dict[str, list[str]] = {}
    for path in by_step(run):
        if not (lacking := _lacking(trainer, model, path)):
            if passed:
                warnings.warn(f"resuming from {path}; what came later is not whole: {_told(passed)}.", stacklevel=4)
            _tell_what_starts_anew(trainer, path)
            return os.fspath(path)
        passed[path.name] = lacking
    if partial or passed:
        raise AdapterFileError(
            f"no checkpoint in {run} is whole: {_told({**partial, **passed})}. Without resume_from_checkpoint training "
            "starts anew."
        )
    return None


def _lacking(trainer: Any, model: Any, checkpoint: Path) -> list[str]:
    """Return the files that a checkpoint should have and has not; what is kept of a saved model alone is whole."""
    if not checkpoint.is_dir():
        return ["the folder itself"]
    lacking = model.missing_weights(checkpoint)
    try:
        _state_of(checkpoint)["global_step"]
    except (OSError, ValueError, LookupError, TypeError):
        lacking.append(_STATE)
    absent = _absent(trainer, checkpoint)
    lacking += [] if len(absent) == len(_STARTS_ANEW) else [f"{name}*" for name in absent]
    return lacking + ([COMPLETE] if is_half(checkpoint) else [])


def _absent(trainer: Any, checkpoint: Path) -> list[str]:
    """Return what of _STARTS_ANEW a checkpoint does not hold; DeepSpeed keeps it its own way, and checks it."""
    if trainer.is_deepspeed_enabled:
        return []
    present = os.listdir(checkpoint)
    return [start for start in _STARTS_ANEW if not any(name.startswith(start) for name in present)]


def _tell_what_starts_anew(trainer: Any, checkpoint: Path) -> None:
    if absent := _absent(trainer, checkpoint):
        warnings.warn(
            f"{checkpoint} holds the adapter and the step, but no {', '.join(f'{name}*' for name in absent)} "
            f"(save_only_model=True): {', '.join(_STARTS_ANEW[name] for name in absent)} start anew.",
            stacklevel=5,
        )


def _told(partial: dict[str, list[str]]) -> str:
    return "; ".join(f"{name} lacks {', '.join(lacking)}" for name, lacking in partial.items())
