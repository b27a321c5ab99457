"""Factors of other shapes as PEFT's pairs: exactly the same product, with the same scaling.

    Linear, Embedding   A (r, in), B (out, r)                     as they are
    MergedLinear        A (r n, in), B (n out / L, r)             n of the weight's L blocks of rows have a pair each
    Conv2d              A (r k, in k), B (out k, r k)             B A, read row by row, is the (out, in, k, k) weight

A merged pair becomes one of rank r n whose B has a block for each pair and zero rows elsewhere. Of a convolution, one
row of the (out, in k k) weight is k rows of B A one after the other, so A is repeated k times along a diagonal: rank
r k k. The layers are loralib's (Hu et al. 2021, arXiv:2106.09685); AdapterHub's and the oldest PEFT's are the same.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..config.lora_config import LoRAConfig
from ..errors import ConfigError
from ..kinds.table import kind_of
from ..targets.names import as_endings
from ..variants.table import LORA, scaling_of
from .keys import PREFIX

_A, _B = ".lora_A.weight", ".lora_B.weight"
MOST_BLOCKS = 16  # query, key and value are three; without a limit a small file could ask for a huge B


@dataclass(frozen=True)
class Pair:
    """A low-rank update scaling * b @ a; a: (r, in), b: (out, r)."""

    a: Tensor
    b: Tensor
    scaling: float

    def scaled(self, scaling: float) -> Pair:
        """Return the same update with another factor in front; the same tensors where it is the same factor."""
        return self if scaling == self.scaling else Pair(self.a, self.b * (self.scaling / scaling), scaling)


def beside(pairs: Sequence[Pair | None], rows: Sequence[int]) -> Pair:
    """Return the pair of weights below one another; rows: how many each of them has. At least one has a pair."""
    held = _whole(pairs, rows)
    return Pair(torch.cat([p.a for p in held]), torch.block_diag(*[p.b for p in held]), held[0].scaling)


def stacked(pairs: Sequence[Pair | None]) -> tuple[Tensor, Tensor, float]:
    """Return A (experts, r, in), B (experts, out, r) and the scaling of a stack of weights. At least one has a pair."""
    held = _whole(pairs, [next(len(pair.b) for pair in pairs if pair is not None)] * len(pairs))
    rank = max(len(pair.a) for pair in held)
    a = torch.stack([pad(pair.a, (0, 0, 0, rank - len(pair.a))) for pair in held])
    b = torch.stack([pad(pair.b, (0, rank - len(pair.a))) for pair in held])
    return a, b, held[0].scaling


def _whole(pairs: Sequence[Pair | None], rows: Sequence[int]) -> list[Pair]:
    """Return pairs of one scaling, of rank 0 where a weight has none; rows: of each weight."""
    first = next(pair for pair in pairs if pair is not None)
    none = [Pair(first.a[:0], first.b.new_zeros(count, 0), first.scaling) for count in rows]
    return [none[i] if pair is None else pair.scaled(first.scaling) for i, pair in enumerate(pairs)]


@dataclass(frozen=True)
class Pairs:
    """Tensors in PEFT's shapes, the config that says so, and the rank that each module's factors had before."""

    config: LoRAConfig
    tensors: dict[str, Tensor]
    ranks: dict[str, int]

    def check_ranks(self, config: LoRAConfig, where: str) -> None:
        """Raise ConfigError where factors have another rank than a config gives them; where: its file."""
        if odd := [name for name, r in self.ranks.items() if r != config.rank_of(name)]:
            raise ConfigError(f"{where}: r={config.r}, but the factors of {odd[0]} have rank {self.ranks[odd[0]]}.")


def merged(a: Tensor, b: Tensor, enabled: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Return one pair for the enabled blocks of rows of a weight.

    a: (r n, in) and b: (n block, r), n of the blocks enabled. Returns (r n, in) and (blocks block, r n).
    """
    block = len(b) // sum(enabled)
    held = iter(zip(a.split(b.shape[1]), b.split(block), strict=True))
    pair = beside([Pair(*next(held), 1.0) if on else None for on in enabled], [block] * len(enabled))
    return pair.a, pair.b


