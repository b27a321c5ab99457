"""What the starts write into an adapter's factors: numbers drawn from its own seed, or directions of a matrix.

Every number is drawn on the CPU by a generator of the adapter's own, so that a seed makes the same bits on any device,
in any order of modules and whatever torch's own random state is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..kinds.table import KINDS
from ..maths import low_rank


class Factors(Protocol):
    """What a start fills: a low-rank adapter's factors, and what it is told of the rest."""

    kind: str
    r: int
    scaling: float
    seed: int
    init: bool | str
    lora_A: nn.Parameter
    lora_B: nn.Parameter


Fill = Callable[[Factors, Tensor | None], None]
FillFrom = Callable[
    [Factors, tuple[Tensor, ...], Mapping[str, Any], Callable[[], Tensor]], None
]  # what was seen, settings, weight
Draw = Callable[[Tensor, Factors, torch.Generator], None]


def seed_of(seed: int, name: str) -> int:
    """Return the seed of one parameter's adapter: another for each name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")


def generator(adapter: Factors) -> torch.Generator:
    """Return what draws an adapter's numbers, at its beginning."""
    return torch.Generator("cpu").manual_seed(adapter.seed)


@torch.no_grad()
def put(factor: Tensor, values: Tensor) -> None:
    """Write values into a factor, in its shape."""
    factor.copy_(values.reshape(factor.shape))


def uniform(factor: Tensor, adapter: Factors, source: torch.Generator) -> None:
    """Fill a factor as `nn.Linear` starts its weight, uniform in +-1/sqrt(in); of a stack each matrix by itself."""
    for matrix in factor if KINDS[adapter.kind].stacked else [factor]:
        nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=source)


def normal(factor: Tensor, adapter: Factors, source: torch.Generator) -> None:
    """Fill a factor with normal numbers of the deviation 1 / r."""
    nn.init.normal_(factor, std=1 / adapter.r, generator=source)


def drawn(factor: nn.Parameter, draw: Draw, adapter: Factors, source: torch.Generator) -> None:
    """Fill a factor with numbers that are drawn on the CPU, in its dtype; one without memory stays as it is."""
    if not factor.is_meta:
        values = torch.empty(factor.shape, dtype=factor.dtype, device="cpu")
        draw(values, adapter, source)
        put(factor, values)


def zero_and(draw: Draw) -> Fill:
    """Return what starts B at zero and draws A; of an embedding A is zero and B standard normal (microsoft/LoRA)."""

    def start(adapter: Factors, _: Tensor | None) -> None:
        if KINDS[adapter.kind].embeds:
            nn.init.zeros_(adapter.lora_A)
            drawn(adapter.lora_B, lambda t, _, source: t.normal_(generator=source), adapter, generator(adapter))
        else:
            nn.init.zeros_(adapter.lora_B)
            drawn(adapter.lora_A, draw, adapter, generator(adapter))

    return start


def both_random(adapter: Factors, _: Tensor | None) -> None:
    """Draw both factors, so that a fresh adapter changes the output: for tests."""
    source = generator(adapter)
    drawn(adapter.lora_A, uniform, adapter, source)
    drawn(adapter.lora_B, uniform, adapter, source)


def orthogonal(adapter: Factors, _: Tensor | None) -> None:
    """Draw A of the odd and B of the even rows of one orthogonal matrix, so that B A is zero and neither factor is.

        A = (X Q[0::2])' / 10,   B = Y' Q[1::2] / 10      Q (r, r) orthogonal, X (in, r/2), Y (r/2, out) normal

    https://datta0.github.io/posts/rethink-lora-init/, as PEFT has it.
    """
    if adapter.lora_A.is_meta:
        return
    source, half = generator(adapter), adapter.r // 2
    sizes = (adapter.r, adapter.r), (adapter.lora_A.shape[1], half), (half, len(adapter.lora_B))
    square, x, y = (torch.randn(size, generator=source, dtype=torch.float64, device="cpu") for size in sizes)
    q = torch.linalg.qr(square).Q
    put(adapter.lora_A, (x @ q[0::2]).mT / 10)
    put(adapter.lora_B, y.mT @ q[1::2] / 10)


def principal(n_iter: int | None, seed: int = 0) -> Fill:
    """Return what takes the r principal singular directions of the weight (PiSSA)."""

    def fill(adapter: Factors, matrix: Tensor | None) -> None:
        assert matrix is not None
        if not matrix.is_meta:
            a, b = low_rank.top_singular_factors(matrix.float() / adapter.scaling, adapter.r, n_iter, seed)
            put(adapter.lora_A, a)
            put(adapter.lora_B, b)

    return fill


