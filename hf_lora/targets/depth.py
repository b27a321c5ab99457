"""Layer numbers that are counted from the end (-1 is the last one), made the ones that PEFT's files know."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import TargetError
from .names import find_targets, layer_of

__all__ = ["settle_layers"]


def settle_layers(model: nn.Module, config: LoRAConfig, modules: Mapping[str, nn.Module]) -> LoRAConfig:
    """Return a config whose layers_to_transform are numbers of layers that the model has, none of them negative.

    modules: the model's own, by full name. Raises TargetError for a layer that there is not, and for a negative number
    where the targets are in stacks of different depth, so that it would mean two layers.
    """
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return config
    numbers = [wanted] if isinstance(wanted, int) else list(wanted)
    targets, _ = find_targets(model, config.copy(layers_to_transform=None, layers_pattern=None), modules)
    stacks = {place[0] for name in targets if (place := layer_of(config, name))}
    depths = dict.fromkeys(stacks, 0)
    for name in modules:
        place = layer_of(config, f"{name}.")
        if place and place[0] in depths:
            depths[place[0]] = max(depths[place[0]], place[1] + 1)
    deepest = max(depths.values(), default=0)
    said = ", ".join(f"{depth} in {stack}" for stack, depth in sorted(depths.items())) or "none with a target"
    if bad := [n for n in numbers if not -deepest <= n < deepest]:
        raise TargetError(f"layers_to_transform={wanted!r}: {bad} are no layers of {type(model).__name__} ({said}).")
    if min(numbers) >= 0:
        return config
    if len(set(depths.values())) > 1:
        raise TargetError(
            f"layers_to_transform={wanted!r} counts from the end, which is not the same layer everywhere in "
            f"{type(model).__name__} ({said}). Write the numbers from the front, or choose a stack by layers_pattern."
        )
    settled = sorted({n % deepest for n in numbers})
    return config.copy(layers_to_transform=settled[0] if isinstance(wanted, int) else settled)
