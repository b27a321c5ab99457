"""What the names and shapes of an adapter's tensors say, without the tensors and without the base."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ...errors import numberless
from ...files.tensors import TensorEntry
from ...variants.row import Row, Stored
from ...variants.table import COPIES, FORMULAS, LORA, formula_of
from ..keys import lowered, plain_keys, split_key, unwrapped

_NUMBER = re.compile(r"(?<![^.])\d{1,5}(?![^.])")


Parts = dict[str, TensorEntry]  # of one adapted parameter, by the adapter's attribute


def ranks_of(parts: Parts) -> tuple[int, ...]:
    """Return the rank that each tensor has: A's, then B's, which in a grouped convolution is divided by its groups."""
    a, b = (parts[part].shape if part in parts else () for part in ("lora_A", "lora_B"))
    if len(a) > 2 and b[1:2] > (0,) and a[0] % b[1] == 0:
        return a[:1] * 2
    at = ((parts[each.attribute].shape, each.rank) for each in _stored(parts) if each.rank is not None)
    return tuple(size for shape, rank in at for size in shape[rank : rank + 1])


def _shape_of(parts: Parts) -> tuple[int, ...]:
    """Return (out, in) of what is adapted, as far as the file tells."""
    outputs = [parts[each.attribute].shape[:1] for each in _stored(parts) if each.outputs is not None]
    inputs = [parts[each.attribute].shape[1:2] for each in _stored(parts) if each.inputs is not None]
    return (*next(iter(outputs), ()), *next(iter(inputs), ()))


def _stored(parts: Parts) -> list[Stored]:
    """Return what the formulas say of the tensors of one adapted parameter."""
    known = {stored.attribute: stored for row in FORMULAS.values() for stored in row.tensors}
    return [stored for name, stored in known.items() if name in parts]


@dataclass(frozen=True)
class Target:
    """Modules that differ in their numbers only: `layers.*.self_attn.q_proj`.

    layers: the first numbers in their names. of: how many layers there are, as the highest number in the file tells.
    """

    name: str
    layers: tuple[int, ...]
    of: int
    ranks: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    parameters: int


@dataclass(frozen=True)
class Layout:
    """A file's tensors, sorted. adapted: by the parameter's path in PEFT's names; saved: the others, by module."""

    adapted: dict[str, Parts]
    saved: dict[str, list[TensorEntry]]
    names: str  # "PEFT", "loralib", "" where there is no low-rank tensor

    def holding(self, row: Row) -> int:
        """Return how many adapted parameters have a tensor of a formula that plain LoRA has not."""
        own = row.stored.keys() - LORA.stored.keys()
        return sum(bool(own & parts.keys()) for parts in self.adapted.values())

    def formula(self, config: Any) -> Row:
        """Return the formula that the tensors show, or else the one that a config asks for."""
        return next((row for row in FORMULAS.values() if self.holding(row)), formula_of(config))

    def targets(self) -> list[Target]:
        """Return the adapted modules by their patterns, in the file's order."""
        groups: dict[str, list[str]] = defaultdict(list)
        deepest: dict[str, int] = defaultdict(int)
        for path in self.adapted:
            groups[numberless(unwrapped(path)[0])].append(path)
            stack, number = _place(path)
            deepest[stack] = max(deepest[stack], number + 1)
        return [self._target(name, paths, deepest[_place(paths[0])[0]]) for name, paths in groups.items()]

    def _target(self, name: str, paths: list[str], of: int) -> Target:
        members = [self.adapted[path] for path in paths]
        found = {_shape_of(parts) for parts in members}
        whole = {shape for shape in found if not any(shape == other[: len(shape)] for other in found - {shape})}
        return Target(
            name=name,
            layers=tuple(sorted({_place(path)[1] for path in paths} - {-1})),
            of=of,
            ranks=tuple(sorted({rank for parts in members for rank in ranks_of(parts)})),
            shapes=tuple(sorted(whole)),  # of several that share a factor one shows all
            parameters=sum(prod(entry.shape) for parts in members for entry in parts.values()),
        )


def layout_of(tensors: Mapping[str, TensorEntry]) -> Layout:
    """Return what a file's tensors are, by their names and shapes."""
    adapted: dict[str, Parts] = {}
    saved: dict[str, list[TensorEntry]] = defaultdict(list)
    names = ""
    tensors = lowered(tensors)
    for name, key in sorted(plain_keys(tensors).items()):
        is_loralibs = key.endswith((".lora_A", ".lora_B"))
        path, _, part = split_key(f"{key}.weight" if is_loralibs else key)
        if part in COPIES:
            saved[unwrapped(path)[0] + (" (rows)" if COPIES[part].of_rows else "")].append(tensors[name])
        else:
            adapted.setdefault(path, {})[part] = tensors[name]
            names = "loralib" if is_loralibs else names or "PEFT"
    return Layout(adapted, dict(saved), names)


def _place(path: str) -> tuple[str, int]:
    """Return (the stack of layers that a path is in, its number there), -1 where there is none."""
    found = _NUMBER.search(path)
    return (path[: found.start()], int(found[0])) if found else (path, -1)
