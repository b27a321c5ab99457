"""The autocast state of a moment, to compute again later what was computed then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

Ambient = Callable[[], AbstractContextManager[object]]


def ambient(device: torch.device) -> Ambient:
    """Return a maker of contexts in which a device's autocast is what it is now."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    return partial(
        torch.autocast,
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Return the dtype that autocast computes in on a device type now, None where it is off."""
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None
