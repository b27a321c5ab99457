"""Parameter groups: which learning rate each parameter that trains gets, and whether it is decayed; and their check.

Weight decay falls on weights: factors, copies of weights and what trains of the base, but not on biases, norms and the
vectors that a formula has besides, whatever their names are.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import AdapterStateError, ConfigError, some
from ..layers.layer import LoRALayer
from ..layers.rates import LearningRates, check_rate
from ..layers.specialising import base_of
from ..targets.names import is_saved
from ..variants.adapter import Adapter
from ..variants.row import Part
from .ready import check_trains, states_of

_SETTINGS: dict[Part, str] = {
    "B": "loraplus_lr_ratio",
    "embedding": "loraplus_lr_embedding",
    "head": "head_learning_rate",
}
_MEANT = {
    "loraplus_lr_ratio": "a B of a LoRA adapter outside embeddings",
    "loraplus_lr_embedding": "an adapter on an embedding",
    "head_learning_rate": "a module in modules_to_save, or a parameter of the base",
}


class Role(NamedTuple):
    """What a parameter is to its optimizer."""

    part: Part
    decays: bool


def parameter_groups(model: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Return the groups to build an optimizer of, for a training loop of one's own: params, lr, weight_decay.

    Every parameter that requires a gradient is in one of them, at its rate of `model.set_learning_rates`, or else at
    learning_rate; biases, norms and a formula's own vectors are not decayed. The order is the same in every process.
    The stock Trainer does the same by itself.
    Raises ConfigError for a rate that is no positive number or that nothing would take, AdapterStateError where nothing
    would train.

    >>> import torch
    >>> from hf_lora import LoRAConfig, add_lora
    >>> model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(target_modules=["0"], bias="all"))
    >>> model.set_learning_rates(loraplus_lr_ratio=16)
    >>> optimizer = torch.optim.AdamW(parameter_groups(model, 0.001, weight_decay=0.1))
    >>> [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    [(0.001, 0.1, 1), (0.016, 0.1, 1), (0.001, 0.0, 1)]
    """
    problems = check_rate("learning_rate", learning_rate)
    if problems := problems + check_rate("weight_decay", weight_decay or None, optional=True):
        raise ConfigError(f"parameter_groups: {' '.join(problems)}")
    check_trains(model)
    roles, rates = roles_of(model), rates_of(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    _check_taken(rates, {roles[id(p)].part for p in trained})
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for p in trained:
        part, decays = roles[id(p)]
        rate = _rate(rates, part, learning_rate)
        found.setdefault((not decays, rate), []).append(p)
    return [
        {"params": found[key], "lr": key[1], "weight_decay": 0.0 if key[0] else weight_decay} for key in sorted(found)
    ]


def regroup(model: nn.Module, optimizer: Optimizer, decays: bool = True) -> None:
    """Split the groups of an optimizer in place, so that they are the ones that `parameter_groups` stands for.

    optimizer: just built, without state and schedule, with one rate. Every group's other options are kept, and a group
    that is right as it is stays itself. decays: whether weight decay goes by role too, or is somebody's own choice.
    Raises ConfigError for a rate that nothing would take, or that has no meaning.
    """
    roles, rates = roles_of(model), rates_of(model)
    _check_taken(rates, {roles[id(p)].part for g in optimizer.param_groups for p in g["params"] if id(p) in roles})
    if rates and any(group.get("lr") is None for group in optimizer.param_groups):
        raise ConfigError(
            f"{rates}: this {type(optimizer).__name__} finds its learning rate by itself, so there is none to differ "
            "from. Give it one (for Adafactor relative_step=False), or call set_learning_rates()."
        )
    decay = max((group.get("weight_decay", 0.0) for group in optimizer.param_groups), default=0.0) if decays else None
    optimizer.param_groups[:] = [
        part for group in optimizer.param_groups for part in _split(group, roles, rates, decay)
    ]


def _split(
    group: dict[str, Any], roles: dict[int, Role], rates: LearningRates, decay: float | None
) -> Iterator[dict[str, Any]]:
    """Yield a group's parts, each with the options of the group but for those that its parameters' role changes."""
    parts: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for index, p in enumerate(group["params"]):
        options = dict[str, Any]()
        if role := roles.get(id(p)):
            options["lr"] = _rate(rates, role.part, group.get("lr"))
            if decay is not None and "weight_decay" in group:
                options["weight_decay"] = (group["weight_decay"] or decay) if role.decays else 0.0
        changed = tuple((k, v) for k, v in options.items() if v is not group.get(k) and v != group.get(k))
        parts.setdefault(changed, []).append(index)
    if len(parts) <= 1:
        group.update(*parts)
        yield group
        return
    lists = [key for key in ("params", "param_names") if key in group]  # torch keeps names beside the parameters
    for options_, chosen in parts.items():
        yield {**group, **dict(options_), **{key: [group[key][i] for i in chosen] for key in lists}}


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise AdapterStateError where a parameter that requires a gradient would not train, or would train twice a step.

    It would be saved as it was, without a word: an adapter that was added, or made active, after the optimizer was
    built, or one that is disabled or merged. Raises ConfigError where the optimizer's groups do not follow
    `model.set_learning_rates`. The stock Trainer is checked by itself; call this in a training loop of your own.

    >>> import torch
    >>> from hf_lora import LoRAConfig, add_lora, parameter_groups
    >>> model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
    >>> check_optimizer(model, torch.optim.AdamW(parameter_groups(model, 0.001)))
    """
    check_trains(model)
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if missing := [name for name, p in trained if id(p) not in held]:
        raise AdapterStateError(
            f"{len(missing)} of {len(trained)} parameters that require gradients are missing from the optimizer and "
            f"would not train: {some(missing)}. Build the optimizer after adding, loading or choosing adapters; "
            "trainer.optimizer = None lets a Trainer that has trained build a new one."
        )
    if twice := [name for name, p in trained if held[id(p)] > 1]:
        raise AdapterStateError(
            f"{len(twice)} of {len(trained)} parameters are in the optimizer more than once and would be moved twice a "
            f"step: {some(twice)}. Give each to one group."
        )
    check_rates(model, optimizer)


def check_rates(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise ConfigError where a model's learning rates are not those in the optimizer's groups.

    Groups are asked for what they started with: a schedule may have moved them since.
    """
    rates = rates_of(model)
    if not rates:
        return
    roles = roles_of(model)
    found: dict[Part, set[float]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if role := roles.get(id(p)):
                start = group.get("max_lr", group.get("initial_lr", group.get("lr")))  # OneCycleLR's is a part of it
                found.setdefault(role.part, set()).add(float(start or 0.0))
    _check_taken(rates, found)
    wanted = {part: {getattr(rates, name)} for part, name in _SETTINGS.items() if getattr(rates, name) is not None}
    if "B" in wanted:
        common = found.get("A", set())
        wanted["B"] = {_rate(rates, "B", rate) for rate in common} or found["B"]
    if wrong := [part for part, expected in wanted.items() if not _close(found[part], expected)]:
        names = ", ".join(f"{_SETTINGS[part]} (there: {sorted(found[part])})" for part in wrong)
        raise ConfigError(
            f"the model was given {rates}, which the optimizer's groups do not follow: {names}. Build it after "
            "set_learning_rates() with hf_lora.parameter_groups(model, learning_rate), or leave it to the Trainer; "
            "trainer.optimizer = None lets a Trainer that has trained build a new one."
        )


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ids (Python's) of the parameters that an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def roles_of(model: nn.Module) -> dict[int, Role]:
    """Return the role of each parameter by its id (Python's), found by what holds it and never by its name."""
    found: dict[int, Role] = {}
    for state in states_of(model):
        for name, config in state.configs.items():
            for place, layer, _, adapter in state.carried(name):
                found |= {id(p): role for p, role in _roles(layer, adapter, is_saved(config, place))}
    for module in model.modules():
        for key, p in module._parameters.items():
            if p is not None:
                found.setdefault(id(p), Role("head", _decays(module, key, p.ndim)))
    return found


def _roles(layer: LoRALayer, adapter: Adapter, head: bool) -> Iterator[tuple[Tensor, Role]]:
    for key, p in adapter.named_parameters(recurse=False):
        part, decays = adapter.part_of(key), adapter.decays(key)
        if part == "head" and not head:  # a bias that trains along
            part = "other"
        if decays is None:
            decays = _decays(layer, adapter.parameter, len(adapter.sizes()[key]))
        yield p, Role(part, decays)


def _decays(layer: nn.Module, parameter: str, dimensions: int) -> bool:
    return dimensions > 1 and "bias" not in parameter and "norm" not in base_of(type(layer)).__name__.lower()


def rates_of(model: nn.Module) -> LearningRates:
    """Return the learning rates that were set on the LoRAModel that a module is or contains.

    Raises ConfigError where it contains several that differ: the groups of each have to be built for it alone.
    """
    found = {state.rates for state in states_of(model)} or {LearningRates()}
    if len(found) > 1:
        raise ConfigError("the LoRAModels in this module were given different learning rates; build groups for each.")
    return found.pop()


def _rate(rates: LearningRates, part: Part, common: Any) -> Any:
    value = getattr(rates, _SETTINGS[part]) if part in _SETTINGS else None
    if value is None:
        return common
    return common * value if part == "B" else value


def _check_taken(rates: LearningRates, parts: Iterable[Part]) -> None:
    taken = {_SETTINGS[part] for part in parts if part in _SETTINGS}
    if idle := [f"{name}={v:g} is for {_MEANT[name]}" for name, v in asdict(rates).items() if v and name not in taken]:
        raise ConfigError(f"{', '.join(idle)}, and none such trains; call set_learning_rates() without it.")


def _close(left: set[float], right: set[float]) -> bool:
    pairs = zip(sorted(left), sorted(right), strict=False)
    return len(left) == len(right) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs)
