"""The adapters' scalars (`training/trackers.py`) in TensorBoard, W&B and a Trainer's other trackers, beside the loss.

Only the trackers get them: the console, `log_history` and `trainer_state.json` stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .trained_model import lora_model

__all__ = ["reports_scalars"]


def reports_scalars(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.log: where a training loss is logged, the trackers get the scalars in the same row.

    In the first process alone, where alone they write; the others are asked for nothing.
    """

    @functools.wraps(original)
    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        trackers = _trackers(self) if "loss" in logs and self.is_world_process_zero() else []
        model = lora_model(self) if trackers else None
        if model is None:
            original(self, logs, *args, **kwargs)
            return
        from ..training.trackers import lora_scalars  # not above: it imports torch, which `import hf_lora` leaves alone

        with _told(trackers, lora_scalars(model)):
            original(self, logs, *args, **kwargs)

    return log


def _trackers(trainer: Any) -> list[Any]:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known = tuple(INTEGRATION_TO_CALLBACK.values())
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, known)]


@contextmanager
def _told(trackers: list[Any], scalars: dict[str, float]) -> Iterator[None]:
    """Let these callbacks see the scalars among the logs inside a `with` block: one call, hence one row, a step.

    A call of their own would be a step of its own to some of them (DVCLive).
    """

    def with_scalars(on_log: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(on_log)
        def told(*args: Any, logs: dict[str, Any], **kwargs: Any) -> Any:
            return on_log(*args, logs={**logs, **scalars}, **kwargs)

        return told

    before = [tracker.__dict__.get("on_log") for tracker in trackers]
    for tracker in trackers:
        tracker.on_log = with_scalars(tracker.on_log)
    try:
        yield
    finally:
        for tracker, own in zip(trackers, before, strict=True):
            if own is None:
                del tracker.on_log
            else:
                tracker.on_log = own
