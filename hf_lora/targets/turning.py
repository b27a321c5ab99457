"""Which layers may be given (time, rows, ...) where others are given (rows, time, ...).

XLNet, FSMT, Longformer and torch's own attention turn their batches. Where both sizes fit, nothing else tells it.
"""

import inspect
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import beginnings

_TURNS = re.compile(
    r"(?m)^[^#\n]*\b(\w+) = \1\.(?:(?:transpose|swapaxes|swapdims)\((?:0, 1|1, 0)\)|permute\(\(?1, 0(?:, 2)?\)?\))"
    r"(?:\.contiguous\(\))?(?!\.)"
)


def below_turning(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Return those of some layers above which a module swaps the first two dimensions of what it computes on.

    A convolution has its rows in the first dimension whatever is above.
    """
    turning = {
        name for name, module in model.named_modules()
        if _turns(module.__class__)
        or any(isinstance(child, nn.MultiheadAttention) and not child.batch_first for child in module.children())
    }  # fmt: skip
    return frozenset(
        name for name in names if turning and not isinstance(model.get_submodule(name), _ConvNd)
        and not turning.isdisjoint(["", *beginnings(name)[:-1]])
    )  # fmt: skip


@cache
def _turns(cls: Any) -> bool:
    """Return whether the source of a module's forward has such a swap; what has no source has none."""
    try:
        return bool(_TURNS.search(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError):
        return False
