"""What a file's tensors must be, besides fitting in shape, before an adapter takes them over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from .errors import AdapterMismatchError
from .plan import Site
from .variants import Adapter

__all__ = ["check_dtypes"]


def check_dtypes(found: Iterable[tuple[Site, Adapter, Mapping[str, Tensor]]]) -> None:
    """Raise AdapterMismatchError where a file holds integers for what is trained, or numbers for what counts."""
    odd = [
        f"{site.module}.{site.parameter}: {attribute} holds {tensor.dtype}"
        for site, adapter, values in found
        for attribute, tensor in values.items()
        if tensor.is_floating_point() != getattr(adapter, attribute).is_floating_point()
    ]
    if odd:
        raise AdapterMismatchError(
            f"{len(odd)} tensors of the adapter's file are of a type that cannot stand for what is trained: "
            f"{'; '.join(odd[:6])}. Save its weights as floating-point numbers."
        )
