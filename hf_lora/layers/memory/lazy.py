"""Logits that are computed when somebody looks at them: a promise of what a model's output layer gives.

`LazyLogits` has the shape, dtype, device and gradient of the logits and no memory. A cast, a slice of leading
dimensions, a flattening or an elementwise step (`RULES`) gives another promise; `F.cross_entropy` on rows of logits is
computed in chunks; any other function gets the logits themselves, made then by the output layer's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from ...maths.autocast import Ambient, ambient
from ...maths.cross_entropy import chunked_cross_entropy

Step = Callable[[Tensor], Tensor]
_INDICES = (int, slice, Tensor, type(None), type(...))


@dataclass(frozen=True, eq=False)
class Scoring:
    """How logits come from hidden states.

    head: hidden states (..., in) to logits (..., vocabulary). steps: what happens to the logits after it, row by row.
    parameters: what these train, where gradients are wanted. versions: what the head trains, and in which version it
    was. sample: logits of no row, (0, vocabulary), for dtype and device.
    """

    head: Step
    steps: tuple[Step, ...]
    parameters: tuple[Tensor, ...]
    versions: tuple[tuple[Tensor, int], ...]
    ambient: Ambient
    sample: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states. Raises RuntimeError where they would not be those of the forward."""
        if any(parameter._version != version for parameter, version in self.versions):
            raise RuntimeError(
                "the output layer has been trained on since this forward, so its logits can no longer be computed; "
                "look at outputs.logits before optimizer.step(), or call disable_linear_cross_entropy()."
            )
        with self.ambient():
            logits = self.head(hidden)
        for step in self.steps:
            logits = step(logits)
        return logits

    def then(self, step: Step) -> Scoring:
        """Return a scoring with one more step."""
        with torch.no_grad():
            return replace(self, steps=(*self.steps, step), sample=step(self.sample))


