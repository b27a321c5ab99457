"""The parts of one of PEFT's keys: its prefix, the layer's path, its wrappers, and what of the adapter it names."""

from __future__ import annotations

from functools import cache

from ..variants.row import Row, Stored
from ..variants.table import ADAPTERS, SAVED, TOKENS

__all__ = ["PREFIX", "ROWS_KEY", "WRAP", "split_key", "stored_tensors", "unwrapped"]

PREFIX = "base_model.model."
WRAP = "base_layer"
ROWS_KEY = TOKENS.tensors[0].key


def stored_tensors() -> tuple[tuple[str, Stored], ...]:
    """Return (what `split_key` calls it, the tensor) of all that has a name of its own in files, each once."""
    return _stored(tuple(ADAPTERS.values()))


def split_key(key: str) -> tuple[str, str, str]:
    """Return (path, leaf, the adapter's attribute, or its role where it is a copy) of a key, PEFT's prefix aside."""
    leaves = _leaves(tuple(ADAPTERS.values()))
    path, _, last = key.removeprefix(PREFIX).rpartition(".")
    before, _, word = path.rpartition(".")
    pair = f"{word}.{last}"
    if pair in leaves:
        return before, pair, leaves[pair]
    return path, last, leaves.get(last, SAVED.name)


def unwrapped(path: str) -> tuple[str, int]:
    """Return a module's path without PEFT's wrappers, and how many of them stand at its end."""
    if WRAP not in path:
        return path, 0
    words = path.split(".")
    depth = next((i for i, word in enumerate(reversed(words)) if word != WRAP), len(words))
    return ".".join(word for word in words if word != WRAP), depth


@cache
def _stored(rows: tuple[Row, ...]) -> tuple[tuple[str, Stored], ...]:
    named = ((s.attribute if row.low_rank else row.name, s) for row in rows for s in row.tensors if s.keys)
    return tuple({stored.key: (name, stored) for name, stored in named}.values())


@cache
def _leaves(rows: tuple[Row, ...]) -> dict[str, str]:
    return {key: name for name, stored in _stored(rows) for key in stored.keys}
