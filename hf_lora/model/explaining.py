"""Which rank a layer needs: how much of its inputs lies along their leading directions, over a few batches.

An update B A reads an input through r directions. Where 8 of them hold nearly all of what comes in, a larger rank has
little to read. Paischer et al. 2024, arXiv:2410.07170 (EVA), distributes ranks by the same measure.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config.rules import is_int, is_number
from ..errors import ArgumentError, some
from ..kinds.table import kind_of
from ..maths.sketch import Sketch
from ..targets.names import resolve_targets
from .batches import as_a_base, batches_of, run
from .layer_inputs import Inputs
from .positions import Positions
from .report import aligned, alike

_OF_A_ROW = {"pixel_values": 3, "input_features": 2}  # dimensions of one row's; those of others have one


class Explained(NamedTuple):
    """One layer. positions: how many inputs were seen. shares: what share of their squares the first 1, 2, ... explain.

    limit: the largest rank that its weight can have.
    """

    layer: str
    positions: int
    shares: tuple[float, ...]
    limit: int

    def at(self, rank: int) -> float:
        """Return the share that a rank explains."""
        return self.shares[min(rank, len(self.shares)) - 1]

    def rank(self, share: float, most: int) -> int:
        """Return the smallest rank that explains a share, or the largest one that is allowed."""
        reached = (rank for rank, each in enumerate(self.shares, 1) if each >= share - 1e-9)
        return min(next(reached, most), most, self.limit)


@dataclass(frozen=True)
class RankSuggestion:
    """What the data shows of each layer. ranks: those of the table. left: targets of which no inputs were seen."""

    layers: tuple[Explained, ...]
    ranks: tuple[int, ...]
    left: tuple[str, ...] = ()

    def rank_pattern(self, share: float = 0.9, most: int | None = None) -> dict[str, int]:
        """Return the rank of each layer for a LoRAConfig: the smallest that explains a share, `most` at the utmost.

        most: the largest rank of the table unless given; no larger one was looked at. Raises ArgumentError.
        """
        limit = max(self.ranks)
        if not (is_number(share) and 0 < share <= 1):
            raise ArgumentError(f"share={share!r}: it is a share of what comes in, above 0 and up to 1.")
        if most is not None and not (is_int(most) and most <= limit):
            raise ArgumentError(f"most={most!r}: it is a rank up to {limit}; suggest_rank(ranks=...) looks at more.")
        deepest_first = sorted(self.layers, key=lambda each: -each.layer.count("."))  # one name may end another
        return {each.layer: each.rank(share, most or limit) for each in deepest_first}

    def __str__(self) -> str:
        head = ("layer", "layers", *(f"r={rank}" for rank in self.ranks), "rank for 90%")
        lines = [self._line(name, rows) for name, rows in alike(self.layers).items()]
        seen = aligned([head, *lines])
        return f"{seen}\nnot seen: {some(self.left)}" if self.left else seen

    def _line(self, name: str, rows: Sequence[Explained]) -> tuple[str, ...]:
        means = [sum(each.at(rank) for each in rows) / len(rows) for rank in self.ranks]
        wanted = [each.rank(0.9, max(self.ranks)) for each in rows]
        span = f"{min(wanted)}" if min(wanted) == max(wanted) else f"{min(wanted)} to {max(wanted)}"
        return name, str(len(rows)), *(f"{mean:.3f}" for mean in means), span


def suggest_rank(
    model: nn.Module,
    data: Iterable[Any],
    *,
    target_modules: str | Sequence[str] = "all-linear",
    ranks: Sequence[int] = (4, 8, 16, 32, 64),
) -> RankSuggestion:
    """Return which rank explains how much of each layer's inputs, over the data that is given.

    model: a base or a LoRAModel, whose adapters are off meanwhile; it computes in evaluation mode and stays as it is.
    data: batches as the model takes them (or functions of the model), or rows of a tokenised dataset, computed
    one by one. All of it is taken, and a few hundred rows are enough: `dataset.select(range(256))`. Positions that
    the attention mask leaves out do not count; a decoder's are those of decoder_attention_mask, else those with a
    label. target_modules: as in a LoRAConfig. A layer keeps 4 * max(ranks) numbers
    for each of its inputs.

    Print the result for a table, and put its `rank_pattern()` into a LoRAConfig. Raises ArgumentError, TargetError.

    >>> net = nn.Sequential(nn.Linear(4, 4))
    >>> found = suggest_rank(net, [torch.eye(4)[:2]], target_modules=["0"], ranks=(1, 2))
    >>> print(found)
    layer  layers  r=1    r=2    rank for 90%
    0      1       0.500  1.000             2
    >>> found.rank_pattern()
    {'0': 2}
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"suggest_rank({type(model).__name__}): it takes a model, an nn.Module.")
    if not isinstance(ranks, Sequence) or not ranks or not all(map(is_int, ranks)):
        raise ArgumentError(f"ranks={ranks!r}: they are positive integers.")
    names = resolve_targets(model, target_modules)
    modules = dict(model.named_modules())
    inputs = Inputs(lambda: Sketch(max(ranks)), Positions(model))
    with torch.no_grad(), as_a_base(model), inputs.positions.watched(), ExitStack() as hooks:
        for name in names:
            module = modules.get(name)
            kind = None if module is None else kind_of(module)
            if module is not None and kind is not None and (kind.is_matrix or kind.is_quantised):
                hooks.callback(module.register_forward_pre_hook(inputs.of(name), with_kwargs=True).remove)
        for batch in _batches(model, data):
            inputs.begin(batch)
            run(model, batch)
    seen = [name for name in names if name in inputs.leader and inputs.seen(name).rows]
    if not seen:
        raise ArgumentError(f"the data shows nothing of {some(names)}: give batches that the model computes with them.")
    layers = tuple(_explained(name, inputs.seen(name), modules[name]) for name in seen)
    return RankSuggestion(layers, tuple(sorted({*ranks})), tuple(name for name in names if name not in seen))


def _explained(name: str, sketch: Sketch, module: nn.Module) -> Explained:
    shares = sketch.shares().cumsum(0).clamp_max(1.0).tolist()
    weight: Any = module.weight
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    limit = min(size for size in (*sizes, *(() if all(sizes) else weight.shape)) if size)
    return Explained(name, sketch.rows, tuple(shares), limit)


def _batches(model: Any, data: Iterable[Any]) -> Iterator[Any]:
    """Yield batches; a row of a dataset is a batch of one, without columns of no use."""
    main = getattr(model, "main_input_name", "input_ids")
    takes = inspect.signature(model.forward).parameters
    for each in batches_of(model, data):
        batch = each
        if isinstance(each, Mapping) and main in each and _is_row(main, each[main]):
            batch = {key: _tensor(key, value)[None] for key, value in each.items() if key in takes}
        yield batch


def _is_row(main: str, value: Any) -> bool:
    return _tensor(main, value).ndim == _OF_A_ROW.get(main, 1)


def _tensor(key: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"data= has {key}={value!r:.60}, which is no tensor: {error}.") from error
