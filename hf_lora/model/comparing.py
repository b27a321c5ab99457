"""Two adapters compared layer by layer, before they are combined: do their updates agree, oppose, or not meet?

    cosine     <D, E> / (|D| |E|), of the updates D and E as vectors: 1 the same, 0 nothing in common, -1 opposed
    inputs     how much of what the smaller one reads (its row space) the other reads as well, 0 to 1
    outputs    the same of what they write (their column spaces)

Two random spaces of rank r in n dimensions share r / n. Everything comes from the factors (`maths/subspaces.py`), and
nothing of a weight's size is made.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config.lora_config import LoRAConfig
from ..errors import AdapterMismatchError, AdapterStateError, ArgumentError, full_name, numberless, some
from ..formats.contents import Contents
from ..formats.keys import plain_keys, split_key
from ..layers.offload import brought_in
from ..layers.state import AdapterState
from ..maths.subspaces import Decomposed, inner, overlap
from ..variants.adapter import NO_SUM
from ..variants.initial import INITS
from ..variants.spec import Product
from ..variants.table import formula_of
from .loading import opened
from .report import aligned, alike
from .selecting import check_known


class Compared(NamedTuple):
    """Two updates of one layer. first, second: their Frobenius norms; the rest is NaN where one of them is zero."""

    layer: str
    cosine: float
    inputs: float
    outputs: float
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """Two adapters, layer by layer; printed, layers that differ in their numbers only are one row.

    only_first, only_second: the layers that only one of them adapts.
    """

    names: tuple[str, str]
    layers: tuple[Compared, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def cosine(self) -> float:
        """The cosine of the updates of all layers that both adapt, as one vector."""
        return _pooled(self.layers)

    def __str__(self) -> str:
        lines = [("layer", "layers", "cosine", "inputs", "outputs", *(f"|{name}|" for name in self.names))]
        lines += [_row(name, rows) for name, rows in alike(self.layers).items()]
        lines.append(_row("all", self.layers))
        text = aligned([tuple(cells) for cells in lines])
        for name, only in zip(self.names, (self.only_first, self.only_second), strict=True):
            text += f"\nonly {name}: {some(dict.fromkeys(map(numberless, only)))}" if only else ""
        return text


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str], model: Any = None) -> Comparison:
    """Return how much two adapters' updates have in common, layer by layer.

    first, second: names of adapters of a model, or without a model folders or Hub ids. Parts in full (heads, biases,
    token rows) are left out. Raises AdapterStateError where an adapter is no sum of products, or where only its model
    tells what it adds; AdapterNameError, AdapterFileError; AdapterMismatchError where a layer's shapes differ.

    >>> import torch
    >>> from hf_lora import LoRAConfig, add_lora
    >>> model = add_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoRAConfig(r=1, target_modules=["0"]), "a")
    >>> model.load_state_dict({k: torch.ones_like(v) for k, v in model.state_dict().items()})
    <All keys matched successfully>
    >>> model.add_weighted_adapter(["a"], [-0.5], "b")
    >>> print(compare("a", "b", model))
    layer  layers  cosine  inputs  outputs  |a|  |b|
    0      1       -1.000  1.000   1.000    32    16
    all    1       -1.000  1.000   1.000    32    16
    """
    are_names = isinstance(first, str | os.PathLike) and isinstance(second, str | os.PathLike)
    if not are_names or not (model is None or isinstance(getattr(model, "_lora", None), AdapterState)):
        raise ArgumentError(
            f"compare({', '.join(type(each).__name__ for each in (first, second, model))}): it takes two names of "
            "adapters and their LoRAModel, compare('a', 'b', model), or two folders or Hub ids."
        )
    one, other = _in_files(first, second) if model is None else (_on(model._lora, str(n)) for n in (first, second))
    compared = tuple(_compared(layer, one[layer], other[layer]) for layer in one if layer in other)
    if not compared:
        raise AdapterStateError(
            f"{first} and {second} adapt no layer in common: {some(one)} in the first, {some(other)} in the second."
        )
    names = (os.fspath(first), os.fspath(second))
    return Comparison(names, compared, tuple(n for n in one if n not in other), tuple(n for n in other if n not in one))


def _on(state: AdapterState, name: str) -> dict[str, Decomposed]:
    """Return the updates of an adapter of a model, by the full names of what they are added to."""
    check_known(state, [name])
    found = {}
    for module, _, _, adapter in state.carried(name):
        if adapter.low_rank:
            with brought_in(adapter):
                pairs = adapter.pairs()
                if pairs is None:
                    raise AdapterStateError(f"{name!r} is {adapter.row.title}, {NO_SUM}.")
                found[full_name(module, adapter.parameter).removesuffix(".weight")] = Decomposed.of(*pairs)
    return dict(sorted(found.items()))


def _in_files(*names: str | os.PathLike[str]) -> list[dict[str, Decomposed]]:
    """Return the updates of adapters' files. Raises AdapterStateError where a key is another parameter in each."""
    files = [opened(name) for name in names]
    given = [each.config.target_parameters or [] for each in files]
    if all(given) and given[0] != given[1]:
        raise AdapterStateError(
            f"target_parameters={given[0]} and {given[1]}: files name a module's parameters by their order, so only a "
            "model tells which is which. Load both, and name them there: compare('a', 'b', model=model)."
        )
    return [{path: Decomposed.of(*pair) for path, pair in sorted(products_of(each).items())} for each in files]


