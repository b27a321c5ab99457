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
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import ConfigError
from ..kinds.table import kind_of
from ..targets.names import as_endings
from ..variants.table import LORA
from .peft import PREFIX

__all__ = ["Pairs", "fit_pairs", "fit_targets", "is_flags", "split_pairs"]

_A, _B = ".lora_A.weight", ".lora_B.weight"
MOST_BLOCKS = 16  # query, key and value are three; without a limit a small file could ask for a huge B


@dataclass(frozen=True)
class Pairs:
    """Tensors in PEFT's shapes, the config that says so, and the rank that each module's factors had before."""

    config: LoRAConfig
    tensors: dict[str, Tensor]
    ranks: dict[str, int]


def merged(a: Tensor, b: Tensor, enabled: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Return one pair for the enabled blocks of rows of a weight.

    a: (r n, in) and b: (n block, r), n of the blocks enabled. Returns (r n, in) and (blocks block, r n).
    """
    r, places = b.shape[1], [i for i, on in enumerate(enabled) if on]
    block = b.shape[0] // len(places)
    wide = b.new_zeros(block * len(enabled), a.shape[0])
    for pair, place in enumerate(places):
        rows = slice(place * block, (place + 1) * block)
        wide[rows, pair * r : (pair + 1) * r] = b[pair * block : (pair + 1) * block]
    return a, wide


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
    ranks, sizes, guessed = {}, {}, []
    for name, (a, b) in pairs.items():
        layer = modules.get(name)
        kind = None if layer is None else kind_of(layer)
        r, shape = b.shape[1], () if kind is None or layer is None else kind.weight_shape(layer)
        out = kind.factor_shapes(shape, 1)[1][0] if kind is not None else None
        leaves = [f".{stored.key_on(kind is not None and kind.embeds)}" for stored in LORA.tensors[:2]]
        if kind is not None and kind.convolves:
            if _is_unfolded(a, b, shape):
                r //= shape[-1]
                a, b = unfolded(a, b, shape)
        elif a.shape[0] != r or out not in (None, b.shape[0]):
            flags = _blocks(name, a, b, out, enabled)
            if flags is not None:
                guessed += [name] if enabled is None and sum(flags) < len(flags) else []
                a, b = merged(a, b, flags)
        ranks[name], sizes[name] = r, (a.shape[0], _alpha(config, name, r, a.shape[0]))
        result |= {f"{PREFIX}{name}{leaf}": factor for leaf, factor in zip(leaves, (a, b), strict=True)}
    if guessed:
        warnings.warn(
            f"two of three blocks of {guessed[0]} have factors ({len(guessed)} layers so); they are taken for query "
            "and value, as in loralib's example. If they are others, say so by enable_lora.",
            stacklevel=2,
        )
    transposed = any(kind.fan_in_fan_out for n in pairs if n in modules and (kind := kind_of(modules[n])))
    config = config.copy(fan_in_fan_out=config.fan_in_fan_out or transposed)
    return Pairs(_with_sizes(config, sizes), result, ranks)


def fit_targets(config: LoRAConfig, adapted: Collection[str], modules: Collection[str]) -> LoRAConfig:
    """Return a config whose target_modules are the shortest list of just what a file adapts."""
    if not adapted:  # the reader of PEFT's layout will say what is wrong with the tensors that there are
        return config
    targets = as_endings(adapted, [*modules, *(n for n in adapted if n not in modules)])
    return config.copy(target_modules=targets, exclude_modules=None, layers_to_transform=None, layers_pattern=None)


def is_flags(value: object) -> bool:
    """Return whether a value can be an enable_lora: a short list of True and False, one of them True."""
    return (
        isinstance(value, list | tuple)
        and len(value) <= MOST_BLOCKS
        and all(isinstance(v, bool) for v in value)
        and any(value)
    )


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
    elif out % block or out // block < pairs:
        return None
    else:
        count = out // block
    if count > MOST_BLOCKS:
        return None
    if enabled is not None:
        if len(enabled) == count and sum(enabled) == pairs:
            return enabled
        raise ConfigError(
            f"{name}: the factors stand for {pairs} of {count} blocks of rows, enable_lora={list(enabled)} for "
            f"{sum(enabled)} of {len(enabled)}."
        )
    if pairs == count:
        return [True] * count
    if (pairs, count) == (2, 3):
        return [True, False, True]
    raise ConfigError(
        f"{name}: the factors stand for {pairs} of {count} blocks of rows, and their shapes do not say which; pass "
        'lora_config=LoRAConfig(lora_alpha=..., other={"enable_lora": [True, False, ...]}), or write enable_lora into '
        "the adapter's own config."
    )


def _alpha(config: LoRAConfig, name: str, r: int, wide: int) -> float:
    """Return the alpha that gives rank `wide` the scaling that the config gives this module at rank r."""
    alpha = config.copy(r=1, rank_pattern={}).scaling_of(name)
    alpha *= (wide / r) ** 0.5 if config.use_rslora else wide / r
    return int(alpha) if alpha == int(alpha) else alpha


def _with_sizes(config: LoRAConfig, sizes: Mapping[str, tuple[int, float]]) -> LoRAConfig:
    """Return a config with each module's (rank, alpha): the commonest for all, patterns for the others."""
    if not sizes:
        return config
    ((r, alpha), _), *_ = Counter(sizes.values()).most_common()
    by_word: dict[str, set[tuple[int, float]]] = {}
    for name, size in sizes.items():
        by_word.setdefault(name.rpartition(".")[2], set()).add(size)
    patterns = {}
    for name, size in sizes.items():
        word = name.rpartition(".")[2]
        if by_word[word] != {(r, alpha)}:
            patterns[re.escape(word if len(by_word[word]) == 1 else name)] = size
    ranks = {key: size[0] for key, size in patterns.items() if size[0] != r}
    alphas = {key: size[1] for key, size in patterns.items() if size[1] != alpha}
    return config.copy(r=r, lora_alpha=alpha, rank_pattern=ranks, alpha_pattern=alphas)
