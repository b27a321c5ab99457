"""What to know before using an adapter: findings of seven kinds, each of which changes what somebody would do.

Whether loading opens the adapter is one that `inspecting` finds; here is what shows without the base besides.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ...config.keys import PRESETS
from ...config.lora_config import LoRAConfig
from ...config.tasks import TASKS
from ...errors import beginnings, some
from ...files.privacy import hub_id
from ...targets.names import saved_modules
from ...variants.table import FORMULAS, is_on
from ..keys import unwrapped
from .layout import Layout, Parts, Target, ranks_of

_MOST_COMPARED = 10_000_000  # layers of targets with those of others; models have less than a hundredth


class Finding(NamedTuple):
    """One thing to know: its kind, for programs; a sentence; whether the adapter cannot be used because of it."""

    code: str
    text: str
    fatal: bool = False


def of_base(base: Any) -> Iterator[Finding]:
    """Yield where the config names no base that others could load."""
    if isinstance(base, str | None) and hub_id(base) is None:  # any other value is refused with the config
        told = f"the base {base!r} is a path, which others do not have" if base else "the config names no base"
        yield Finding("base", f"{told}; give its Hub id by hand (base_model=...)")


def of_tensors(layout: Layout, config: LoRAConfig | None, may_be_merged: bool) -> Iterator[Finding]:
    """Yield where a file's tensors fit neither each other nor the config, so that loading would refuse them.

    may_be_merged: whether an A may be several, of one B each (loralib's MergedLinear).
    """
    problems = [] if layout.adapted else ["the file holds no low-rank tensors"]
    are_experts = config is not None and bool(config.target_parameters)
    needed = layout.formula({} if config is None else config).needed
    for path, parts in layout.adapted.items():
        module = unwrapped(path)[0]
        wanted = config.rank_of(module) if config and layout.names == "PEFT" else 0
        if found := _misfit(parts, needed, wanted, are_experts, may_be_merged):
            problems.append(f"{module} {found}")
    for row in FORMULAS.values() if config is not None else ():
        held, of, asked = layout.holding(row), len(layout.adapted), is_on(config, row.switch)
        if row.own_tensor and held != (of if asked else 0):
            problems.append(f"{held} of {of} layers have {row.own_tensor}, but {row.switch} is {asked!r}")
    if problems:
        yield Finding("tensors", some(problems, between="; "), True)


def _misfit(parts: Parts, needed: set[str], wanted: int, are_experts: bool, may_be_merged: bool) -> str:
    """Return what is wrong with the tensors of one adapted parameter. wanted: the config's rank, 0 for any."""
    ranks = ranks_of(parts)
    if not needed <= parts.keys():
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
    """Yield what the config names and the file lacks, and which layers lack a target that others have.

    A model that has what is named is refused; whether it has the layers, only the base tells.
    """
    chosen = config.layers_to_transform if config is not None else None
    lacking = [*_uneven(layout.targets(), {chosen} if isinstance(chosen, int) else set(chosen or ()))]
    if config is not None:
        held = list(dict.fromkeys(unwrapped(path)[0] for path in layout.adapted))
        absent = {"target_modules": _without_tensors(config, held), "modules_to_save": _unsaved(config, layout)}
        if told := [f"{field} {some(names)}" for field, names in absent.items() if names]:
            yield Finding("coverage", f"the file holds nothing of {' and of '.join(told)}, which their model has", True)
        if strays := _strays(config, held):
            lacking.append(f"{some(strays)}, which target_modules {config.target_modules!r} does not match")
    if lacking:
        yield Finding("coverage", f"the file holds {some(lacking, between='; ')}")


def _without_tensors(config: LoRAConfig, held: Sequence[str]) -> list[str]:
    """Return the entries of target_modules that end no adapted module's name on whole words."""
    spec = config.target_modules
    ends = sorted(name[::-1] for name in held)

    def is_held(entry: str) -> bool:
        whole, inside = entry[::-1], f"{entry[::-1]}."
        at = [ends[i] for part in (whole, inside) if (i := bisect_left(ends, part)) < len(ends)]
        return any(end == whole or end.startswith(inside) for end in at)

    return [] if spec is None or isinstance(spec, str) else [entry for entry in spec if not is_held(entry)]


def _unsaved(config: LoRAConfig, layout: Layout) -> list[str]:
    """Return the entries of modules_to_save without a tensor; of the heads that PEFT adds for a task one is enough."""
    names = list(dict.fromkeys(name for saved in layout.saved for name in beginnings(saved)))
    named = config.modules_to_save or []
    saved = {entry for entry in named if saved_modules([entry], names)}
    saved |= {head for task in TASKS for head in task.heads if saved & {*task.heads}}
    return [entry for entry in named if entry not in saved]


def _strays(config: LoRAConfig, held: Sequence[str]) -> list[str]:
    """Return the adapted modules that an expression matches neither themselves nor as what holds them."""
    spec = config.target_modules
    if not isinstance(spec, str) or spec in PRESETS or config.target_parameters:
        return []
    return [n for n in held if not re.fullmatch(spec, n) and not re.fullmatch(spec, n.rpartition(".")[0])]


def _uneven(targets: Sequence[Target], chosen: set[int]) -> Iterator[str]:
    """Yield the targets that some of the chosen layers (all where there are none) lack."""
    # A layer of another build (linear attention, a state space, experts) holds a target that these others lack: that is
    # not odd, nor is what recurs.
    stacks: dict[str, list[Target]] = defaultdict(list)
    for target in targets:
        stacks[target.name.partition("*")[0]].append(target)
    if sum(len(stack) ** 2 * stack[0].of for stack in stacks.values()) > _MOST_COMPARED:
        return
    for target in targets:
        others = [set(t.layers) for t in stacks[target.name.partition("*")[0]]]
        elsewhere = set().union(*(held for held in others if not held & set(target.layers)))
        absent = (chosen or set(range(target.of))) - set(target.layers) - elsewhere
        if target.layers and absent and not _is_regular(target.layers, target.of):
            yield f"no {target.name} of layer {some(sorted(absent))}"


def _is_regular(layers: Sequence[int], of: int) -> bool:
    """Return whether some layers recur with a period, as in models that mix kinds of layers."""
    held = set(layers)
    periods = range(2, min(of // 2, 16) + 1)
    return any(all((i in held) == (i % period in held) for i in range(of)) for period in periods)
