"""The cells of the training step: every combination of six factors, and few in which every pair of values occurs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .arms import Factors, Settings, bert_layers, draw_factors

QUERY_VALUE = ("query", "value")
ALL_LINEAR = ("query", "key", "value", "dense")
LONGEST = 128  # tokens in a sequence


@dataclass(frozen=True)
class Cell:
    """One setting of the step: BERT layers of a width, a batch, an adapter."""

    layers: int
    hidden: int
    batch: int
    length: int
    settings: Settings
    dtype: torch.dtype
    base_dropout: float = 0.0

    @property
    def place(self) -> str:
        """What the cell is called where the adapter's dropout is told beside it."""
        targets = "all linear" if self.settings.targets == ALL_LINEAR else "+".join(self.settings.targets)
        base = f"{self.layers} x {self.hidden}" + (f" (dropout {self.base_dropout:g})" if self.base_dropout else "")
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{base}, {self.batch}x{self.length} tokens, r={self.settings.r}, {targets}, {dtype}"

    @property
    def title(self) -> str:
        """What the cell is called in tables and files."""
        return f"{self.place}, dropout {self.settings.dropout:g}"

    def build(self, device: torch.device) -> Scene:
        """Return the base and random tensors for it, the same ones every time."""
        torch.manual_seed(0)
        base = bert_layers(self.layers, self.hidden, self.base_dropout, self.dtype, device)
        x, cotangent = torch.randn(2, self.batch, self.length, self.hidden, device=device, dtype=self.dtype)
        return Scene(base, x, cotangent, draw_factors(base, self.settings))


class Scene(NamedTuple):
    """What every arm of a cell gets: a base to copy, an input, the gradient of the output, A and B."""

    base: nn.Module
    x: Tensor
    cotangent: Tensor
    factors: Factors


FACTORS: dict[str, tuple[object, ...]] = {
    "hidden": (512, 768, 1024),
    "tokens": (64, 512, 2048),
    "r": (8, 16, 64),
    "targets": (QUERY_VALUE, ALL_LINEAR),
    "dtype": (torch.float32, torch.bfloat16),
    "dropout": (0.0, 0.05),
}
HEADLINE = [
    Cell(4, 768, 8, 128, Settings(16, ALL_LINEAR, 0.0), torch.float32),
    Cell(4, 768, 8, 128, Settings(16, ALL_LINEAR, 0.05), torch.float32),
    Cell(4, 768, 8, 128, Settings(8, QUERY_VALUE, 0.1), torch.float32),
    Cell(4, 768, 8, 128, Settings(16, ALL_LINEAR, 0.05), torch.bfloat16),
    Cell(4, 768, 2, 32, Settings(16, ALL_LINEAR, 0.05), torch.float32),
]
SMOKE = [
    Cell(1, 16, 2, 4, Settings(2, ALL_LINEAR, 0.0), torch.float32),
    Cell(1, 16, 2, 4, Settings(2, QUERY_VALUE, 0.1), torch.bfloat16),
]

Combination = tuple[object, ...]


def every_combination() -> list[Combination]:
    """Return all combinations of the factors' values: 216."""
    return list(itertools.product(*FACTORS.values()))


def covering() -> list[Combination]:
    """Return a few combinations in which every pair of values of any two factors occurs at least once.

    Greedy and without chance: each time the combination that adds the most new pairs, of equals the one whose values
    were taken least, of these the first.
    """
    missing = {pair for combination in every_combination() for pair in _pairs(combination)}
    taken: Counter[tuple[int, object]] = Counter()
    chosen: list[Combination] = []

    def merit(combination: Combination) -> tuple[int, int]:
        return len(missing.intersection(_pairs(combination))), -sum(taken[value] for value in enumerate(combination))

    while missing:
        best = max(every_combination(), key=merit)
        chosen.append(best)
        missing.difference_update(_pairs(best))
        taken.update(enumerate(best))
    return chosen


def _pairs(combination: Combination) -> Iterator[tuple[tuple[int, object], ...]]:
    return itertools.combinations(enumerate(combination), 2)


def cell(combination: Combination) -> Cell:
    """Return the cell of a combination: two layers, one where they are long or wide enough to take a second."""
    hidden, tokens, r, targets, dtype, dropout = combination
    assert isinstance(hidden, int)
    assert isinstance(tokens, int)
    length = min(tokens, LONGEST)
    layers = 1 if hidden * tokens >= 1024 * 512 else 2
    return Cell(layers, hidden, tokens // length, length, Settings(r, targets, dropout), dtype)  # type: ignore[arg-type]
