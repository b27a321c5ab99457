"""What the integrations set and ask here, without torch: who hears of a new LoRAModel, who looks for no adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["IS_PLAIN", "LISTENERS", "plainly"]

# Called when a model becomes a LoRAModel: `integrations/missing.py` then tells what installed packages lack.
LISTENERS: list[Callable[[], None]] = []
IS_PLAIN: ContextVar[bool] = ContextVar("hf_lora_plain", default=False)  # whether code runs inside `plainly()`


@contextmanager
def plainly() -> Iterator[None]:
    """Look for no adapter inside a `with` block: it was looked for already, or the base alone is wanted.

    `from_pretrained` loads there what Transformers itself would, whatever adapter lies in the folder.
    """
    token = IS_PLAIN.set(True)
    try:
        yield
    finally:
        IS_PLAIN.reset(token)
