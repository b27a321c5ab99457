"""What a format's reader is given, and what every format is read into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..files.sources import Source
from ..layers.layer import base_modules

Fit = Callable[[Mapping[str, nn.Module]], tuple[LoRAConfig, dict[str, Tensor]]]


@dataclass(frozen=True)
class Candidate:
    """What may be an adapter: where it lies, its adapter_config.json where there is one, the config of the caller."""

    source: Source
    where: str  # the config's path, for messages
    values: Mapping[str, Any] | None
    given: LoRAConfig | None
    ignore_unknown: bool = False  # keys of the config that nobody here knows


@dataclass(frozen=True)
class Contents:
    """An adapter as read: its config, its tensors by PEFT's names (on the CPU), the notes that hf_lora wrote.

    fit: where tensors have PEFT's names but not PEFT's shapes, what they stand for on a model's modules.
    """

    source: Source
    config: LoRAConfig
    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)
    fit: Fit | None = None

    def onto(self, model: nn.Module) -> Contents:
        """Return the same adapter for a model: tensors in PEFT's shapes, and the base's name where none is given.

        Raises ConfigError where the shapes can stand for several things.
        """
        config, tensors = self.config, self.tensors
        if self.fit is not None:
            config, tensors = self.fit(dict(base_modules(model)))
        if config.base_model_name_or_path is None:
            config = config.copy(base_model_name_or_path=getattr(model, "name_or_path", None) or None)
        return dataclasses.replace(self, config=config, tensors=tensors, fit=None)
