"""How many steps the stock Trainer took, told to the adapters that its optimizer holds before it saves them.

Fused optimizers, its default, leave no other trace: they do not count as writing to a parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .unwrapped import for_lora

__all__ = ["notes_steps"]


def notes_steps(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._save: an adapter that training left at zero is found out there."""

    @for_lora(original)
    def save(target: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        if self.optimizer is not None:
            from ..training.optimizer import held_by

            held = held_by(self.optimizer)
            for layer in target._lora.layers.values():
                for name in target._lora.configs:
                    for adapter in layer.carried(name).values():
                        if any(id(p) in held for p in adapter.parameters()):
                            adapter.note_steps(self.state.global_step)
        original(self, *args, **kwargs)

    return save
