"""A batch whose rows have routes of their own, in one layer.

Where every route adds a plain low-rank product to a linear layer, the factors lie in one stack and one batched product
takes each row through its own. Anything else is computed group by group: the rows of one route together, through the
layer's own forward under that route.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import AdapterStateError
from ..maths.stacked import add_by_row
from ..variants.adapter import Adapter
from ..variants.tensors import version
from .routes import Rows
from .state import AdapterState


class Stack(NamedTuple):
    """The factors of several routes side by side: a (routes, r, in), b (routes, out, r), scaled; narrower ones padded.

    Of a stack of matrices they are (matrices, routes, ...). adapters: those that they were made of, with their tensors;
    seen: what these were then.
    """

    a: Tensor
    b: Tensor
    adapters: tuple[Adapter, ...]
    tensors: tuple[Tensor, ...]
    seen: tuple[Any, ...]

    def is_current(self) -> bool:
        """Return whether these factors serve another forward: nothing is written since, and none of it trains.

        What trains is written unseen: a fused optimizer's steps do not count as writing.
        """
        trains = any(map(attrgetter("requires_grad"), self.tensors))
        return not trains and _seen(self.adapters, self.tensors) == self.seen


def _seen(adapters: Sequence[Adapter], tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return (
        *map(version, tensors), *map(Tensor.data_ptr, tensors), *map(attrgetter("training", "scaling"), adapters)
    )  # fmt: skip


def stack_of(routes: Sequence[tuple[Adapter, ...]]) -> Stack | None:
    """Return the factors with which each of several routes adds to a product, None where one does more."""
    adapters = tuple(adapter for route in routes for adapter in route)
    tensors = tuple(tensor for adapter in adapters for tensor in adapter.tensors().values())
    if not adapters or any(adapter.plain_product() is None for adapter in adapters):
        return None
    seen = _seen(adapters, tensors)
    pairs = [factors_of(route) for route in routes]
    known = [pair for pair in pairs if pair is not None]
    (first_a, first_b), r = known[0], max(a.shape[-2] for a, _ in known)
    none = first_a.new_zeros(*first_a.shape[:-2], r, first_a.shape[-1]), first_b.new_zeros(*first_b.shape[:-1], r)
    padded = [none if pair is None else _padded(*pair, r) for pair in pairs]
    a, b = (torch.stack(each, dim=-3) for each in zip(*padded, strict=True))
    return Stack(a, b, adapters, tensors, seen)


def factors_of(adapters: Sequence[Adapter]) -> tuple[Tensor, Tensor] | None:
    """Return what several adapters add to a product as one A (..., r, in) and B (..., out, r), scaled.

    None where there is none, or where one of them does more.
    """
    products = [adapter.plain_product() for adapter in adapters]
    known = [product for product in products if product is not None]
    if not known or len(known) < len(products):
        return None
    a, b = [p.a for p in known], [p.b * p.scaling for p in known]
    return (a[0], b[0]) if len(known) == 1 else (torch.cat(a, dim=-2), torch.cat(b, dim=-1))


def _padded(a: Tensor, b: Tensor, r: int) -> tuple[Tensor, Tensor]:
    missing = r - a.shape[-2]
    return F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))


def compute(layer: Any, again: Callable[..., Any], base: Callable[..., Any] | None, args: Any, kwargs: Any) -> Any:
    """Return what a layer gives for a batch whose rows have routes of their own.

    again: the layer's forward, which looks at the route; base: that without what is added behind it,
    None where it cannot be told.
    Raises AdapterStateError where the input's first dimension does not tell its rows.
    """
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    state: AdapterState = layer._lora
    if (places := state.told.of_row) is not None and base is not None:
        times_in(layer, state, len(places), x)
        a, b = layer._steps.factors
        return add_by_row(base(layer, *args, **kwargs), x, a, b, places)
    rows = layer._steps.rows()
    times = times_in(layer, state, len(rows.of_row), x)
    if state.turned:
        _refuse_turned(layer, state, len(rows.of_row), x)
    stack = None if base is None else layer._steps.stacked(rows.groups)
    if stack is not None and base is not None:
        return add_by_row(base(layer, *args, **kwargs), x, stack.a, stack.b, rows.place_of_each(x.device))
    members, back = rows.split(times, x.device)
    results = []
    for group, (route, member) in enumerate(zip(rows.groups, members, strict=True)):
        pick = partial(_picked, rows, group, member, len(x))
        with state.inside(route), rows.during(group):
            y = again(layer, *(mapped(each, pick) for each in args), **mapped(kwargs, pick))
        results.append(mapped(y, partial(rows.widened, group, x=x)))
    return _joined(layer, state, results, back)


def times_in(layer: Any, state: AdapterState, rows: int, x: Any) -> int:
    """Return how often each row comes in a layer's input, one after the other."""
    count = x.shape[0] if isinstance(x, Tensor) and x.ndim else 0
    times, rest = divmod(count, rows)
    if rest or not times:
        raise AdapterStateError(
            f"{name_in(state, layer)}: its input has {count or 'no'} rows, the batch has adapters for "
            f"{rows}: which row is whose cannot be told here. Compute each adapter's rows on their own, in "
            "`with model.adapters_active(name):`."
        )
    return times


def _refuse_turned(layer: Any, state: AdapterState, rows: int, x: Tensor) -> None:
    """Raise AdapterStateError where a layer below code that turns batches may get (time, rows, ...)."""
    others = x.shape[1:-1] if x.is_floating_point() else x.shape[1:]
    if not all(size % rows for size in others) and (name := name_in(state, layer)) in state.turned:
        raise AdapterStateError(
            f"{name}: its input {tuple(x.shape)} may have its {rows} rows in another dimension than the first, since "
            "this model's code turns it: which row is whose cannot be told here. Compute each adapter's rows on their "
            "own, in `with model.adapters_active(name):`."
        )


def name_in(state: AdapterState, layer: Any) -> str:
    """Return a layer's full name in its model."""
    return next((name for name, each in state.layers.items() if each is layer), type(layer).__name__)


def _picked(rows: Rows, group: int, member: Tensor, size: int, given: Tensor) -> Tensor:
    """Return the rows of a group of a tensor that has as many rows as the input; any other tensor as it is."""
    is_batch = given.ndim and given.shape[0] == size
    return rows.narrowed(group, given.index_select(0, member)).contiguous() if is_batch else given


def mapped(given: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return what a module is given, or gives, with its tensors changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, dict):
        changed = {key: mapped(each, change) for key, each in given.items()}
        return changed if type(given) is dict else type(given)(**changed)
    return type(given)(mapped(each, change) for each in given) if type(given) in (tuple, list) else given


def _joined(layer: Any, state: AdapterState, results: list[Any], back: Tensor) -> Any:
    """Return the results of all groups as that of the batch."""
    first = results[0]
    if type(first) in (tuple, list):
        return type(first)(_joined(layer, state, list(each), back) for each in zip(*results, strict=True))
    if first is None:
        return None
    if isinstance(first, Tensor) and sum(map(len, results)) == len(back) and len({r.shape[1:] for r in results}) == 1:
        return torch.cat(results).index_select(0, back)
    shapes = [tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__ for r in results]
    raise AdapterStateError(
        f"{name_in(state, layer)}: its outputs for the adapters of this batch, {shapes}, make no batch. Compute each "
        "adapter's rows on their own, in `with model.adapters_active(name):`."
    )
