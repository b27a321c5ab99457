"""What a file's tensors must be, besides fitting in shape, before an adapter takes them over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..errors import AdapterMismatchError
from ..layers.state import AdapterState
from ..targets.plan import Site
from ..variants.adapter import Adapter
from ..variants.copies import Tokens
from ..variants.initial import INITS
from ..variants.lora import LoRA

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
    rows = adapter.get_buffer("rows").tolist() if isinstance(adapter, Tokens) else list(site.rows)
    if rows != list(site.rows):
        return [f"{where}: the file holds the rows {list(site.rows)[:8]}, the model trains {rows[:8]}"]
    if not isinstance(adapter, LoRA):
        return []
    problems = []
    if not math.isclose(adapter.scaling, site.scaling, rel_tol=1e-6):
        problems.append(f"{where} is scaled by {site.scaling:g} in the file, by {adapter.scaling:g} on the model")
    if adapter.init != site.init and (adapter.moves_base or INITS[site.init].moves_base):
        problems.append(f"{where} started as init_lora_weights={site.init!r}, the model's as {adapter.init!r}")
    return problems
