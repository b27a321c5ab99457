"""What a quantised base was before: the float weights of the layers that start from them (LoftQ).

Li et al. 2023, arXiv:2310.08659.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ArgumentError, ConfigError, TargetError, full_name, some
from ..kinds.table import KINDS
from ..targets.site import Site
from .batches import Shown


def of_weights(sites: list[Site], data: Any) -> Shown:
    """Return the float weight of each place, (out, in).

    data: a module whose names are the base's, or its tensors by name. Raises ArgumentError for anything else,
    TargetError for a layer that is not quantised, ConfigError where a weight is missing or of another shape.
    """
    if not isinstance(data, nn.Module | Mapping):
        raise ArgumentError(
            f"data= is a {type(data).__name__}: a start from weights takes the model before it was quantised, or its "
            "weights by name."
        )
    if whole := [s.module for s in sites if not KINDS[s.kind].is_quantised]:
        raise TargetError(
            f"{some(whole)}: not quantised, so that there is no rounding to start from. Use init_lora_weights=True or "
            "name the layer in exclude_modules."
        )
    held = dict(data.named_parameters()) if isinstance(data, nn.Module) else data
    found: Shown = {}
    for site in sites:
        name = full_name(site.module, site.parameter)
        weight = held.get(name)
        shape = None if weight is None else tuple(weight.shape)
        if weight is None or shape != tuple(site.shape) or not weight.is_floating_point() or weight.is_meta:
            raise ConfigError(
                f"data= has {shape} for {name}, which is {tuple(site.shape)} in float; give that model's."
            )
        found[site.module, site.parameter] = (weight.detach(),)
    return found
