"""The stock Trainer's search with a LoRASearch: what a trial drew is what the Trainer's arguments hold."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["checks_drawn", "search_of"]


def checks_drawn(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Trainer._hp_search_setup, with which each training starts: it casts a trial's values without a word."""

    @functools.wraps(original)
    def _hp_search_setup(self: Any, trial: Any) -> None:
        original(self, trial)
        if (search := search_of(self)) is not None:
            search.check_arguments(trial if self.hp_search_backend else None, self.args)

    return _hp_search_setup


def search_of(trainer: Any) -> Any:
    """Return the LoRASearch whose models a Trainer trains, or None; where nobody imported it, there is none."""
    cls = getattr(sys.modules.get("hf_lora.training.search"), "LoRASearch", None)
    owner = getattr(trainer.model_init, "__self__", None)
    return owner if cls is not None and isinstance(owner, cls) else None
