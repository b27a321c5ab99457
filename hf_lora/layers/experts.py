"""Fused experts with adapters on their stacks of matrices, computed by Transformers' own code.

The code reads a stack and multiplies some tokens with each of its matrices, one after the other (`eager`), in groups
(`grouped_mm`) or each with a copy (`batched_mm`). Inside of the experts' own forward it reads a `LowRankSum`, which
turns each of these products into x W + (x A') B'; whoever else reads the parameter gets the stack with its adapters.

By row, every expert becomes as many as there are routes: expert e of route k is number e * routes + k. Its matrix is
W_e, its factors are those of the route, so that the tokens of all rows go through one product.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError
from ..kinds.table import kind_of
from ..maths.stacks import LowRankSum
from ..variants.adapter import Adapter, base_tensor
from . import rows
from .routes import Rows
from .tying import is_plain

# Transformers' ways to compute experts in plain operations; the others' kernels take tensors and nothing else.
_PLAIN = ("eager", "grouped_mm", "batched_mm")
_TRACES = torch.__version__ >= "2.13"  # its compiler takes objects in the place of tensors; of earlier ones unknown
_MANY = 2048  # experts times routes: Transformers counts tokens with `torch.histc`, in floats that are exact so far


def implementation(layer: nn.Module) -> str:
    """Return how Transformers computes a module's experts; "eager" where it is not asked."""
    return getattr(getattr(layer, "config", None), "_experts_implementation", None) or "eager"


def is_understood(layer: nn.Module) -> bool:
    """Tell whether a module's own forward multiplies with its stacks in operations that take a `LowRankSum`."""
    stacks = [own for own in layer._parameters.values() if own is not None and own.ndim == 3]
    if (name := implementation(layer)) in _PLAIN:
        if not torch.compiler.is_compiling():
            return True
        return _TRACES and (name != "grouped_mm" or _traces_grouped(any(w.dtype == torch.bfloat16 for w in stacks)))
    if stacks:
        warnings.warn(
            f"experts_implementation={name!r}: its kernel takes whole stacks of experts, so their matrices are made "
            'anew with the adapters inside for each forward. model.set_experts_implementation("grouped_mm") needs less '
            "memory.",
            stacklevel=2,
        )
    return False


@torch.compiler.assume_constant_result
def _traces_grouped(is_bfloat16: bool) -> bool:
    """Tell whether a compiler lets objects in the place of tensors take part in grouped products."""
    from torch._dynamo.variables import torch as traced

    known: set[Any] = getattr(traced, "get_overridable_functions", set)()
    has_fallback = hasattr(torch.ops.transformers, "grouped_mm_fallback")
    return getattr(torch, "_grouped_mm", None) in known or (has_fallback and not is_bfloat16)


def has_stack(layer: nn.Module) -> bool:
    """Tell whether adapters live in a read of a module's stack of matrices."""
    found = [base_tensor(layer, name) for name in layer._steps.reads]  # type: ignore[union-attr]
    return kind_of(layer) is None and any(own is not None and own.ndim == 3 for own in found)


def with_products(weight: Tensor, adapters: Iterable[Adapter]) -> Any:
    """Return a parameter as its module's own forward gets it, with the products of adapters; see `LowRankSum`."""
    adapters = list(adapters)
    factors = rows.factors_of(adapters) if weight.ndim == 3 and is_plain(weight) else None
    if factors is not None:
        return LowRankSum.of(weight, *factors, adapters[0].transposed)
    for adapter in adapters:
        weight = adapter.run(adapter.effective, weight)
    return weight


def by_row(layer: Any, again: Callable[..., Any], base: type[nn.Module], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return what experts give for a batch whose rows have routes of their own.

    again: their forward, which looks at the route; base: the class whose own forward computes them; args, kwargs: its.
    Raises AdapterStateError where the arguments do not tell which token goes to which expert.
    """
    given, index = (*args, *kwargs.values()), experts_of(layer, args, kwargs)
    route: Rows = layer._steps.rows()
    seen = _of_every_route(layer, base, route) if all(t.shape == index.shape for t in given[1:3]) else None
    if seen is None:
        return rows.compute(layer, again, None, args, kwargs)
    parts = rows.times_in(layer, layer._lora, len(route.of_row), given[0])
    many = index * len(route.groups) + route.place_of_parts(parts, index.device)[:, None]
    forward: Callable[..., Any] = base.forward
    return forward(
        seen,
        *(many if x is index else x for x in args),
        **{key: many if x is index else x for key, x in kwargs.items()},
    )


def experts_of(layer: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """Return which experts each token goes to, (tokens, experts a token), as a forward of experts is given it.

    Raises AdapterStateError where it is not: the tokens may be sorted or repeated, and no longer in the rows' order.
    """
    given = (*args, *kwargs.values())[:3]
    if len(given) == 3 and all(isinstance(each, Tensor) and each.ndim == 2 for each in given):
        found = [t for t in given[1:] if not (t.is_floating_point() or t.dtype == torch.bool)]
        if len(found) == 1 and len(found[0]) == len(given[0]):
            return found[0]
    raise AdapterStateError(
        f"{rows.name_in(layer._lora, layer)}: its experts are not given tokens with the numbers of their experts, "
        "so whose token is whose cannot be told. Compute each adapter's rows on their own, in "
        "`with model.adapters_active(name):`."
    )


def _of_every_route(layer: Any, base: type[nn.Module], route: Rows) -> nn.Module | None:
    """Return a module with a layer's experts once for every route, None where only one route can be told at a time."""
    many, count = len(route.groups), getattr(layer, "num_experts", 0) * len(route.groups)
    if implementation(layer) == "eager" or not 0 < count <= _MANY or getattr(layer, "_is_expert_parallel", False):
        return None
    if (
        layer._buffers
        or not layer._parameters
        or any("_lora" in each.__dict__ for each in layer.modules() if each is not layer)
    ):
        return None
    content: dict[str, Any] = {}
    for name, tensor in layer._parameters.items():
        if not is_plain(tensor) or tensor.ndim not in (2, 3) or len(tensor) * many != count:
            return None
        is_read = name in layer._steps.reads
        stack = layer._steps.stacked(route.groups, name) if is_read and tensor.ndim == 3 else None
        if is_read and stack is None:
            return None
        content[name] = tensor.repeat_interleave(many, 0) if tensor.ndim == 2 else _shared(tensor, stack, many)
    seen = object.__new__(base)
    seen.__dict__.update({**layer.__dict__, "_parameters": {}, "num_experts": count, **content})
    return seen


def _shared(weight: Tensor, stack: rows.Stack | None, many: int) -> LowRankSum:
    """Return a stack whose matrices are there once for every route, with the factors of each."""
    if stack is not None:
        a, b = stack.a.flatten(0, 1), stack.b.flatten(0, 1)
        return LowRankSum.of(weight, a, b, stack.adapters[0].transposed, many)
    count, n, m = len(weight) * many, *weight.shape[1:]
    return LowRankSum.of(weight, weight.new_zeros(count, 1, m), weight.new_zeros(count, n, 1), False, many)
