"""A base without its weights, for what asks its shapes alone: every tensor is one zero, seen in its full shape."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..files.sources import HUB_KWARGS
from .hooks import plainly


def hollow(cls: Any, config: PreTrainedConfig, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return a model of a class from its config alone, in eval mode; tied tensors are tied.

    cls: the class, or an auto class. kwargs: those of from_pretrained; those that are settings of the config are set.
    """
    for key, value in kwargs.items():
        if key not in (*HUB_KWARGS, "trust_remote_code") and hasattr(config, key):
            setattr(config, key, value)
    with torch.device("meta"), plainly():
        model: Any = (getattr(cls, "from_config", None) or cls._from_config)(config)
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                if tensor is not None:
                    store[key] = made[id(tensor)] = made.get(id(tensor), _zeros_like(tensor))
    return model.eval()


def _zeros_like(tensor: Tensor) -> Tensor:
    zeros = torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
    return nn.Parameter(zeros, requires_grad=False) if isinstance(tensor, nn.Parameter) else zeros
