"""The table of kinds, and which of them a layer or a raw parameter is.

To add one: write its class in a file beside this one and add a row to `KINDS`; the law suite runs over the table.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import TargetError
from .conv1d import Conv1DKind
from .convolution import ConvKind
from .embedding import EmbeddingKind
from .experts import ExpertsKind, TransposedExpertsKind
from .kind import Kind, Shape
from .packed import PackedKind, is_packed

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
    if is_packed(module):
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
