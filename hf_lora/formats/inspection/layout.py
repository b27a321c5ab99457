"""What the names and shapes of an adapter file's tensors say, without the tensors and without the base.

PEFT's names and loralib's are known, older PEFT's too (an adapter's name inside: `lora_A.default.weight`); any other
tensor was saved whole. Layers that differ in their numbers only are one target: `layers.*.self_attn.q_proj`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ...files.safetensors_header import TensorEntry
from ...variants.row import Row, Stored
from ...variants.table import FORMULAS, LORA, TOKENS, formula_of
from ...wording import numberless
from ..keys import PREFIX, stored_tensors, unwrapped

__all__ = ["Adapted", "Layout", "Target", "layout_of"]

_LORALIB = re.compile(r"(?:^|\.)lora_[AB]$")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass
class Adapted:
    """What a file holds for one adapted parameter: its module's name, and the entries by part."""

    module: str
    parts: dict[str, TensorEntry] = field(default_factory=dict)

    @property
    def ranks(self) -> set[int]:
        """The rank that A and the rank that B has."""
        a, b = self.parts.get("lora_A"), self.parts.get("lora_B")
        found = {a.shape[0]} if a is not None and a.shape else set()
        return found | ({b.shape[1]} if b is not None and len(b.shape) > 1 else set())

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) of what is adapted, as far as the file tells."""
        a, b = self.parts.get("lora_A"), self.parts.get("lora_B")
        return (*(b.shape[:1] if b else ()), *(a.shape[1:2] if a else ()))


@dataclass(frozen=True)
class Target:
    """Modules that differ in their numbers only. layers: the first numbers in their names; of: how many there are.

    "there are" as the highest number in the file tells: a base may have more layers than any adapter of it.
    """

    name: str
    modules: int
    layers: tuple[int, ...]
    of: int
    ranks: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    parameters: int

    @property
    def absent(self) -> tuple[int, ...]:
        """The layers that it is not in."""
        return tuple(sorted(set(range(self.of)) - set(self.layers)))


@dataclass(frozen=True)
class Layout:
    """A file's tensors, sorted. saved: what lies there whole, by module and parameter; tokens: rows of a table."""

    adapted: dict[str, Adapted]
    saved: dict[str, dict[str, TensorEntry]]
    tokens: dict[str, TensorEntry]
    names: str  # whose: "PEFT", "loralib", "" where there is no low-rank tensor

    def holding(self, row: Row) -> set[str]:
        """Return the adapted paths that have a tensor of a formula that plain LoRA has not."""
        own = row.stored.keys() - LORA.stored.keys()
        return {path for path, one in self.adapted.items() if own & one.parts.keys()}

    def formula(self, config: Mapping[str, Any]) -> Row:
        """Return the formula that the tensors show, or else the one that a config asks for."""
        return next((row for row in FORMULAS.values() if self.holding(row)), formula_of(config))

    def targets(self) -> list[Target]:
        """Return the adapted modules by their patterns, in the file's order."""
        groups: dict[str, list[Adapted]] = defaultdict(list)
        deepest: dict[str, int] = defaultdict(int)
        for one in self.adapted.values():
            groups[numberless(one.module)].append(one)
            stack, number = _place(one.module)
            deepest[stack] = max(deepest[stack], number + 1)
        result = []
        for name, members in groups.items():
            layers = {_place(m.module)[1] for m in members} - {-1}
            result.append(
                Target(
                    name=name,
                    modules=len(members),
                    layers=tuple(sorted(layers)),
                    of=deepest[_place(members[0].module)[0]],
                    ranks=tuple(sorted({r for m in members for r in m.ranks})),
                    shapes=tuple(sorted({m.shape for m in members})),
                    parameters=sum(math.prod(e.shape) for m in members for e in m.parts.values()),
                )
            )
        return result


def layout_of(tensors: Mapping[str, TensorEntry]) -> Layout:
    """Return what a file's tensors are, by their names and shapes."""
    adapted: dict[str, Adapted] = {}
    saved: dict[str, dict[str, TensorEntry]] = defaultdict(dict)
    tokens: dict[str, TensorEntry] = {}
    loralib = False
    for name in sorted(tensors):
        key = name.removeprefix(PREFIX)
        part, path = _split(key)
        module, _ = unwrapped(path)
        if part == TOKENS.name:
            tokens[module] = tensors[name]
        elif part:
            adapted.setdefault(path, Adapted(module)).parts[part] = tensors[name]
            loralib |= bool(_LORALIB.search(key))
        else:
            saved[module][key.rpartition(".")[2]] = tensors[name]
    names = "" if not adapted else "loralib" if loralib else "PEFT"
    return Layout(adapted, dict(saved), tokens, names)


@cache
def _leaves(stored: tuple[tuple[str, Stored], ...]) -> dict[str, re.Pattern[str]]:
    """Return what the end of a key looks like, by the part of an adapter that it stands for."""
    found = {}
    for part, each in stored:
        stems = "|".join(map(re.escape, each.stems))
        end = r"(?:\.[^.]+)?\.bias" if each.key.endswith(".bias") else r"(?:\.(?!bias$)[^.]+)??(?:\.weight)?"
        found[part] = re.compile(rf"(?:^|\.)(?:{stems}){end}$")
    return found


def _split(key: str) -> tuple[str, str]:
    """Return (the part of an adapter, or "", and the path of the module) of a tensor's name without PEFT's prefix."""
    for part, leaf in _leaves(stored_tensors()).items():
        if found := leaf.search(key):
            return part, key[: found.start()]
    return "", key.rpartition(".")[0]


def _place(module: str) -> tuple[str, int]:
    """Return (the stack that a module is in, its number there), -1 where there is none."""
    found = _NUMBER.search(module)
    return (module[: found.start()], int(found[0])) if found and len(found[0]) < 6 else (module, -1)
