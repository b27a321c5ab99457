"""The error of an adapter that does not fit its model: what is unexpected, what is missing, and what was near."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from torch import nn

from ..errors import AdapterMismatchError
from .keys import split_key, unwrapped

__all__ = ["mismatch"]


def mismatch(
    modules: Mapping[str, nn.Module], unexpected: Sequence[str], problems: Sequence[str], count: int
) -> AdapterMismatchError:
    """Return the error that lists what does not fit, with the nearest names for each key without a place."""
    said = [*(f"unexpected {key}{_nearest(key, modules)}" for key in unexpected[:6]), *problems]
    rest = len(unexpected) + len(problems) - 6
    shown = "; ".join(said[:6]) + (f"; and {rest} more" if rest > 0 else "")
    return AdapterMismatchError(
        f"the adapter does not fit {type(modules['']).__name__}: {shown}. Its file holds {count} tensors. Load it onto "
        "the base it was trained on (base_model_name_or_path in its adapter_config.json), of the same class."
    )


def _nearest(key: str, modules: Mapping[str, nn.Module]) -> str:
    path, leaf, attribute = split_key(key)
    path, _ = unwrapped(path)
    if path in modules:
        return f" ({path or type(modules['']).__name__} has no {leaf})" if attribute == "saved" else ""
    near = difflib.get_close_matches(path, [n for n in modules if n], n=2, cutoff=0.6)
    return f" (nearest: {', '.join(near)})" if near else ""
