"""Convolutions of one to three dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TargetError
from ..maths import linear, low_rank
from .kind import Kind, Shape, random_weight


class ConvKind(Kind):
    """A convolution: A has the base's kernel, B is 1x1. Flattened, (out, in * kernel)."""

    layer = nn.modules.conv._ConvNd
    convolves = True

    def knows_forward(self, cls: type[nn.Module]) -> bool:
        return cls.forward in _FORWARDS

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
        return low_rank.add_product(weight.flatten(1), b.flatten(1), a.flatten(1), scaling).reshape(weight.shape)

    def down(self, layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
        return layer._conv_forward(x, a.to(x.dtype), None)

    def add_up(self, y: Tensor, s: Tensor, b: Tensor, scaling: float) -> Tensor:
        return linear.add(y, _CONV[b.ndim - 2](s, b.to(s.dtype)), scaling)

    def channels(self, vector: Tensor, shape: Shape) -> Tensor:
        return vector.reshape(-1, *(1 for _ in shape[2:]))

    def vector_to_file(self, vector: Tensor, shape: Shape) -> Tensor:
        return vector.reshape(1, -1, *(1 for _ in shape[2:]))

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer._conv_forward(x, layer.weight, layer.bias)

    def probe_input(self, layer: nn.Module) -> Tensor:
        size = [max(4, 2 * k * d) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return random_weight((1, layer.weight.shape[1], *size))

    def check(self, layer: nn.Module, name: str, r: int) -> None:
        if layer.transposed:
            raise TargetError(
                f"{name} is a transposed convolution: a low-rank product of the published layout has no place in its "
                "weight and could not be merged. Name it in exclude_modules."
            )


class GroupedConvKind(ConvKind):
    """A convolution in g groups: A reads every input, B is 1x1 in g groups of r / g, as in PEFT.

    Its product changes each group's outputs by all of the inputs, for which a grouped weight has no place: it acts
    behind the forward, and merges only where it is zero outside of the groups. The weight is (g, out / g, in / g, ...).
    """

    within_weight = False

    def claims(self, module: nn.Module) -> bool:
        return super().claims(module) and int(module.groups) > 1 and not module.transposed

    def weight_shape(self, module: nn.Module) -> Shape:
        out, *rest = super().weight_shape(module)
        groups = int(module.groups)
        return (groups, out // groups, *rest)

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        groups, out, in_, *kernel = shape
        return (r, groups * in_, *kernel), (groups * out, r // groups, *(1 for _ in kernel))

    def flat(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        groups = len(a) // b.shape[1]
        return a.flatten(1), torch.block_diag(*b.reshape(groups, -1, b.shape[1]))

    def pairs(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        groups = len(a) // b.shape[1]
        return a.reshape(groups, b.shape[1], -1), b.reshape(groups, -1, b.shape[1])

    def whole_rank(self, r: int, shape: Shape) -> int:
        return r * shape[0]

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        groups = len(a) // b.shape[1]
        product = low_rank.product(*self.flat(a, b))
        blocks = product.reshape(groups, len(b) // groups, groups, -1)  # by outputs, by inputs
        own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        if torch.count_nonzero(blocks) > torch.count_nonzero(own):
            raise TargetError(
                f"a convolution with groups={groups}, whose adapter reads the inputs of every group: its weight has no "
                "place for that. Use the adapter without merging it, or leave the layer out (exclude_modules)."
            )
        return torch.add(weight.to(own.dtype), own.reshape(weight.shape), alpha=scaling).to(weight.dtype)

    def down(self, layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
        conv: Any = layer
        padding = conv.padding
        if conv.padding_mode != "zeros":
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice, conv.padding_mode), 0
        return _CONV[a.ndim - 2](x, a.to(x.dtype), None, conv.stride, padding, conv.dilation)

    def add_up(self, y: Tensor, s: Tensor, b: Tensor, scaling: float) -> Tensor:
        groups = s.shape[1 - b.ndim] // b.shape[1]
        return linear.add(y, _CONV[b.ndim - 2](s, b.to(s.dtype), groups=groups), scaling)

    def channels(self, vector: Tensor, shape: Shape) -> Tensor:
        return super().channels(vector, shape[1:])

    def check(self, layer: nn.Module, name: str, r: int) -> None:
        if r % layer.groups:
            raise TargetError(
                f"{name} is a convolution with groups={layer.groups}, whose adapter needs a rank that these divide, "
                f"not r={r}. Give it one by rank_pattern={{{name!r}: {layer.groups}}}, or name it in exclude_modules."
            )


_FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
