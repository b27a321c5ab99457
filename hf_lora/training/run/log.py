"""train.log: what a run says while it trains, with the time."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

__all__ = ["logged_to"]

_LOGGERS = "transformers", "hf_lora"


class _Logs(TrainerCallback):
    """Writes each row of the Trainer's log as a line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what was logged at a step."""
        numbers = {k: v for k, v in kwargs["logs"].items() if isinstance(v, int | float)}
        told = ", ".join(f"{name} {value:.5g}" for name, value in numbers.items())
        self.say(f"step {state.global_step} of {state.max_steps}: {told}")


@contextmanager
def logged_to(path: Path) -> Iterator[_Logs]:
    """Add to a log what the Trainer logs, what is warned of, and what Transformers says. Yields the callback for it."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    own = logging.Logger("hf_lora.run", logging.INFO)  # one of its own: nobody else's level counts
    own.addHandler(handler)
    shown = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        own.warning("%s: %s", category.__name__, message)
        shown(message, category, *where, **more)

    others = [logging.getLogger(name) for name in _LOGGERS]
    try:
        warnings.showwarning = show
        for other in others:
            other.addHandler(handler)
        yield _Logs(own.info)
    finally:
        warnings.showwarning = shown
        for other in others:
            other.removeHandler(handler)
        handler.close()