def unfolded(a: Tensor, b: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return a convolution's pair whose product, in that (out, in, k, k) shape, is b a read row by row.

    a: (r k, in k) and b: (out k, r k). Returns (r k k, in, k, k) and (out, r k k, 1, 1).
    """
    out, k = shape[0], shape[-1]
    wide = torch.block_diag(*[a] * k)
    return wide.reshape(-1, *shape[1:]), b.reshape(out, -1)[..., None, None]


def split_pairs(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return (both 2-D factors by module, every other tensor by its key); an oldest PEFT's (out, r, 1) B is 2-D."""
    pairs, rest = {}, dict(tensors)
    for key, a in tensors.items():
        b = tensors.get(key.removesuffix(_A) + _B)
        if not key.endswith(_A) or b is None or a.ndim != 2:
            continue
        b = b[..., 0] if b.ndim == 3 and b.shape[-1] == 1 else b
        if b.ndim == 2 and a.numel() and b.numel():
            pairs[key.removeprefix(PREFIX).removesuffix(_A)] = (a, b)
            del rest[key], rest[key.removesuffix(_A) + _B]
    return pairs, rest


def fit_pairs(
    config: LoRAConfig, tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], enabled: Sequence[bool] | None
) -> Pairs:
    """Return an adapter in PEFT's shapes, each module's scaling as the config says it of the rank it had before.

    enabled: which blocks of rows a merged layer adapts, where that is known; else the shapes say, and where they say
    two of three these are taken for query and value, with a UserWarning. What fits no layer is left as it is, for the
    reader of PEFT's layout to report. Raises ConfigError where the shapes can stand for several things.
    """
    pairs, result = split_pairs(tensors)
    kinds = {name: kind_of(modules[name]) if name in modules else None for name in pairs}
    ranks, sizes, guessed = {}, {}, []
    for name, (a, b) in pairs.items():
        kind, r = kinds[name], b.shape[1]
        shape = () if kind is None else kind.weight_shape(modules[name])
        out = None if kind is None else kind.factor_shapes(shape, 1)[1][0]
        if kind is not None and kind.convolves:
            if _is_unfolded(a, b, shape):
                r //= shape[-1]
                a, b = unfolded(a, b, shape)
        elif a.shape[0] != r or out not in (None, b.shape[0]):
            flags = _blocks(name, a, b, out, enabled)
            if flags is not None:
                guessed += [name] if enabled is None and not all(flags) else []
                a, b = merged(a, b, flags)
        ranks[name] = r
        sizes[name] = len(a), alpha_for(config, scaling_of(config).of(config.alpha_of(name), r), len(a))
        for stored, factor in zip(LORA.tensors, (a, b), strict=False):
            result[f"{PREFIX}{name}.{stored.key_on(kind is not None and kind.embeds)}"] = factor
    if guessed:
        warnings.warn(
            f"two of three blocks of {guessed[0]} have factors ({len(guessed)} layers so); they are taken for query "
            "and value, as in loralib's example. If they are others, say so by enable_lora.",
            stacklevel=2,
        )
    transposed = any(kind is not None and kind.fan_in_fan_out for kind in kinds.values())
    config = config.copy(fan_in_fan_out=config.fan_in_fan_out or transposed)
    return Pairs(with_sizes(config, sizes), result, ranks)


def fit_targets(config: LoRAConfig, adapted: Collection[str], modules: Collection[str]) -> LoRAConfig:
    """Return a config whose target_modules are the shortest list of just what a file adapts."""
    if not adapted:  # the reader of PEFT's layout will say what is wrong with the tensors that there are
        return config
    targets = as_endings(adapted, [*modules, *(n for n in adapted if n not in modules)])
    return config.copy(target_modules=targets, exclude_modules=None, layers_to_transform=None, layers_pattern=None)


def checked_flags(value: Any, where: str = "") -> list[bool] | None:
    """Return an enable_lora, None where there is none.

    Raises ConfigError where it is no short list of True and False, one of them True; where: its file, for the message.
    """
    if value is None:
        return None
    flags = isinstance(value, list | tuple) and len(value) <= MOST_BLOCKS and all(isinstance(v, bool) for v in value)
    if not flags or not any(value):
        raise ConfigError(f"{where}enable_lora={value!r}, but it is a list of True and False, a block of rows each.")
    return list(value)


def alpha_for(config: LoRAConfig, scaling: float, rank: int) -> float:
    """Return the lora_alpha with which a config gives a scaling to adapters of a rank."""
    alpha = float(f"{scaling / scaling_of(config).of(1.0, rank):.12g}")
    return int(alpha) if alpha.is_integer() else alpha


def with_sizes(config: LoRAConfig, sizes: Mapping[str, tuple[int, float]]) -> LoRAConfig:
    """Return a config with each name's (rank, alpha): its own r and lora_alpha, or the commonest, and patterns."""
    usual = (config.r, config.lora_alpha)
    if sizes and usual not in sizes.values():
        usual = Counter(sizes.values()).most_common(1)[0][0]
    patterns: list[dict[str, Any]] = []
    for i, common in enumerate(usual):
        groups: dict[float, list[str]] = defaultdict(list)
        for name, size in sizes.items():
            if size[i] != common:
                groups[size[i]].append(name)
        patterns.append({re.escape(end): value for value, group in groups.items() for end in as_endings(group, sizes)})
    return config.copy(r=usual[0], lora_alpha=usual[1], rank_pattern=patterns[0], alpha_pattern=patterns[1])


def _is_unfolded(a: Tensor, b: Tensor, shape: Sequence[int]) -> bool:
    if len(shape) != 4 or shape[2] != shape[3]:
        return False
    out, in_, k, _ = shape
    return a.shape[1] == in_ * k and b.shape[0] == out * k and a.shape[0] == b.shape[1] and b.shape[1] % k == 0


def _blocks(name: str, a: Tensor, b: Tensor, out: int | None, enabled: Sequence[bool] | None) -> Sequence[bool] | None:
    """Return which blocks of a merged layer's rows have factors; None where these cannot be such factors."""
    pairs = a.shape[0] // b.shape[1]
    if pairs == 0 or a.shape[0] % b.shape[1] or b.shape[0] % pairs:
        return None
    block = b.shape[0] // pairs
    if out is None:  # the reader of PEFT's layout will look for the layer, and compare its shape
        count = len(enabled) if enabled is not None else max(pairs, 3)
    else:
        count = out // block if out % block == 0 else 0
    if not pairs <= count <= MOST_BLOCKS:
        return None
    if enabled is not None and (len(enabled), sum(enabled)) != (count, pairs):
        raise ConfigError(
            f"{name}: the factors stand for {pairs} of {count} blocks of rows, enable_lora={list(enabled)} for "
            f"{sum(enabled)} of {len(enabled)}."
        )
    if enabled is None and pairs < count and (pairs, count) != (2, 3):
        raise ConfigError(
            f"{name}: the factors stand for {pairs} of {count} blocks of rows, and their shapes do not say which; pass "
            'lora_config=LoRAConfig(lora_alpha=..., other={"enable_lora": [True, False, ...]}), or write enable_lora '
            "into the adapter's own config."
        )
    return enabled or ([True] * count if pairs == count else [True, False, True])