def _compared(layer: str, one: Decomposed, other: Decomposed) -> Compared:
    shapes = [(*d.left.shape[:-1], d.right.shape[-2]) for d in (one, other)]
    if shapes[0] != shapes[1]:
        raise AdapterMismatchError(f"{layer} is {shapes[0]} for one adapter, {shapes[1]} for the other: other bases.")
    sizes = one.norm(), other.norm()
    cosine = inner(one, other) / math.prod(sizes) if all(sizes) else math.nan
    return Compared(layer, cosine, overlap(one, other, "right"), overlap(one, other, "left"), *sizes)


def _pooled(rows: Sequence[Compared]) -> float:
    sizes = math.hypot(*(row.first for row in rows)) * math.hypot(*(row.second for row in rows))
    shared = math.fsum(row.cosine * row.first * row.second for row in rows if not math.isnan(row.cosine))
    return shared / sizes if sizes else math.nan


def _row(name: str, rows: Sequence[Compared]) -> tuple[str, ...]:
    """Return a line of the table: cosine and norms of all rows together, the mean of the overlaps."""
    known = [row for row in rows if not math.isnan(row.inputs)]
    shares = [math.fsum(getattr(r, side) for r in known) / max(len(known), 1) for side in ("inputs", "outputs")]
    cells = [f"{value:.3f}" if known else "-" for value in (_pooled(rows), *shares)]
    norms = [f"{math.hypot(*(getattr(row, each) for row in rows)):.3g}" for each in ("first", "second")]
    return (name, str(len(rows)), *cells, *norms)


def products_of(contents: Contents) -> dict[str, Product]:
    """Return what an adapter adds to each layer's matrix, or stack of matrices, by the layer's name in the file.

    Raises AdapterStateError where only a model says what it adds, AdapterMismatchError where a layer's factors are no
    pair of the rank that its config gives it.
    """
    config, where = contents.config, contents.source.name
    row = formula_of(config)
    if row.adapter.exclusive:
        raise AdapterStateError(f"{where} is {row.title}, {NO_SUM}.")
    if not {"lora_A", "lora_B"} <= row.needed:
        raise AdapterStateError(
            f"{where} is {row.title}, whose file has no A and B of each layer. Load it onto its base, and name the "
            "adapters there: compare('a', 'b', model=model)."
        )
    if contents.fit is not None or INITS[config.init_lora_weights].computed_again or config.has_old_experts:
        raise AdapterStateError(
            f"{where}: what it adds depends on the model (its start, {config.init_lora_weights!r}, or its layout). "
            "Load it onto its base, and name the adapters there: compare('a', 'b', model=model)."
        )
    factors: dict[str, dict[str, Tensor]] = {}
    for key, plain in plain_keys(contents.tensors).items():
        path, _, attribute = split_key(plain)
        if attribute in ("lora_A", "lora_B"):
            factors.setdefault(path, {})[attribute] = contents.tensors[key]
    return {path: _product(path, pair, config) for path, pair in factors.items()}


def _product(path: str, pair: dict[str, Tensor], config: LoRAConfig) -> Product:
    """Return a layer's product: of a convolution its matrix, of one in groups or of experts a stack."""
    a, b, r = pair.get("lora_A", torch.empty(0)), pair.get("lora_B", torch.empty(0)), config.rank_of(path)
    if min(a.ndim, b.ndim) >= 2:
        (rows, columns), scaling = (len(a), b.shape[1]), config.scaling_of(path)
        a, b = a.flatten(1), b.flatten(1)
        held = INITS[config.init_lora_weights].held  # with what it was at birth, subtracted, in as many ranks again
        if rows == columns and rows in (r, 2 * r if held else r):
            return Product(a, b, scaling)
        if rows == r and columns and rows % columns == 0 and len(b) % (rows // columns) == 0:
            groups = rows // columns
            return Product(a.reshape(groups, columns, -1), b.reshape(groups, -1, columns), scaling)
        if rows == columns and rows % r == 0:  # experts: B has the ranks first
            stack = a.reshape(rows // r, r, -1), b.reshape(len(b), r, -1).permute(2, 0, 1)
            return Product(*stack, scaling)
    raise AdapterMismatchError(
        f"{path}: its factors, A {tuple(a.shape)} and B {tuple(b.shape)}, are no pair of the rank {r} in its config."
    )
