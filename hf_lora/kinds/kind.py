"""Kind: how one type of base layer is read as an (out, in) matrix.

A kind says which layers and parameters are its own, and answers four questions for the formulas in `variants/`, which
know nothing of layers: the matrix behind a weight (and back), the shapes of A and B, the two half-steps `down`
(x -> s) and `add_up` (s into y), and where the output channels are. What differs elsewhere (files, starts, merging)
asks a kind's attributes, never its name. Kinds hold no state; the layer and its tensors are passed in.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..maths import linear, low_rank

Shape = tuple[int, ...]


class Kind:
    """A weight that is its own (..., out, in) matrix, or that matrix transposed.

    layer: the class whose instances are of this kind.
    embeds: the input is indices, not activations. transposed: the weight is stored as (..., in, out).
    stacked: the weight is a stack of matrices. convolves: it is a convolution's.
    is_matrix: it is one matrix of numbers, which a start can take factors out of.
    within_weight: a product lies within the weight, so that it can act in the weight's read.
    is_quantised: its numbers are packed. is_readable: which can be read as floats all the same, and packed again.
    fan_in_fan_out: it is what PEFT's configs mean by that word.
    """

    layer: ClassVar[type[nn.Module] | None] = None
    embeds: ClassVar[bool] = False
    transposed: ClassVar[bool] = False
    stacked: ClassVar[bool] = False
    convolves: ClassVar[bool] = False
    is_matrix: ClassVar[bool] = False
    within_weight: ClassVar[bool] = True
    _forward: ClassVar[Any] = None
    is_quantised: ClassVar[bool] = False
    is_readable: ClassVar[bool] = False
    fan_in_fan_out: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._forward = None if cls.layer is None else staticmethod(cls.layer.forward)  # whatever it is patched with

    def claims(self, module: nn.Module) -> bool:
        """Return whether a layer's weight is of this kind; the table's rows are asked in their order."""
        if self.layer is None or not isinstance(module, self.layer):
            return False
        return module._parameters.get("weight") is not None or computed(module, "weight") is not None

    def claims_parameter(self, owner: nn.Module, parameter: Tensor) -> bool:
        """Return whether a raw floating-point parameter is of this kind."""
        return False

    def knows_forward(self, cls: type[nn.Module]) -> bool:
        """Return whether a class's forward is the one that `expected` computes, so that it need not be tried."""
        return self._forward is not None and cls.forward is self._forward

    def weight_shape(self, module: nn.Module) -> Shape:
        """Return the shape of the weight that is adapted: the stored one."""
        weight = module._parameters.get("weight")
        weight = computed(module, "weight") if weight is None else weight
        assert weight is not None
        return tuple(weight.shape)

    @property
    def is_opaque(self) -> bool:
        """Whether its numbers can be neither read nor merged into."""
        return self.is_quantised and not self.is_readable

    def numbers(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """Return the numbers of a layer's weight as a plain tensor in its layout: what is stored, unless it is packed.

        Raises TargetError where they cannot be read.
        """
        return weight

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as its (..., out, in) matrix; a view where the layout allows."""
        return weight.mT if self.transposed else weight

    def weight(self, matrix: Tensor, shape: Shape) -> Tensor:
        """Return an (..., out, in) matrix in the layout of a weight of that shape; undoes `matrix`."""
        return matrix.mT if self.transposed else matrix

    def factor_shapes(self, shape: Shape, r: int) -> tuple[Shape, Shape]:
        """Return the shapes of A and B for a weight of that shape and rank r."""
        *stack, out, in_ = shape
        if self.transposed:
            out, in_ = in_, out
        return (*stack, r, in_), (*stack, out, r)

    def flat(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A as (..., r, in) and B as (..., out, r), whose product is the matrix."""
        return a, b

    def pairs(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of A (..., r, in) and B (..., out, r), whose products are what a weight is a stack of."""
        return self.flat(a, b)

    def whole_rank(self, r: int, shape: Shape) -> int:
        """Return the rank that a config says of an adapter whose `pairs` have rank r, on a weight of that shape."""
        return r

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Return weight + scaling * B A as a new tensor in the weight's own layout and dtype."""
        left, right = (a.mT, b.mT) if self.transposed else (b, a)
        return low_rank.add_product(weight, left, right, scaling)

    def down(self, layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
        """Return s = A x. The small factor is cast to x's dtype; x never is."""
        return F.linear(x, a.to(x.dtype))

    def add_up(self, y: Tensor, s: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Return y + scaling * B s; y may be written."""
        return linear.add_up(y, s, b, scaling)

    def channels(self, vector: Tensor, shape: Shape) -> Tensor:
        """Return an (out,) vector shaped to broadcast over the output of a layer whose weight has that shape."""
        return vector

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return what the kind believes the layer's forward to be, for probing subclasses."""
        return F.linear(x, self.matrix(layer.weight), layer.bias)

    def probe_input(self, layer: nn.Module) -> Tensor:
        """Return a small float64 input for `expected`."""
        return random_weight((2, self.matrix(layer.weight).shape[1]))

    def to_file(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B as PEFT's files hold them."""
        return a, b

    def from_file(self, a: Tensor, b: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Return A and B for a weight of that shape from what a file holds; as they are where they can be no such."""
        return a, b

    def vector_to_file(self, vector: Tensor, shape: Shape) -> Tensor:
        """Return an (out,) vector as PEFT's files hold it for a weight of that shape."""
        return vector

    def check(self, layer: nn.Module, name: str, r: int) -> None:
        """Raise TargetError where a layer of this kind cannot carry an adapter of rank r."""


def computed(module: nn.Module, name: str) -> Tensor | None:
    """Return what a module computes from other tensors in a parameter's place: pruned, normalised or parametrised."""
    parametrizations = module._modules.get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict) and name in parametrizations:
        return parametrizations[name]()
    value = module.__dict__.get(name)
    return value if isinstance(value, Tensor) else None


def is_packed(weight: Tensor) -> bool:
    """Tell whether a weight's numbers are a quantising library's affair: integers, few bits, or a class around both.

    Such a class (torchao's, quanto's) says that it holds floats; torch's own (a DTensor) hold them.
    """
    if not weight.is_floating_point() or weight.element_size() < 2:
        return True
    if type(weight) is nn.Parameter:
        return False
    return is_traceable_wrapper_subclass(weight) and not type(weight).__module__.startswith("torch.")


def random_weight(shape: Shape) -> Tensor:
    """Return float64 noise, the same every time, for probing."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
