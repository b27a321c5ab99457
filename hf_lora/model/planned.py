"""A LoRAModel without weights: what an adapter would be, from a base's config alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import BaseLoadError, LoRAError
from .base_config import BaseConfig
from .bases import WITHOUT_LABELS, model_class
from .hooks import NEW, plainly
from .lora_model import LoRAModel


def planned(
    name: str, target_modules: str | Sequence[str], r: int, auto_class: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Return a LoRAModel on the meta device, whose fresh adapter has the shapes of one on the real base.

    name: the base's id on the Hub or its folder, of which the config alone is read. auto_class: what to load it as; its
    checkpoint's own class unless given. settings: of the LoRAConfig. Raises ConfigError, TargetError, ModelError.
    """
    config = LoRAConfig(r=r, target_modules=target_modules, **(settings or {}))
    return LoRAModel.from_model(_empty(name, auto_class), config)


def _empty(name: str, auto_class: str | None) -> nn.Module:
    """Return a base on the meta device, on which the head is noted as new that its checkpoint does not have."""
    try:
        base = BaseConfig(name, {})
        config, cls = base.whole, model_class(base, None, auto_class, {})
        with torch.device("meta"), plainly():
            model = (getattr(cls, "from_config", None) or cls._from_config)(config)
    except LoRAError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        told = " ".join(str(error).split())
        raise BaseLoadError(f"the config of {name!r} cannot be read: {type(error).__name__}: {told}") from error
    own = type(model).__name__
    if own not in (config.architectures or [own]) and not own.endswith(WITHOUT_LABELS):
        trunk = f"{model.base_model_prefix}."
        model.__dict__[NEW] = frozenset(n for n, _ in model.named_parameters() if not n.startswith(trunk))
    return model
