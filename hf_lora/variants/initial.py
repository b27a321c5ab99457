"""Initialisations: how A and B start, one row each in `INITS`.

B (for embeddings A) starts at zero, so that a fresh adapter changes nothing; rows that take their factors out of
the weight say `moves_base`, and the formula subtracts the product at birth instead of writing the base. That product is
in no file and is computed again from the base, so that what it draws has to be the same every time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kinds.table import KINDS
from ..maths import low_rank
from .papers import PAPERS, Paper
from .row import Rate

InitName = bool | str
MOST_ITERATIONS = 128  # of a randomised SVD: far more than it needs, and a config may be a stranger's


class Factors(Protocol):
    """What an initialisation fills: a low-rank adapter's factors, and what it is told of the rest."""

    kind: str
    r: int
    scaling: float
    init: InitName
    lora_A: nn.Parameter
    lora_B: nn.Parameter


@dataclass(frozen=True)
class Init:
    """One initialisation. fill: writes lora_A and lora_B, given the (..., out, in) matrix if it `reads_weight`.

    read_only: not built here, but without effect on an adapter that comes from a file. trains: False where training
    such an adapter on would not be what PEFT does (mica: B stays as it is).
    redrawn: where the product at birth depends on random numbers, fills with others than `fill`, which are always the
    same. rate: the best learning rate relative to that of the usual start, None where nobody has measured it.
    """

    fill: Callable[[Factors, Tensor | None], None]
    moves_base: bool = False
    reads_weight: bool = False
    read_only: bool = False
    trains: bool = True
    redrawn: Callable[[Factors, Tensor | None], None] | None = None
    paper: Paper | None = None
    rate: Rate | None = None


_MEASURED = "Qwen3-0.6B, Gemma-3-1B and Llama-2-7B, alpha = r (arXiv:2602.04998)"


def _uniform(factor: Tensor, adapter: Factors) -> None:
    """Fill a factor as `nn.Linear` starts its weight, uniform in +-1/sqrt(in); of a stack each matrix by itself."""
    for matrix in factor if KINDS[adapter.kind].stacked else [factor]:
        nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))


def _normal(factor: Tensor, adapter: Factors) -> None:
    nn.init.normal_(factor, std=1 / adapter.r)


def _zero_and(fill: Callable[[Tensor, Factors], None]) -> Callable[[Factors, Tensor | None], None]:
    """Return what starts B at zero and fills A; of an embedding A is zero and B standard normal (microsoft/LoRA)."""

    def start(adapter: Factors, _: Tensor | None) -> None:
        if KINDS[adapter.kind].embeds:
            nn.init.zeros_(adapter.lora_A)
            nn.init.normal_(adapter.lora_B)
        else:
            nn.init.zeros_(adapter.lora_B)
            fill(adapter.lora_A, adapter)

    return start


def _random(adapter: Factors, _: Tensor | None) -> None:
    """Both factors random, so that a fresh adapter changes the output: for tests."""
    _uniform(adapter.lora_A, adapter)
    _uniform(adapter.lora_B, adapter)


def _pissa(n_iter: int | None, seed: int = 0) -> Callable[[Factors, Tensor | None], None]:
    def fill(adapter: Factors, matrix: Tensor | None) -> None:
        assert matrix is not None
        if matrix.is_meta:
            return
        a, b = low_rank.top_singular_factors(matrix.float() / adapter.scaling, adapter.r, n_iter, seed)
        with torch.no_grad():
            adapter.lora_A.copy_(a.reshape(adapter.lora_A.shape))
            adapter.lora_B.copy_(b.reshape(adapter.lora_B.shape))

    return fill


def _olora(adapter: Factors, matrix: Tensor | None) -> None:
    assert matrix is not None
    if matrix.is_meta:
        return
    q, r = torch.linalg.qr(matrix.float())
    with torch.no_grad():
        adapter.lora_A.copy_(r[..., : adapter.r, :].reshape(adapter.lora_A.shape))
        adapter.lora_B.copy_(q[..., : adapter.r].reshape(adapter.lora_B.shape))


def _not_built(adapter: Factors, _: Tensor | None) -> None:
    """Refuse to start an adapter."""
    raise ConfigError(
        f"init_lora_weights={adapter.init!r} is not built here: such an adapter can be loaded, but not started. "
        "Use init_lora_weights=True for a fresh one."
    )


class _Inits(dict[InitName, Init]):
    """The table, and the family `pissa_niter_N` that it holds one row of for every N up to `MOST_ITERATIONS`."""

    def __missing__(self, name: InitName) -> Init:
        n_iter = _iterations(name)
        if n_iter is None:
            raise KeyError(name)
        return replace(self["pissa"], fill=_pissa(n_iter), redrawn=_pissa(n_iter, seed=1))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or _iterations(name) is not None


def _iterations(name: object) -> int | None:
    """Return the N of `pissa_niter_N`, None for any other name and where N is too large."""
    found = re.fullmatch(r"pissa_niter_0*([0-9]{1,4})", name) if isinstance(name, str) else None
    return int(found[1]) if found and int(found[1]) <= MOST_ITERATIONS else None


INITS = _Inits(
    {
        True: Init(_zero_and(_uniform), rate=Rate(1.0, "by definition")),
        False: Init(_random),
        "gaussian": Init(_zero_and(_normal)),
        # Meng et al. 2024, arXiv:2404.02948: A and B hold the principal singular directions of W.
        "pissa": Init(
            _pissa(None), moves_base=True, reads_weight=True, paper=PAPERS["pissa"], rate=Rate(1 / 10, _MEASURED)
        ),
        # Büyükakyüz 2024, arXiv:2406.01775: B and A hold the first columns of Q and the first rows of R, W = Q R.
        "olora": Init(_olora, moves_base=True, reads_weight=True, paper=PAPERS["olora"], rate=Rate(1 / 18, _MEASURED)),
        # PEFT's other starts that leave the base alone: once trained, the factors say all.
        "eva": Init(_not_built, read_only=True),
        "orthogonal": Init(_not_built, read_only=True),
        "mica": Init(_not_built, read_only=True, trains=False),
    }
)


@contextmanager
def taken_anew(layer: nn.Module, adapters: Iterable[Any]) -> Iterator[None]:
    """Have adapters that took their factors out of a layer's weight take them again where a block changes the weight.

    A state dict has no product at birth; its own factors are loaded after this.
    """
    taken = [(adapter, adapter.own_matrix(layer).clone()) for adapter in adapters if adapter.moves_base]
    yield
    for adapter, before in taken:
        now = adapter.own_matrix(layer)
        is_own = type(now) is Tensor and not now.is_meta
        if is_own and (before.is_meta or now.dtype != before.dtype or not torch.equal(now, before)):
            adapter.initialise(layer)
