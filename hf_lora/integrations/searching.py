"""The stock Trainer's search with a LoRASearch: what a trial drew is what its arguments hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .patches import answering

__all__ = ["checks_drawn"]


def checks_drawn(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer.train: its search casts values silently, and lets a user set names that mean nothing to it.

    They are checked where the training first asks for its numbers of steps: by then the trial has set them.
    """

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        search, plan = _search_of(self), getattr(self, "set_initial_training_values", None)
        drawn = trial is None or (self.hp_search_backend is not None and hasattr(trial, "suggest_categorical"))
        if search is None or plan is None or not drawn:
            return original(self, resume_from_checkpoint, trial, *args, **kwargs)

        def checked(*args: Any, **kwargs: Any) -> Any:
            search.check_arguments(trial, self.args)
            return plan(*args, **kwargs)

        with answering(self, set_initial_training_values=checked):
            return original(self, resume_from_checkpoint, trial, *args, **kwargs)

    return train


def _search_of(trainer: Any) -> Any:
    """Return the LoRASearch whose models a Trainer trains, or None."""
    if trainer.model_init is None:
        return None
    from ..training.search import LoRASearch  # not above: it imports torch, which `import hf_lora` leaves alone

    search = getattr(trainer.model_init, "__self__", None)
    return search if isinstance(search, LoRASearch) else None
