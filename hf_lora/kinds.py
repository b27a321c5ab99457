"""Kinds: how each type of base layer is read as an (out, in) matrix, one small class each, one table.

A kind answers four questions for the formulas in `variants/`, which know nothing of layers:
the matrix behind a weight (and back), the shapes of A and B, the two half-steps `down` (x -> s) and `add_up`
(s into y), and where the output channels are. Kinds hold no state; the layer and its tensors are passed in.
To add one: write the class, add it to `KINDS`; the law suite runs over the table.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from . import functional as LF
from . import linear
from .errors import TargetError

Shape = tuple[int, ...]


class Kind:
    """A weight that is its own (out, in) matrix: `nn.Linear`, and raw 2-D parameters."""

    layer: ClassVar[type[nn.Module] | None] = nn.Linear
    embeds: ClassVar[bool] = False  # the input is indices, not activations
    transposed: ClassVar[bool] = False  # the weight is stored as (in, out)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as its (..., out, in) matrix; a view where the layout allows."""
        return weight

    def weight(self, matrix: Tensor, shape: Shape) -> Tensor:
        """Return an (..., out, in) matrix in the layout of a weight of that shape; undoes `matrix`."""
        return matrix

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        """Return the shapes of A and B for a weight of that shape and rank r."""
        out, in_ = shape
        return (r, in_), (out, r)

    def flat(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A as (..., r, in) and B as (..., out, r), whose product is the matrix."""
        return a, b

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Return weight + scaling * B A as a new tensor in the weight's own layout and dtype."""
        return LF.add_product(weight, b, a, scaling)

    def linear(
        self, layer: nn.Module, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, p: float
    ) -> Tensor:
        """Return the output of a plain linear layer and its adapter in one; p: how probably an element of x drops."""
        return linear.lora_linear(x, layer.weight, bias, a, b, scaling, p, self.transposed)

    def down(self, layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
        """Return s = A x. The small factor is cast to x's dtype; x never is."""
        return F.linear(x, a.to(x.dtype))

    def add_up(self, y: Tensor, s: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Return y + scaling * B s; y may be written."""
        return linear.add_up(y, s, b, scaling)

    def channels(self, vector: Tensor, y: Tensor) -> Tensor:
        """Return an (out,) vector shaped to broadcast over an output y."""
        return vector

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return what the kind believes the layer's forward to be, for probing subclasses."""
        return F.linear(x, layer.weight, layer.bias)

    def probe_input(self, layer: nn.Module) -> Tensor:
        """Return a small float64 input for `expected`."""
        return random_weight((2, layer.weight.shape[1]))

    def check(self, layer: nn.Module, name: str, r: int) -> None:
        """Raise TargetError where a layer of this kind cannot carry an adapter of rank r."""


class Conv1DKind(Kind):
    """GPT-2's linear layer, which stores its weight as (in, out)."""

    layer = Conv1D
    transposed = True

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def weight(self, matrix: Tensor, shape: Shape) -> Tensor:
        return matrix.mT

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        return (r, shape[0]), (shape[1], r)

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        return LF.add_product(weight, a.mT, b.mT, scaling)

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        return torch.matmul(x, layer.weight) + layer.bias

    def probe_input(self, layer: nn.Module) -> Tensor:
        return random_weight((2, layer.weight.shape[0]))


class EmbeddingKind(Conv1DKind):
    """A lookup table: a linear layer on one-hot inputs, stored as (in, out) = (entries, dimension)."""

    layer = nn.Embedding
    embeds = True

    def down(self, layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
        return F.embedding(x, a.mT, layer.padding_idx, sparse=layer.sparse)

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        return F.embedding(x, layer.weight, layer.padding_idx)

    def probe_input(self, layer: nn.Module) -> Tensor:
        return torch.arange(layer.weight.shape[0])[None]

    def check(self, layer: nn.Module, name: str, r: int) -> None:
        if layer.max_norm is not None:
            raise TargetError(
                f"{name} is an embedding with max_norm={layer.max_norm}, which rewrites its own rows in every forward; "
                "such a table cannot carry an adapter. Name it in exclude_modules, or set its max_norm to None."
            )


class ConvKind(Kind):
    """A convolution: A has the base's kernel, B is 1x1. Flattened, (out, in * kernel)."""

    layer = nn.modules.conv._ConvNd

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def weight(self, matrix: Tensor, shape: Shape) -> Tensor:
        return matrix.reshape(shape)

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        out, *rest = shape
        return (r, *rest), (out, r, *(1 for _ in rest[1:]))

    def flat(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.flatten(1), b.flatten(1)

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        return LF.add_product(weight.flatten(1), b.flatten(1), a.flatten(1), scaling).reshape(weight.shape)

    def down(self, layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
        return layer._conv_forward(x, a.to(x.dtype), None)

    def add_up(self, y: Tensor, s: Tensor, b: Tensor, scaling: float) -> Tensor:
        return linear.add(y, _CONV[b.ndim - 2](s, b.to(s.dtype)), scaling)

    def channels(self, vector: Tensor, y: Tensor) -> Tensor:
        return vector.reshape(-1, *(1 for _ in y.shape[2:]))

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer._conv_forward(x, layer.weight, layer.bias)

    def probe_input(self, layer: nn.Module) -> Tensor:
        size = [max(4, 2 * k * d) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return random_weight((1, layer.weight.shape[1], *size))

    def check(self, layer: nn.Module, name: str, r: int) -> None:
        if layer.transposed or layer.groups > 1:
            what = "transposed" if layer.transposed else f"grouped (groups={layer.groups})"
            raise TargetError(
                f"{name} is a {what} convolution: a low-rank product of the published layout has no place in its "
                "weight and could not be merged. Name it in exclude_modules."
            )


class ExpertsKind(Kind):
    """A stack of matrices in one parameter of v5 mixtures, stored as (experts, out, in)."""

    layer = None

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        experts, out, in_ = shape
        return (experts, r, in_), (experts, out, r)


class TransposedExpertsKind(ExpertsKind):
    """A stack of matrices stored as (experts, in, out): gpt_oss, aria, llama4."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def weight(self, matrix: Tensor, shape: Shape) -> Tensor:
        return matrix.mT

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        experts, in_, out = shape
        return (experts, r, in_), (experts, out, r)

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        return LF.add_product(weight, a.mT, b.mT, scaling)


class PackedKind(Kind):
    """A linear layer whose weight is not a plain float matrix (quantised): adapted from outside, never merged."""

    layer = None

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        out, in_ = shape
        return (r, in_), (out, r)

    def matrix(self, weight: Tensor) -> Tensor:
        raise TargetError("its weight is packed (quantised) and cannot be read as a matrix; load the base in float.")

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        raise TargetError("its weight is packed (quantised) and cannot be merged into; load the base in float.")


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LINEAR, CONV1D, EMBEDDING, CONV = Kind(), Conv1DKind(), EmbeddingKind(), ConvKind()
EXPERTS, TRANSPOSED_EXPERTS, PACKED = ExpertsKind(), TransposedExpertsKind(), PackedKind()
KINDS: dict[str, Kind] = {
    "linear": LINEAR,
    "conv1d": CONV1D,
    "embedding": EMBEDDING,
    "conv": CONV,
    "experts": EXPERTS,
    "experts_t": TRANSPOSED_EXPERTS,
    "packed": PACKED,
}


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a layer whose `weight` can carry an adapter, or None."""
    if _is_packed(module):
        return PACKED
    if module._parameters.get("weight") is None:
        return None
    return next((k for k in KINDS.values() if k.layer is not None and isinstance(module, k.layer)), None)


def parameter_kind(owner: nn.Module, parameter: Tensor, name: str) -> Kind:
    """Return the kind of a raw parameter: 2-D is (out, in), 3-D a stack of experts.

    Which way round a stack lies is the owner's `is_transposed`, Transformers' own flag and the one PEFT reads.
    """
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        raise TargetError(f"{name} holds {parameter.dtype}: a packed parameter cannot be adapted.")
    if parameter.ndim == 2:
        return LINEAR
    if parameter.ndim == 3:
        return TRANSPOSED_EXPERTS if getattr(owner, "is_transposed", False) else EXPERTS
    raise TargetError(f"{name} has shape {tuple(parameter.shape)}; only 2-D and 3-D parameters can be adapted.")


def weight_shape(kind: Kind, module: nn.Module) -> Shape:
    """Return the shape of the weight a kind adapts: the stored one, or (out, in) of a packed layer."""
    if kind is PACKED:
        return (int(module.out_features), int(module.in_features))
    return tuple(module._parameters["weight"].shape)


def _is_packed(module: nn.Module) -> bool:
    if not isinstance(module, nn.Linear):
        return isinstance(getattr(module, "qweight", None), Tensor) and hasattr(module, "in_features")
    weight = module._parameters.get("weight")
    if weight is None:
        return False
    plain = weight.is_floating_point() and weight.element_size() >= 2
    return not plain or tuple(weight.shape) != (module.out_features, module.in_features)


def random_weight(shape: Shape) -> Tensor:
    """Return float64 noise, the same every time, for probing."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
