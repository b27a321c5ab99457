"""Linear layers that hold their weight by two factors, and the class of a model that is saved with some of them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError, some
from ..kinds.table import kind_of
from .base_config import BaseConfig

RANKS = "low_rank"  # of a model's config: module -> rank


class LowRankLinear(nn.Module):
    """x A' B' + bias in the place of a linear layer, whose weight is B A.

    down.weight: A (r, in); up.weight: B (out, r), with the layer's bias.
    """

    def __init__(
        self, in_features: int, out_features: int, r: int, bias: bool, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.down = nn.Linear(in_features, r, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(r, out_features, bias=bias, device=device, dtype=dtype)

    @property
    def weight(self) -> Tensor:
        """B A, (out, in): a new tensor at each read, for code that reads a weight instead of calling its layer."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, (out,)."""
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, (..., out), for an input (..., in)."""
        return self.up(self.down(x))


def class_as_saved(cls: Any, config: BaseConfig) -> Any:
    """Return the class to load a base as: one that makes low-rank layers where its config says so, else `cls`."""
    own_ranks = config.setting(RANKS)
    if not isinstance(own_ranks, Mapping):
        return cls
    mapping = getattr(cls, "_model_mapping", None)
    if mapping is not None:
        cls = mapping[type(config.whole)]
        cls = cls[0] if isinstance(cls, tuple) else cls

    class Compressed(cls):
        """The class, with the layers that the config names by two factors."""

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            there, prefix = {name for name, _ in self.named_modules()}, self.base_model_prefix
            before = len(there)
            for noted, rank in own_ranks.items():
                # Names are those of the class that was compressed: a head may have come around it, or gone.
                around, bare = f"{prefix}.{noted}", noted.removeprefix(f"{prefix}.")
                name = next((each for each in (noted, around, bare) if each in there), None)
                if name is None:  # a layer of that class's own head
                    continue
                layer: Any = self.get_submodule(name)
                kind: Any = kind_of(layer)
                out, in_ = kind.matrix(layer.weight).shape
                own = {"device": layer.weight.device, "dtype": layer.weight.dtype}
                put(self, name, LowRankLinear(in_, out, rank, layer.bias is not None, **own))
                there |= {f"{name}.down", f"{name}.up"}  # which may be compressed in turn
            if len(there) == before:
                raise ModelError(f"none of the compressed layers, {some(own_ranks)}, is in a {type(self).__name__}.")

    Compressed.__name__, Compressed.__qualname__, Compressed.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return Compressed


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of a model's."""
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, layer)
