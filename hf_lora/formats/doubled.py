"""A warning where PEFT trained an adapter on an attention's output projection, whose update it adds twice.

Its forward of an adapted `nn.MultiheadAttention` adds the output projection's update twice (0.21.2,
tuners/lora/layer.py: merged by hand, and again by `out_proj.merge`). What is added here is what the file says, once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import nn

from ..config.lora_config import LoRAConfig
from ..wording import some

__all__ = ["warn_of_doubled_updates"]


def warn_of_doubled_updates(modules: Mapping[str, nn.Module], config: LoRAConfig, adapted: Iterable[str]) -> None:
    """Warn where an adapter that PEFT wrote adapts an attention's output projection; adapted: modules by full name."""
    version = config.other.get("peft_version")
    if not version:  # hf_lora writes none
        return
    found = [
        name
        for name in dict.fromkeys(adapted)
        if name.endswith("out_proj") and isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]
    if found:
        warnings.warn(
            f"this adapter comes from PEFT {version}, whose forward adds the update of {some(found, 1)} twice (the "
            "output projection of an nn.MultiheadAttention); here it is added once, as the formula says. Double that "
            "lora_B to get the outputs that PEFT's forward gave.",
            stacklevel=4,
        )
