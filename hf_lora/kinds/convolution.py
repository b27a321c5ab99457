"""Convolutions of one to three dimensions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TargetError
from ..maths import linear, low_rank
from .kind import Kind, Shape, random_weight

__all__ = ["ConvKind"]


class ConvKind(Kind):
    """A convolution: A has the base's kernel, B is 1x1. Flattened, (out, in * kernel)."""

    layer = nn.modules.conv._ConvNd
    convolves = True

    def knows_forward(self, cls: type[nn.Module]) -> bool:
        return cls.forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)

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

    def channels(self, vector: Tensor, y: Tensor) -> Tensor:
        return vector.reshape(-1, *(1 for _ in y.shape[2:]))

    def vector_to_file(self, vector: Tensor, shape: Shape) -> Tensor:
        return vector.reshape(1, -1, *(1 for _ in shape[2:]))

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


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
