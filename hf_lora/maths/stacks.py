"""A weight with a low-rank product added, of which nothing is made while code only multiplies with it.

    W' = W + L R           W (..., n, m), L (..., n, r), R (..., r, m)
    x W' = x W + (x L) R   W' x = W x + L (R x)

So a mixture's experts compute with their adapters inside, on the tokens that each expert gets: one of its matrices is
W[i] + L[i] R[i], of several in groups torch's grouped products take W, L and R one after the other. Whatever else is
done with it is done with W' itself, which is then made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from .linear import add, lora_linear
from .tracing import is_traced

_LINEAR, _GROUPED = "linear", ("grouped_mm", "_grouped_mm", "grouped_mm_fallback")  # the last one is Transformers'
_PRODUCTS = ("matmul", "__matmul__", "mm", "bmm", *_GROUPED)
_OWN = ("dtype", "device", "is_cuda", "is_cpu", "is_meta", "layout", "data_ptr")  # asked for before a product


class LowRankSum:
    """W' = W + left right, in the place of a tensor.

    weight: (..., n, m); left: (..., n, r); right: (..., r, m), of any dtype and cast to the weight's. share: how many
    matrices lie side by side in `left` and `right` for one of a stack's; W' has all of them.
    """

    def __init__(self, weight: Tensor, left: Tensor, right: Tensor, share: int = 1) -> None:
        self.weight, self.share = weight, share
        self.left, self.right = left.to(weight.dtype), right.to(weight.dtype)

    @classmethod
    def of(cls, weight: Tensor, a: Tensor, b: Tensor, transposed: bool, share: int = 1) -> LowRankSum:
        """Return W + B A, of a weight (..., out, in), or (..., in, out) where `transposed`.

        a: (..., r, in); b: (..., out, r). r is filled up with zeros to 16 bytes, as torch's grouped products ask for.
        """
        if missing := -a.shape[-2] % (16 // weight.element_size()):
            a, b = F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))
        return cls(weight, *((a.mT, b.mT) if transposed else (b, a)), share)

    @property
    def shape(self) -> torch.Size:
        """The shape of W'."""
        return torch.Size((*self.left.shape[:-1], self.right.shape[-1]))

    @property
    def ndim(self) -> int:
        """The number of W's dimensions."""
        return self.weight.ndim

    def dim(self) -> int:
        """Return the number of W's dimensions."""
        return self.weight.ndim

    def size(self, dim: int | None = None) -> Any:
        """Return the shape of W', or its length along a dimension."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def mT(self) -> LowRankSum:
        """W' with its last two dimensions exchanged."""
        return LowRankSum(self.weight.mT, self.right.mT, self.left.mT, self.share)

    def transpose(self, first: int, second: int) -> Any:
        """Return W' with two dimensions exchanged."""
        both = {first % self.ndim, second % self.ndim}
        return self.mT if both == {self.ndim - 2, self.ndim - 1} else self.dense().transpose(first, second)

    @cached_property
    def _parts(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self.left.unbind(0), self.right.unbind(0)  # their gradients meet in one tensor, and not in one each

    def __getitem__(self, index: Any) -> Any:
        is_number = isinstance(index, int) and not isinstance(index, bool)
        if isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool and index.ndim < 2:
            is_number = not index.ndim and not is_traced()
            index = int(index) if is_number else index
        elif not is_number:
            return self.dense()[index]
        if self.ndim < 3:
            return self.dense()[index]
        left, right = self._parts if is_number else (self.left, self.right)
        weight = self.weight[index if self.share == 1 else (index % len(left)) // self.share]
        return LowRankSum(weight, left[index], right[index])

    def dense(self) -> Tensor:
        """Return W' as a tensor, (n, m) or a whole stack."""
        weight = self.weight if self.share == 1 else self.weight.repeat_interleave(self.share, 0)
        plus = torch.addmm if self.ndim == 2 else torch.baddbmm
        return plus(weight, self.left, self.right)

    def _of_stack(self, what: str) -> Tensor:
        if self.ndim > 2:
            warnings.warn(
                f"experts: {what} takes the matrices of all experts with their adapters inside, so these are made anew "
                "each time. The results are the same; memory and time are not.",
                stacklevel=3,
            )
        return self.dense()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.weight if name in _OWN else self._of_stack(name), name)

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self, other)  # type: ignore[arg-type]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == _LINEAR and len(args) > 1 and isinstance(args[1], cls) and args[1].ndim == 2:
            return args[1]._linear(args[0], *args[2:], **kwargs)
        if name in _PRODUCTS and len(args) > 1:
            if isinstance(args[1], cls) and isinstance(args[0], Tensor):
                return args[1]._behind(func, args[0], *args[2:], **kwargs)
            if isinstance(args[0], cls) and isinstance(args[1], Tensor) and len(args) == 2 and not kwargs:
                return args[0]._before(func, args[1])
        args, kwargs = tree_map_only(cls, lambda each: each._of_stack(name), (args, kwargs))
        return func(*args, **kwargs)

    def _linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return lora_linear(x, self.weight, bias, self.right, self.left, 1.0, 0.0, False)

    def _behind(self, func: Callable[..., Tensor], x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        if self.ndim == 2 and not rest and not kwargs:
            return lora_linear(x, self.weight, None, self.left.mT, self.right.mT, 1.0, 0.0, True)
        of_weight = kwargs
        if self.share > 1:
            if kwargs.get("offs") is None:
                return func(x, self._of_stack("a product"), *rest, **kwargs)
            of_weight = {**kwargs, "offs": kwargs["offs"][self.share - 1 :: self.share]}
        y = func(x, self.weight, *rest, **of_weight)
        return add(y, func(func(x, self.left, *rest, **kwargs), self.right, *rest, **kwargs), 1.0)

    def _before(self, func: Callable[..., Tensor], x: Tensor) -> Tensor:
        if self.share > 1:
            return func(self._of_stack("a product"), x)
        return add(func(self.weight, x), func(self.left, func(self.right, x)), 1.0)


def _as_dense(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(self._of_stack(name), name)(*args)


for _name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__neg__"):
    setattr(LowRankSum, _name, _as_dense(_name))
