"""What to know before using an adapter: findings of seven kinds, each of which changes what somebody would do.

Nothing is loaded, so that what only values show (a zero lora_B, a number that is not finite) is not found here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...config.keys import PRESETS
from ...config.lora_config import LoRAConfig
from ...errors import ConfigError, some
from ...files.names import CONFIG_NAME
from ...files.privacy import hub_id
from ...targets.names import listed_modules, match_names
from ...variants.table import FORMULAS, is_on
from ..keys import unwrapped
from ..opening import MERGED_KEYS
from .layout import Layout, Parts, Target, ranks_of

__all__ = ["Finding", "of_base", "of_config", "of_coverage", "of_tensors"]


class Finding(NamedTuple):
    """One thing to know: its kind, for programs; a sentence; whether the adapter cannot be used because of it."""

    code: str
    text: str
    fatal: bool = False


def of_config(values: Mapping[str, Any] | None) -> tuple[LoRAConfig | None, list[Finding]]:
    """Return PEFT's config, None where it is none that loads, and what is wrong with it."""
    if values is None:
        return None, [Finding("config", f"there is no {CONFIG_NAME}: nothing says the scaling, or the base")]
    values = {key: value for key, value in values.items() if key not in MERGED_KEYS}
    try:
        return LoRAConfig.from_dict(values, CONFIG_NAME), []
    except ConfigError as error:
        problem = str(error)
    try:
        return LoRAConfig.from_dict(values, CONFIG_NAME, ignore_unknown=True), [Finding("unknown-keys", problem)]
    except ConfigError as error:
        return None, [Finding("config", str(error), True)]


def of_base(base: Any) -> Iterator[Finding]:
    """Yield where the config names no base that others could load."""
    if not isinstance(base, str | None) or hub_id(base) is None:
        told = f"the base {base!r} is a path, which others do not have" if base else "the config names no base"
        yield Finding("base", f"{told}; give its Hub id by hand (base_model=...)")


def of_tensors(layout: Layout, config: LoRAConfig | None, may_be_merged: bool) -> Iterator[Finding]:
    """Yield where a file's tensors fit neither each other nor the config, so that loading would refuse them.

    may_be_merged: whether an A may be several, of one B each (loralib's MergedLinear).
    """
    problems = [] if layout.adapted else ["the file holds no low-rank tensors"]
    are_experts = config is not None and bool(config.target_parameters)
    for path, parts in layout.adapted.items():
        module = unwrapped(path)[0]
        wanted = config.rank_of(module) if config and layout.names == "PEFT" else 0
        if found := _misfit(parts, wanted, are_experts, may_be_merged):
            problems.append(f"{module} {found}")
    for row in FORMULAS.values() if config is not None else ():
        held, of, asked = layout.holding(row), len(layout.adapted), is_on(config, row.switch)
        if row.own_tensor and held != (of if asked else 0):
            problems.append(f"{held} of {of} layers have {row.own_tensor}, but {row.switch} is {asked!r}")
    if problems:
        yield Finding("tensors", some(problems, between="; "), True)


def _misfit(parts: Parts, wanted: int, are_experts: bool, may_be_merged: bool) -> str:
    """Return what is wrong with the tensors of one adapted parameter. wanted: the config's rank, 0 for any."""
    ranks = ranks_of(parts)
    if not {"lora_A", "lora_B"} <= parts.keys():
        return f"has only {' and '.join(sorted(parts))}"
    if any(0 in entry.shape for entry in parts.values()):
        return "is empty, as the shard of a run that saved no whole adapter"
    if not ranks:
        return "has an A and a B without a rank"
    a, b = ranks[0], ranks[-1]
    if a != b and (a % b or not may_be_merged):
        return f"has an A and a B of the ranks {sorted(ranks)}"
    if not wanted or b == wanted or (are_experts and b % wanted == 0):
        return ""
    return f"has rank {b}, but the config says {wanted}"


def of_coverage(layout: Layout, config: LoRAConfig | None) -> Iterator[Finding]:
    """Yield which layers lack a target that others have, and what the config names and the file lacks."""
    chosen = config.layers_to_transform if config is not None else None
    lacking = [*_uneven(layout.targets(), {chosen} if isinstance(chosen, int) else set(chosen or ()))]
    if config is not None and config.target_modules and config.target_modules not in PRESETS:
        spec, held = config.target_modules, [unwrapped(path)[0] for path in layout.adapted]
        if isinstance(spec, str):
            absent = [] if listed_modules(config, held) else [spec]
        else:
            absent = [name for name in spec if not match_names([name], held)]
        lacking += [f"nothing of target_modules {some(absent)}"] if absent else []
    if config is not None and config.modules_to_save and not layout.saved:
        lacking.append(f"nothing of modules_to_save {some(config.modules_to_save)}")
    if lacking:
        yield Finding("coverage", f"the file holds {some(lacking, between='; ')}")


def _uneven(targets: Sequence[Target], chosen: set[int]) -> Iterator[str]:
    """Yield the targets that some of the chosen layers (all where there are none) lack.

    A layer of another build (linear attention, a state space, experts) holds a target that these others lack: that is
    not odd, nor is what recurs.
    """
    for target in targets:
        stack = target.name.partition("*")[0]
        others = [set(t.layers) for t in targets if t.name.partition("*")[0] == stack]
        elsewhere = set().union(*(held for held in others if not held & set(target.layers)))
        absent = (chosen or set(range(target.of))) - set(target.layers) - elsewhere
        if target.layers and absent and not _is_regular(target.layers, target.of):
            yield f"no {target.name} of layer {some(sorted(absent))}"


def _is_regular(layers: Sequence[int], of: int) -> bool:
    """Return whether some layers recur with a period, as in models that mix kinds of layers."""
    held = set(layers)
    periods = range(2, min(of // 2, 16) + 1)
    return any(all((i in held) == (i % period in held) for i in range(of)) for period in periods)
