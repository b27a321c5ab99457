"""Initialisations: how A and B start, one row each in `INITS`; what they write is in `filling.py`.

B (for embeddings A) starts at zero, so that a fresh adapter changes nothing; rows that take their factors out of
the weight say `moves_base`, and the formula subtracts the product at birth instead of writing the base. That product is
in no file and is computed again from the base, so that what it draws has to be the same every time; where PEFT could
not compute it, or nobody could, it is `held`: the file has it in factors of twice the rank, plain LoRA to everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import filling
from .filling import Fill
from .papers import PAPERS, Paper
from .row import MOST_ITERATIONS, RATED_HERE, Rate

InitName = bool | str


@dataclass(frozen=True)
class Data:
    """What a start learns of data. reads: "inputs" of its layers, "gradients" of their weights, or
    the "weights" that a quantised base was made of. key: the setting of
    a config with its settings, those of PEFT. settings: their defaults. fill: writes the factors."""

    reads: Literal["inputs", "gradients", "weights"]
    key: str
    settings: Mapping[str, Any]
    fill: filling.FillFrom

    def settings_of(self, config: Any) -> dict[str, Any]:
        """Return the settings that a config gives, defaults among them."""
        return {**self.settings, **(getattr(config, self.key) or {})}


@dataclass(frozen=True)
class Init:
    """One initialisation. fill: writes lora_A and lora_B, given the (..., out, in) matrix if it `reads_weight`.

    of_matrix: it has a meaning on plain matrices only; embeddings then start as always, unless it takes `tables` as
    well. even: it needs an even rank. held: the product at birth is in the file. keeps: the tensors that stay as they
    began. named: a file says that it was started so; PEFT would start others again, so that theirs is plain LoRA's.
    draws: it takes random numbers, from the adapter's seed. data: what it learns of data, after `fill`.
    redrawn: where the product at birth depends on random numbers, fills with others than `fill`, which are always the
    same. rate: the best learning rate relative to that of the usual start, None where nobody has measured it.
    """

    fill: Fill
    moves_base: bool = False
    reads_weight: bool = False
    of_matrix: bool = False
    tables: bool = False
    even: bool = False
    held: bool = False
    named: bool = True
    keeps: frozenset[str] = frozenset()
    draws: bool = False
    data: Data | None = None
    redrawn: Fill | None = None
    paper: Paper | None = None
    rate: Rate | None = None

    @property
    def takes_directions(self) -> bool:
        """Whether it takes r directions out of a matrix of the weight's size, so that r is no more than these."""
        return self.reads_weight or (self.data is not None and self.data.reads != "inputs")

    @property
    def computed_again(self) -> bool:
        """Whether a file of such an adapter says nothing without the base that it started from."""
        return self.moves_base and not self.held


_MEASURED = "Qwen3-0.6B, Gemma-3-1B and Llama-2-7B, alpha = r (arXiv:2602.04998)"


class _Inits(dict[InitName, Init]):
    """The table, and the family `pissa_niter_N` that it holds one row of for every N up to `MOST_ITERATIONS`."""

    def __missing__(self, name: InitName) -> Init:
        n_iter = _iterations(name)
        if n_iter is None:
            raise KeyError(name)
        return replace(self["pissa"], fill=filling.principal(n_iter), redrawn=filling.principal(n_iter, seed=1))

    def __contains__(self, name: object) -> bool:
        return (isinstance(name, bool | str) and super().__contains__(name)) or _iterations(name) is not None


def _iterations(name: object) -> int | None:
    """Return the N of `pissa_niter_N`, None for any other name and where N is too large."""
    found = re.fullmatch(r"pissa_niter_0*([0-9]{1,4})", name) if isinstance(name, str) else None
    return int(found[1]) if found and int(found[1]) <= MOST_ITERATIONS else None


_OF_WEIGHT: dict[str, Any] = {"reads_weight": True, "of_matrix": True}
INITS = _Inits(
    {
        True: Init(filling.zero_and(filling.uniform), draws=True, rate=Rate(1.0, "by definition")),
        False: Init(filling.both_random, draws=True),
        "gaussian": Init(filling.zero_and(filling.normal), draws=True),
        "orthogonal": Init(filling.orthogonal, draws=True, of_matrix=True, even=True),
        # Meng et al. 2024, arXiv:2404.02948: A and B hold the principal singular directions of W.
        "pissa": Init(
            filling.principal(None), moves_base=True, **_OF_WEIGHT, paper=PAPERS["pissa"], rate=Rate(1 / 10, _MEASURED)
        ),
        # Büyükakyüz 2024, arXiv:2406.01775: B and A hold the first columns of Q and the first rows of R, W = Q R.
        "olora": Init(
            filling.first_columns, moves_base=True, **_OF_WEIGHT, paper=PAPERS["olora"], rate=Rate(1 / 18, _MEASURED)
        ),
        # Wang et al. 2024, arXiv:2406.09044: A and B hold the minor singular directions of W. PEFT has no such start.
        "milora": Init(
            filling.minor,
            moves_base=True,
            held=True,
            **_OF_WEIGHT,
            paper=PAPERS["milora"],
            rate=Rate(1 / 3.2, _MEASURED),
        ),
        # Li et al. 2023, arXiv:2310.08659: B A is the best approximation of what quantising took from the weight.
        "loftq": Init(
            filling.zero_and(filling.uniform),
            draws=True,
            of_matrix=True,
            named=False,
            paper=PAPERS["loftq"],
            data=Data("weights", "loftq_config", filling.LOFTQ, filling.of_rounding),
        ),
        # arXiv:2604.01694: B holds the minor left singular directions of W and stays so, A starts at zero.
        "mica": Init(
            filling.minor_columns,
            **_OF_WEIGHT,
            tables=True,
            keeps=frozenset({"lora_B"}),
            paper=PAPERS["mica"],
            rate=Rate(1.0, f"2e-3 for {RATED_HERE}"),
        ),
        # Paischer et al. 2024, arXiv:2410.07170: A holds the leading directions of the layer's inputs, B is zero.
        "eva": Init(
            filling.zero_and(filling.uniform),
            draws=True,
            of_matrix=True,
            paper=PAPERS["eva"],
            data=Data("inputs", "eva_config", filling.EVA, filling.of_inputs),
            rate=Rate(1 / 2, f"1e-3 for {RATED_HERE}"),
        ),
        # Wang et al. 2024, arXiv:2407.05000: A and B hold singular directions of the weight's first gradient.
        "lora_ga": Init(
            filling.zero_and(filling.uniform),
            moves_base=True,
            held=True,
            draws=True,
            of_matrix=True,
            data=Data("gradients", "lora_ga_config", filling.LORA_GA, filling.of_gradient),
            paper=PAPERS["lora_ga"],
            rate=Rate(1 / 18, _MEASURED),
        ),
    }
)


@contextmanager
def taken_anew(layer: nn.Module, adapters: Iterable[Any]) -> Iterator[None]:
    """Have adapters that took their factors out of a layer's weight take them again where a block changes the weight.

    A state dict has no product at birth; its own factors are loaded after this.
    """
    taken = [(adapter, adapter.own_matrix(layer).clone()) for adapter in adapters if adapter.is_computed_again]
    yield
    for adapter, before in taken:
        now = adapter.own_matrix(layer)
        is_own = type(now) is Tensor and not now.is_meta
        if is_own and (before.is_meta or now.dtype != before.dtype or not torch.equal(now, before)):
            adapter.initialise(layer)
