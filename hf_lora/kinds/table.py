"""The table of kinds, and which of them a layer or a raw parameter is.

To add one: write its class in a file beside this one and add a row to `KINDS`; the law suite runs over the table.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import TargetError
from .bitsandbytes import EightBitKind, FourBitKind
from .convolution import ConvKind, GroupedConvKind
from .experts import ExpertsKind, TransposedExpertsKind
from .kind import Kind, is_packed
from .linear import Conv1DKind, EmbeddingKind, LinearKind
from .packed import PackedKind
from .quanto import QuantoKind
from .torchao import TorchAoKind

# In the order in which they are asked whether a layer is theirs: a quantised layer may be a linear one by its class.
KINDS: dict[str, Kind] = {
    "bitsandbytes_4bit": FourBitKind(),
    "bitsandbytes_8bit": EightBitKind(),
    "torchao": TorchAoKind(),
    "quanto": QuantoKind(),
    "packed": PackedKind(),
    "linear": LinearKind(),
    "conv1d": Conv1DKind(),
    "embedding": EmbeddingKind(),
    "grouped_conv": GroupedConvKind(),
    "conv": ConvKind(),
    "experts": ExpertsKind(),
    "experts_t": TransposedExpertsKind(),
}


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a layer whose `weight` can carry an adapter, or None."""
    return next((kind for kind in KINDS.values() if kind.claims(module)), None)


def name_of(kind: Kind) -> str:
    """Return the name of a kind's row."""
    return next(name for name, row in KINDS.items() if row is kind)


def parameter_kind(owner: nn.Module, parameter: Tensor, name: str) -> Kind:
    """Return the kind of a raw parameter: 2-D is (out, in), 3-D a stack of experts.

    Which way round a stack lies is the owner's `is_transposed`, Transformers' own flag and the one PEFT reads.
    """
    if is_packed(parameter):
        what = f"{parameter.dtype} in a {type(parameter).__name__}"
        raise TargetError(f"{name} holds {what}: a packed (quantised) parameter cannot be adapted.")
    kind = next((kind for kind in KINDS.values() if kind.claims_parameter(owner, parameter)), None)
    if kind is None:
        raise TargetError(f"{name} has shape {tuple(parameter.shape)}; only 2-D and 3-D parameters can be adapted.")
    return kind
