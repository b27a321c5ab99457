"""Whether tensors are what they were, so that what was computed of them need not be computed again."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..maths.autocast import autocast_dtype
from ..maths.tracing import is_traced

_PLAIN = (Tensor, nn.Parameter)


class Seen:
    """What some tensors were: their storages, which are not kept alive, how often each was written, and how they lie.

    torch counts what is written in place, but for writes through `.data` and in inference mode.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = tuple(tensors)
        self._storages = [weakref.ref(tensor.untyped_storage()) for tensor in tensors]
        self._marks = _marks(tensors)

    def are(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether these are the same tensors, with nothing written since, under the same autocast."""
        tensors = tuple(tensors)
        if len(tensors) != len(self._storages) or _marks(tensors) != self._marks:
            return False
        return all(ref() is t.untyped_storage() for ref, t in zip(self._storages, tensors, strict=True))


def stays(tensors: Iterable[Tensor]) -> bool:
    """Return whether tensors can be told to be unchanged: plain ones that do not train, while nothing is traced.

    What trains may be written unseen: a fused optimizer's steps do not count as writing.
    """
    if is_traced() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return False
    return not any(
        type(each) not in _PLAIN or each.requires_grad or each.is_inference() or each.is_meta for each in tensors
    )


def _marks(tensors: tuple[Tensor, ...]) -> list[Any]:
    lie = [(t._version, t.data_ptr(), t.dtype, t.stride(), t.shape) for t in tensors]
    return [*lie, *(autocast_dtype(device) for device in sorted({t.device.type for t in tensors}))]