def minor(adapter: Factors, matrix: Tensor | None) -> None:
    """Take the r minor singular directions of the weight, their values split evenly (MiLoRA)."""
    assert matrix is not None
    if not matrix.is_meta:
        u, s, vh = low_rank.svd(matrix.float() / adapter.scaling)
        root = s[-adapter.r :].sqrt()
        put(adapter.lora_A, root[:, None] * vh[-adapter.r :])
        put(adapter.lora_B, u[:, -adapter.r :] * root)


def minor_columns(adapter: Factors, matrix: Tensor | None) -> None:
    """Take the r minor left singular directions of the weight as B, and zero as A (MiCA)."""
    assert matrix is not None
    nn.init.zeros_(adapter.lora_A)
    if not matrix.is_meta:
        put(adapter.lora_B, low_rank.svd(matrix.float())[0][:, -adapter.r :])


def first_columns(adapter: Factors, matrix: Tensor | None) -> None:
    """Take the first columns of Q and the first rows of R, W = Q R (OLoRA)."""
    assert matrix is not None
    if not matrix.is_meta:
        q, r = torch.linalg.qr(matrix.float())
        put(adapter.lora_A, r[..., : adapter.r, :])
        put(adapter.lora_B, q[..., : adapter.r])


# PEFT's settings of starts from data, with its defaults.
EVA = MappingProxyType({
    "rho": 2.0, "tau": 0.99, "use_label_mask": True, "label_mask_value": -100, "whiten": False,
    "adjust_scaling_factors": True,
})  # fmt: skip
LORA_GA = MappingProxyType({"direction": "ArB2r", "scale": "stable", "stable_gamma": 16})
LOFTQ = MappingProxyType({"loftq_iter": 1})
DIRECTIONS, SCALES = ("ArBr", "A2rBr", "ArB2r", "random"), ("stable", "weight_svd", "gd_scale", "unit")


def of_inputs(adapter: Factors, seen: tuple[Tensor, ...], settings: Mapping[str, Any], _: Any) -> None:
    """Take the leading directions of a layer's inputs as A; B is zero. seen: (components, values), of the inputs."""
    components, values = (each[: adapter.r] for each in seen)
    if settings["whiten"]:
        components = components / values.sqrt()[:, None]
    put(adapter.lora_A, components)


def of_gradient(
    adapter: Factors, seen: tuple[Tensor, ...], settings: Mapping[str, Any], weight: Callable[[], Tensor]
) -> None:
    """Take singular directions of the weight's gradient as A and B. seen: (U, V') of the first 2 r, n where it has n.

    ArB2r: A is V'[:r] and B is U[r:2r], so that the first step of B goes along the gradient's first directions.
    stable: both times out^(1/4) / sqrt(gamma). As the paper and its authors' code have it; PEFT 0.21.2 multiplies B
    alone, and by the gradient's singular values as well, so that its start depends on the size of the loss.
    """
    (u, vh), r, direction, scale = seen, adapter.r, settings["direction"], settings["scale"]
    n, source = len(vh), generator(adapter)
    order = torch.arange(n, device="cpu")
    first, second = order[:r], order[n - r :]  # where a layer has fewer than 2 r directions, they overlap
    of_a, of_b = {
        "ArB2r": (first, second),
        "A2rBr": (second, first),
        "ArBr": (order[1::2], order[::2]) if n == 2 * r else (second, first),
        "random": tuple(torch.randperm(n, generator=source, device="cpu")[:r] for _ in "AB"),
    }[direction]
    if scale == "stable":
        factor = len(u) ** 0.25 / settings["stable_gamma"] ** 0.5
    elif scale == "weight_svd":
        factor = float((torch.linalg.svdvals(weight().float())[:r] / adapter.scaling).sqrt().mean())
    else:
        factor = 1 / adapter.scaling if scale == "gd_scale" else 1.0
    put(adapter.lora_A, vh[of_a.to(vh.device)] * factor)
    put(adapter.lora_B, u[:, of_b.to(u.device)] * factor)


def of_rounding(
    adapter: Factors, seen: tuple[Tensor, ...], settings: Mapping[str, Any], weight: Callable[[], Tensor]
) -> None:
    """Take the best approximation of what quantising took from a weight. seen: the weight's matrix before, in float.

    One round of the paper's alternation: more would quantise the base again, which no start writes.
    """
    lost = seen[0].to(adapter.lora_A.device).float() - weight().float()
    a, b = low_rank.top_singular_factors(lost / adapter.scaling, adapter.r)
    put(adapter.lora_A, a)
    put(adapter.lora_B, b)
