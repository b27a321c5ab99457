"""Linear layers whose weight is packed by a library that no file beside this one knows."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import TargetError
from .kind import Kind, Shape, is_packed


def keep_backward(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew in a first evaluation on a CPU.

    Where the CPU has AVX512-BF16, `Linear4bit.forward` would in eval mode: for good, into a form that has no backward
    and not all widths (0.50, `_convert_weight_packed_for_cpu`). A training that goes on would fail, or lose gradients.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class PackedKind(Kind):
    """A linear layer whose weight is not a plain float matrix (quantised): adapted from outside, never merged."""

    is_quantised = True
    within_weight = False

    def claims(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear):
            return isinstance(getattr(module, "qweight", None), Tensor) and hasattr(module, "in_features")
        weight = module._parameters.get("weight")
        if weight is None:
            return False
        # A tied head keeps its `out_features` when Transformers 5.0 resizes the vocabulary: its rows say nothing.
        return is_packed(weight) or weight.dim() != 2 or weight.shape[1] != module.in_features

    def knows_forward(self, cls: type[nn.Module]) -> bool:
        return True

    def weight_shape(self, module: nn.Module) -> Shape:
        return int(module.out_features), int(module.in_features)

    def numbers(self, layer: nn.Module, weight: Tensor) -> Tensor:
        raise TargetError(
            f"its weight is packed (quantised) in a way that is not known here (a {type(weight).__name__} in a "
            f"{type(layer).__name__}): it can be neither read nor merged into. Load the base in float "
            "(quantization_config=None)."
        )

    def matrix(self, weight: Tensor) -> Tensor:
        raise TargetError("its weight is packed (quantised) and cannot be read as a matrix; load the base in float.")

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        raise TargetError(
            "its weight is packed (quantised): nothing can be merged into it. "
            "Load the base in float (quantization_config=None)."
        )
