"""Starts that learn of data: what a few batches show of a base, before an adapter is added to it.

The base computes them as it is, without adapters, in evaluation mode: nothing is dropped, and nothing of it changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..config.lora_config import LoRAConfig
from ..config.rules import is_int, is_number, is_positive
from ..errors import ArgumentError, ConfigError
from ..layers.offload import brought_in
from ..targets.site import Site
from ..variants.adapter import Adapter
from ..variants.filling import DIRECTIONS, SCALES
from ..variants.initial import INITS
from .batches import Shown, as_a_base, batches_of
from .first_gradients import of_gradients
from .float_weights import of_weights
from .layer_inputs import of_inputs

_RULES: dict[str, Callable[[Any], bool]] = {
    "loftq_iter": lambda v: is_int(v) and v == 1,
    "rho": lambda v: is_number(v) and v >= 1,
    "tau": lambda v: is_number(v) and 0 <= v <= 1,
    "label_mask_value": lambda v: is_int(v, -math.inf),
    "direction": lambda v: v in DIRECTIONS,
    "scale": lambda v: v in SCALES,
    "stable_gamma": is_positive,
}


_WANTED = {
    "inputs": "a few batches as the model takes them",
    "gradients": "a few batches as the model takes them, with labels",
    "weights": "the model before it was quantised (or its weights by name)",
}


def check(config: LoRAConfig, data: Any) -> None:
    """Raise ConfigError or ArgumentError where a start lacks its data, or no start reads the data or the settings."""
    own, start = INITS[config.init_lora_weights].data, f"init_lora_weights={config.init_lora_weights!r}"
    for key in {row.data.key for row in INITS.values() if row.data}:
        given = getattr(config, key)
        if not given:
            continue
        if own is None or own.key != key:
            raise ConfigError(f"{key}={given!r} has no effect with {start}; leave one of them out.")
        wrong = [
            f"{name}={value!r}"
            for name, value in given.items()
            if name not in own.settings or not _RULES.get(name, lambda v: isinstance(v, bool))(value)
        ]
        if wrong:
            raise ConfigError(f"{key}: {', '.join(wrong)}; its settings, at their defaults, are {dict(own.settings)}.")
    if own is not None and data is None:
        raise ConfigError(
            f"{start} starts from data: pass {_WANTED[own.reads]} where the adapter is added, "
            "LoRAModel.from_model(model, config, data=...)."
        )
    if own is None and data is not None:
        raise ArgumentError(f"data= has no effect with {start}, which reads none; leave it out.")


def look(
    model: Any, modules: Mapping[str, nn.Module], config: LoRAConfig, sites: Sequence[Site], data: Any
) -> tuple[LoRAConfig, Shown]:
    """Return a config with the ranks that the data asks for, and what was seen for each place.

    data: batches (a Mapping of the forward's arguments, a tuple of them, one tensor, or a function of the model), or a
    function of the model that returns them. For a start from weights, a module of the same names or their tensors.
    Raises ConfigError or ArgumentError where they do not do, TargetError where a layer shows nothing.
    """
    start = INITS[config.init_lora_weights].data
    assert start is not None
    own = [site for site in sites if site.row.low_rank and site.init == config.init_lora_weights]
    settings = start.settings_of(config)
    config = config.copy(**{start.key: settings})
    if start.reads == "weights":
        return config, of_weights(own or [site for site in sites if site.row.low_rank], data)
    batches = batches_of(model, data)
    with as_a_base(model):
        if start.reads == "inputs":
            return of_inputs(model, modules, config, own, batches, settings)
        return config, of_gradients(model, modules, own, list(batches))


def learn(
    modules: Mapping[str, nn.Module],
    config: LoRAConfig,
    groups: Mapping[str, Mapping[str, tuple[Site, Adapter]]],
    seen: Shown,
) -> None:
    """Have adapters that were initialised begin with what was seen for them."""
    start = INITS[config.init_lora_weights].data
    for module, group in groups.items() if start is not None else ():
        with brought_in(modules[module]):
            for site, adapter in group.values():
                if (found := seen.get((module, site.parameter))) is not None and site.row.low_rank:
                    adapter.learn(modules[module], found, start.settings_of(config))  # type: ignore[operator, union-attr]
