"""What an adapter adapts, as text: a table of targets, and the count of parameters that train."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from ..errors import full_name, numberless
from ..kinds.quantised import count
from ..layers.layer import base_modules
from .selecting import check_known


class _OfLayer(Protocol):
    @property
    def layer(self) -> str: ...


Layer = TypeVar("Layer", bound=_OfLayer)


def trainable_counts(model: Any) -> tuple[int, int]:
    """Return (trainable, all) parameter counts; shared parameters once, packed ones as the numbers they stand for."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(map(count, parameters))


def target_rows(model: Any, adapter_name: str | None = None) -> list[tuple[str, str, str, int, int, int]]:
    """Return an adapter's targets: module pattern, kind, shape, how many, of how many, parameters.

    Layers that differ in their numbers only are one row. "of" counts the modules of that pattern in the model.
    """
    state = model._lora
    name = adapter_name or next(iter(state.selected or state.configs), "")
    check_known(state, [name])
    there: dict[str, int] = defaultdict(int)
    for module, layer in base_modules(model):
        for parameter, value in (*layer._parameters.items(), *layer._buffers.items()):
            if value is not None:
                there[numberless(full_name(module, parameter))] += 1
    rows: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    seen: set[int] = set()  # tensors that layers share count where the first of them is
    for module, _, _, adapter in state.carried(name):
        what, shape = adapter.described()
        row = rows[numberless(full_name(module, adapter.parameter)), what, shape]
        row[0] += 1
        row[1] += sum(p.numel() for p in adapter.parameters() if id(p) not in seen)
        seen |= {id(adapter._parameters[name]) for name in adapter.shared()}
    return [
        (pattern.removesuffix(".weight"), kind, shape, layers, there[pattern], size)
        for (pattern, kind, shape), (layers, size) in rows.items()
    ]


def targets_table(model: Any, adapter_name: str | None = None) -> str:
    """Return `target_rows` as text; a row with fewer adapted than there are is marked with "uneven"."""
    rows = target_rows(model, adapter_name)
    lines = [("target", "kind", "shape", "layers", "parameters")]
    for pattern, kind, shape, layers, there, size in rows:
        lines.append((pattern, kind, shape, f"{layers} of {there}{' uneven' if layers < there else ''}", f"{size:,d}"))
    lines.append(("total", "", "", "", f"{sum(size for *_, size in rows):,d}"))
    return aligned(lines)


def alike(rows: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Return rows of layers by what a table calls them: those that differ in their numbers only are one.

    A layer that no other is like has its own name.
    """
    groups: dict[str, list[Layer]] = defaultdict(list)
    for row in rows:
        groups[numberless(row.layer)].append(row)
    return {group[0].layer if len(group) == 1 else name: group for name, group in groups.items()}


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Return a table's lines as text: every column as wide as its widest cell, the last one flush right.

    >>> print(aligned([("target", "layers"), ("query", "12")]))
    target  layers
    query       12
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join([*left, last.strip().rjust(widths[-1])]) for *left, last in rows)
