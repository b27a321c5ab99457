"""What a file's tensors must be, besides fitting in shape, before an adapter takes them over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..errors import AdapterMismatchError
from ..layers.state import AdapterState
from ..targets.plan import Site
from ..variants.adapter import Adapter

__all__ = ["check_dtypes", "check_same"]


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


def check_same(state: AdapterState, name: str, targets: Sequence[tuple[Site, Adapter, Mapping[str, Tensor]]]) -> None:
    """Raise AdapterMismatchError where a file's adapter is another one than that of a name: numbers alone say less."""
    problems = [problem for site, adapter, values in targets for problem in _changes(site, adapter, values)]
    held = {id(adapter) for _, adapter, _ in targets}
    problems += [
        f"the file lacks {module}.{adapter.parameter}"
        for module, layer in state.layers.items()
        for adapter in layer.carried(name).values()
        if id(adapter) not in held
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise AdapterMismatchError(
            f"the file is no state of the adapter {name!r}: {'; '.join(problems[:6])}{more}. Give the adapter the "
            "config it was saved with, or load the file under another name."
        )


def _changes(site: Site, adapter: Adapter, values: Mapping[str, Tensor]) -> list[str]:
    """Return in what a file's adapter differs from one that is there, besides its numbers."""
    if site.shares:  # a tied table's, which is looked at where it is held
        return []
    where, sizes = f"{site.module}.{site.parameter}", adapter.sizes()
    found = {attribute: tuple(tensor.shape) for attribute, tensor in values.items()}
    if found != sizes:
        return [f"{where} is {found} in the file, {sizes} on the model"]
    return [f"{where}{difference}" for difference in adapter.conflicts(site)]