class LazyLogits(Tensor):
    """The promise of `scoring(hidden)`, a tensor of shape (*hidden.shape[:-1], vocabulary)."""

    scoring: Scoring
    hidden: Tensor
    made: list[Tensor]  # the logits, once somebody has looked

    @staticmethod
    def __new__(cls, scoring: Scoring, hidden: Tensor, made: list[Tensor]) -> LazyLogits:
        shape, like = (*hidden.shape[:-1], scoring.sample.shape[-1]), scoring.sample
        lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        lazy.scoring, lazy.hidden, lazy.made = scoring, hidden, made
        return lazy

    def computed(self) -> Tensor:
        """Return the logits themselves, with the graph that they would have had; computed once."""
        return _computed(self.scoring, self.hidden, self.made)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else None
        if func in RULES and isinstance(first, LazyLogits) and not first.made:
            result = RULES[func](first, *args[1:], **kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = tree_map_only(LazyLogits, LazyLogits.computed, (tuple(args), kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(
            f"{func} was called on logits that are not computed yet, past the place where they would have been. "
            "Compute them first (logits = logits.clone()), or call disable_linear_cross_entropy()."
        )


def promise(head: Step, hidden: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return lazily what head(hidden) gives. parameters: what the head trains."""
    # With gradients, because autocast keeps the weights that it casts here, and would keep them without.
    sample = head(hidden.detach().reshape(-1, hidden.shape[-1])[:0]).detach()
    versions = tuple((p, p._version) for p in parameters)
    return _lazy(Scoring(head, (), tuple(parameters), versions, ambient(hidden.device), sample), hidden)


def _lazy(scoring: Scoring, hidden: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        scoring, hidden = replace(scoring, parameters=()), hidden.detach()
    return _Promise.apply(scoring, hidden, *scoring.parameters)


def _computed(scoring: Scoring, hidden: Tensor, made: list[Tensor]) -> Tensor:
    if not made:
        trains = hidden.requires_grad or any(p.requires_grad for p in scoring.parameters)
        with torch.inference_mode(False), torch.set_grad_enabled(trains):
            made.append(scoring(hidden))
    return made[0]


class _Promise(torch.autograd.Function):
    """Gives the promise its place in the graph: a gradient that reaches it is passed on as the logits would."""

    @staticmethod
    def forward(ctx: Any, scoring: Scoring, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.scoring, ctx.hidden, ctx.made = scoring, hidden, []
        return LazyLogits(scoring, hidden, ctx.made)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (ctx.hidden, *ctx.scoring.parameters)
        logits = _computed(ctx.scoring, ctx.hidden, ctx.made)
        wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad[1:], strict=True) if needed]
        graph = {"retain_graph": True, "create_graph": torch.is_grad_enabled()}
        grads = iter(torch.autograd.grad(logits, wanted, grad, allow_unused=True, **graph))
        return None, *(next(grads) if needed else None for needed in ctx.needs_input_grad[1:])


# What a promise allows, each as a rule: (lazy, *arguments) -> a result, or NotImplemented where the logits are needed.


def _index(lazy: LazyLogits, index: Any) -> Any:
    """Index leading dimensions; the last, the vocabulary's, has to stay whole."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(p, _INDICES) and not isinstance(p, bool) for p in parts):
        return NotImplemented
    taken = sum(0 if p is None or p is ... else _dimensions(p) for p in parts)
    to_the_end = taken >= lazy.ndim or (any(p is ... for p in parts) and parts[-1] is not ...)
    if to_the_end and not (isinstance(parts[-1], slice) and parts[-1] == slice(None)):
        return NotImplemented
    return _lazy(lazy.scoring, lazy.hidden[index])


def _dimensions(part: int | slice | Tensor) -> int:
    """Return how many dimensions an index takes."""
    return part.ndim if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) else 1


def _reshape(func: Any, lazy: LazyLogits, *args: Any, **kwargs: Any) -> Any:
    """Reshape leading dimensions: rows stay rows where the last size is the vocabulary's."""
    result = func(torch.empty(lazy.shape, dtype=lazy.dtype, device="meta"), *args, **kwargs)
    if result.dtype != lazy.dtype or result.shape[-1:] != lazy.shape[-1:]:
        return NotImplemented
    return _lazy(lazy.scoring, lazy.hidden.reshape(*result.shape[:-1], lazy.hidden.shape[-1]))


def _elementwise(func: Any, lazy: LazyLogits, *args: Any, **kwargs: Any) -> Any:
    """Apply one more step to every row: a cast, or arithmetic with numbers and with rows as long as the vocabulary."""
    if any(isinstance(a, Tensor) and not _is_row(a, lazy) for a in (*args, *kwargs.values())):
        return NotImplemented
    rows = [a.reshape(-1) if isinstance(a, Tensor) and a.ndim else a for a in args]
    scoring = lazy.scoring.then(lambda logits: func(logits, *rows, **kwargs))
    if scoring.sample.device != lazy.device:
        return NotImplemented
    return _lazy(scoring, lazy.hidden)


def _is_row(operand: Tensor, lazy: LazyLogits) -> bool:
    """Return whether an operand is the same for every row of logits, and not trained."""
    fits = operand.ndim <= lazy.ndim and operand.shape[-1:].numel() == operand.numel()
    return fits and not operand.requires_grad and operand.device == lazy.device


def _detach(lazy: LazyLogits) -> Any:
    with torch.no_grad():
        return _lazy(lazy.scoring, lazy.hidden)


def _cross_entropy(
    lazy: LazyLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Compute the loss of rows of logits in chunks."""
    if lazy.ndim != 2 or target.shape != lazy.shape[:1] or target.is_floating_point():
        return NotImplemented
    if size_average is not None or reduce is not None or reduction not in ("mean", "sum", "none"):
        return NotImplemented
    return chunked_cross_entropy(
        lazy.scoring, lazy.hidden, target, lazy.scoring.parameters, lazy.shape[-1],
        weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
    )  # fmt: skip


def _of_tensors(*names: str) -> list[Any]:
    return [getattr(owner, name) for name in names for owner in (Tensor, torch) if hasattr(owner, name)]


_RESHAPES = _of_tensors("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
_ELEMENTWISE = _of_tensors(
    "to", "float", "double", "half", "bfloat16", "mul", "__mul__", "__rmul__", "multiply", "div", "__truediv__",
    "divide", "true_divide", "add", "__add__", "__radd__", "sub", "__sub__", "tanh",
)  # fmt: skip
RULES: dict[Any, Callable[..., Any]] = {
    F.cross_entropy: _cross_entropy,
    Tensor.__getitem__: _index,
    Tensor.detach: _detach,
    Tensor.contiguous: lambda lazy: lazy,
    **{func: partial(_reshape, func) for func in _RESHAPES},
    **{func: partial(_elementwise, func) for func in _ELEMENTWISE},
}
_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad_fn", "is_leaf")
_PLACES = ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized")
METADATA = {
    *(getattr(Tensor, name).__get__ for name in (*_PROPERTIES, *_PLACES)),
    *_of_tensors("size", "dim", "numel", "is_floating_point", "is_complex", "get_device"),
    *(Tensor.nelement, Tensor.ndimension, Tensor.element_size, Tensor.__len__),
}
