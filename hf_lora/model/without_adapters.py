"""A block in which `from_pretrained` loads what Transformers itself would, whatever adapter lies there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_plain", "plainly"]

_PLAIN: ContextVar[bool] = ContextVar("hf_lora_plain", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Look for no adapter inside a `with` block: it was looked for already, or the base alone is wanted."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_plain() -> bool:
    """Return whether the code that asks runs inside `plainly()`."""
    return _PLAIN.get()
