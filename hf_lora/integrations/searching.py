"""The stock Trainer's search with a LoRASearch: what a trial drew is what its arguments hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .marks import MARK

__all__ = ["checks_drawn"]


def checks_drawn(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._hp_search_setup, which casts values silently, and lets a user set names that mean nothing to it."""

    @functools.wraps(original)
    def hp_search_setup(self: Any, trial: Any) -> None:
        original(self, trial)
        if self.model_init is not None:
            from ..training.search import LoRASearch  # not above: it imports torch, which `import hf_lora` leaves alone

            search = getattr(self.model_init, "__self__", None)
            drawn = trial is None or (self.hp_search_backend is not None and hasattr(trial, "suggest_categorical"))
            if isinstance(search, LoRASearch) and drawn:
                search.check_arguments(trial, self.args)

    setattr(hp_search_setup, MARK, original)
    return hp_search_setup
