"""What the first steps of a training tell: adapters without a gradient, and adapters that no optimizer holds.

The optimizer's own step asks, whoever calls it, in a Trainer and in a loop of one's own. Each adapter is asked about
once; afterwards a step finds nobody waiting.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from ..errors import full_name, numberless, some
from ..layers.state import AdapterState
from ..variants.adapter import Adapter

# LoRAModels whose adapters have taken no step yet, and whether another optimizer stepped while they had gradients.
_WAITING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
# How many each optimizer took since somebody waits; below zero where none of its parameters had a gradient so far.
_STEPS: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
# By this step another optimizer of the same loop has had its turn (a generator's after five of a critic's), and a
# warm-up's rate is above zero.
_ENOUGH = 6
Trained = dict[int, tuple[str, Adapter, nn.Parameter]]
# What steps should move, of those that wait: looked up once, since there may be an optimizer for each parameter.
_TRAINED: WeakKeyDictionary[Any, Trained] = WeakKeyDictionary()


def wait(model: Any) -> None:
    """Have the next steps of any optimizer tell what of a LoRAModel's adapters does not train.

    Warns then of adapters, saved modules and token rows without a gradient in the first step of an optimizer that
    holds them, and of those that have gradients when no optimizer that steps holds them.
    """
    _TRAINED.pop(model, None)
    if _unasked(model._lora):
        _WAITING[model] = False
        _STEPS.clear()
        _listen()


def steps_went_by(model: Any) -> bool:
    """Tell whether an optimizer stepped while a LoRAModel had gradients, and none so far that holds its adapters."""
    return _WAITING.get(model, False)


@cache
def _listen() -> None:
    """Have every optimizer's step call `_ask` first, in this process and for good: torch walks over its hooks there."""
    register_optimizer_step_pre_hook(_ask)


def _unasked(state: AdapterState) -> list[str]:
    """Return the adapters that should train, selected or not, and that no step was asked about."""
    trained = ((n, r) for n, r in state.records.items() if r.trainable and (r.trains_in_rows or n in state.selected))
    return [name for name, record in trained if not record.is_asked]


def _ask(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not _WAITING or torch.compiler.is_compiling():
        return
    before = _STEPS.get(optimizer, 0)
    if before == _ENOUGH:
        return
    count, waited = abs(before) + 1, before <= 0
    has = not waited or any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
    _STEPS[optimizer] = count if has or count == _ENOUGH else -count
    # A step before any backward tells nothing, nor does one whose closure computes the gradients inside of it.
    is_closed = any(callable(each) for each in (*args[1:], *kwargs.values()))
    is_first = waited and (has or (count == _ENOUGH and not is_closed))
    if is_first or count in (1, _ENOUGH):
        for model in tuple(_WAITING):
            _look(model, optimizer, is_first, count == _ENOUGH)


def _look(model: Any, optimizer: Optimizer, is_first: bool, is_last: bool) -> None:
    state: AdapterState | None = model.__dict__.get("_lora")
    if state is None:  # its adapters are gone
        _forget(model)
        return
    if is_last or model not in _TRAINED:
        _TRAINED[model] = dict(_trained(state))
    trained = _TRAINED[model]
    elsewhere = trained.keys() - _ids(_STEPS)
    if is_first and (mine := trained.keys() & _ids([optimizer])):
        _tell_dead(model, {key: trained[key] for key in mine})
        _tell_unkept({trained[key][1] for key in mine})
    left = [trained[key] for key in elsewhere if trained[key][2].grad is not None]
    if not is_last and (elsewhere or not is_first):
        _WAITING[model] = _WAITING[model] or bool(left)
        return
    if left or not elsewhere:
        _forget(model)
        for name in _unasked(state):
            state.records[name].is_asked = True
    _tell_left_out(left)


def _forget(model: Any) -> None:
    _WAITING.pop(model, None)
    _TRAINED.pop(model, None)


def _ids(optimizers: Iterable[Optimizer]) -> set[int]:
    return {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}


def _trained(state: AdapterState) -> Iterator[tuple[int, tuple[str, Adapter, nn.Parameter]]]:
    """Yield the parameters that a step should move, with what each adapts; a shard without entries has no gradient."""
    for module, _, _, adapter in state.carried(*_unasked(state)):
        is_weight = adapter.low_rank and adapter.parameter == "weight"
        place = module if is_weight else full_name(module, adapter.parameter)
        for p in adapter.parameters():
            if p.requires_grad and p.numel() and not p.is_meta:
                yield id(p), (place, adapter, p)


def _tell_dead(model: nn.Module, trained: Trained) -> None:
    """Warn of adapters without a gradient, except where chance decides, as among experts, and spared a sibling."""
    if all(p.grad is not None for _, _, p in trained.values()):
        return
    by_chance = _skips_layers(model)
    alive = {_sibling(name, by_chance) for name, _, p in trained.values() if p.grad is not None}
    dead = sorted({name for name, _, p in trained.values() if p.grad is None})
    if names := [name for name in dead if _sibling(name, by_chance) not in alive]:
        warnings.warn(
            f"{len(names)} adapters got no gradient in the first step: {some(names)}. Where the model never calls a "
            "layer, or makes no use of its output, its adapter stays as it began; leave it out (exclude_modules). "
            "Where only this batch had nothing for it, as one without images, nothing is wrong.",
            stacklevel=5,
        )


def _tell_unkept(adapters: Iterable[Adapter]) -> None:
    """Warn of adapters that nobody keeps the budget of, which is a setting of theirs."""
    if unkept := [each for each in adapters if each.row.budget and not each.is_kept]:
        warnings.warn(
            f"{len(unkept)} adapters are {unkept[0].row.title}, and nobody keeps their budget: all components stay. A "
            "Trainer of the LoRAModel keeps it; in a loop of your own take plain LoRA, and truncate() it at the end.",
            stacklevel=5,
        )


def _sibling(name: str, by_chance: bool) -> str:
    return numberless(name) if by_chance else re.sub(r"(experts?)[._]?\d+", r"\1.*", name)


def _skips_layers(model: nn.Module) -> bool:
    """Tell whether a model leaves out layers at random in training (LayerDrop)."""
    holders = (each for m in model.modules() for each in (m, m.__dict__.get("config")) if each is not None)
    settings = (item for each in holders for item in getattr(each, "__dict__", {}).items())
    return any("layerdrop" in k.replace("_", "") and isinstance(v, float) and v > 0 for k, v in settings)


def _tell_left_out(left: list[tuple[str, Adapter, nn.Parameter]]) -> None:
    """Warn of adapters that get gradients and were not moved; those that a copy's optimizer moves are not concerned."""
    idle = [(name, adapter) for name, adapter, _ in left if adapter.is_idle()]
    if names := sorted({name for name, _ in idle}):
        for _, adapter in idle:
            adapter.note_steps(_ENOUGH)  # a save refuses them then
        warnings.warn(
            f"{len(names)} adapters get gradients, and no optimizer that steps holds them, so they do not train: "
            f"{some(names)}. Build the optimizer after adding, loading or choosing adapters, of this model's "
            "parameters; check_optimizer(model, optimizer) says so before the first step.",
            stacklevel=5,
        )
