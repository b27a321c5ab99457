"""What must hold of a model with adapters before it trains: what trains also acts, and is saved."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import AdapterStateError, ModelError, full_name, some
from ..layers.layer import LoRALayer, base_modules
from ..layers.state import AdapterState
from ..model.replacing import check_in_place
from ..variants.table import SAVED


def states_of(model: nn.Module) -> list[AdapterState]:
    """Return the states of the LoRAModels that a module is or contains, whatever is wrapped around them."""
    return list({id(m._lora): m._lora for m in model.modules() if isinstance(m, LoRALayer)}.values())


def check_trains(model: nn.Module) -> None:
    """Raise AdapterStateError where no parameter requires a gradient, or those of adapters could not get one."""
    if problems := _problems(model, states_of(model)):
        raise AdapterStateError(" ".join(problems))


def check_ready(model: nn.Module) -> None:
    """Raise AdapterStateError, with every problem found, where training would do nothing, or something that is lost.

    model: a LoRAModel, or what has one inside. Its adapters are merged or disabled, or none of them trains; a weight of
    the base requires a gradient, or a batch norm of the base keeps running averages: both would change, and no save of
    an adapter holds them. The stock Trainer is checked by itself; call this before a training loop of your own.

    >>> from hf_lora import LoRAConfig, add_lora
    >>> model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(target_modules=["0"]))
    >>> check_ready(model)
    >>> check_ready(model.requires_grad_(True))
    Traceback (most recent call last):
    ...
    hf_lora.errors.AdapterStateError: 2 weights of the base require gradients (0.weight, 0.bias): they would train, \
and no save of an adapter holds them. Name their modules in modules_to_save, or freeze them again: \
model.requires_grad_(False), then model.set_adapter(['default']). To train every weight, merge_and_unload() first.
    """
    inner = [m for m in model.modules() if m.__dict__.get("_hf_peft_config_loaded") and "_lora" in m.__dict__]
    if model not in inner:  # something around it, or no LoRAModel at all
        if not inner:
            raise ModelError(
                f"this {type(model).__name__} has no adapters: make it a LoRAModel with LoRAModel.from_model(model, "
                "LoRAConfig()), or add_lora(module, LoRAConfig(...)), before it is trained."
            )
        for each in inner:
            check_ready(each)
        return
    state: AdapterState = model._lora  # type: ignore[assignment]
    check_in_place(model, state)
    problems = [
        *_problems(model, [state]),
        *_offloaded(model),
        *_lost_weights(model, state),
        *_lost_adapters(model, state),
        *_lost_averages(model, state),
    ]
    if problems:
        raise AdapterStateError(" ".join(problems))


def why_nothing_trains(state: AdapterState) -> str:
    """Return why no parameter of a model with adapters requires a gradient, with the cure."""
    active = list(state.selected)
    if frozen := sorted(state.trainable & {*active}):
        return (
            f"nothing would train: the weights of {frozen} were frozen by hand (requires_grad_(False)?); "
            f"set_adapter({active!r}) lets them train again."
        )
    if state.trainable:
        return f"nothing would train: {sorted(state.trainable)} can, but {active} are active; set_adapter() chooses."
    return (
        f"nothing would train: {list(state.configs)} were loaded for inference. Load the adapter with "
        "is_trainable=True to train it on; for dropout without training, call train() under torch.no_grad()."
    )


def _problems(model: nn.Module, states: list[AdapterState]) -> list[str]:
    """Return why adapters of a model that could train would get no gradient, or why nothing of it requires one."""
    if (problems := [problem for state in states for problem in _idle(state)]) or any(
        p.requires_grad for p in model.parameters()
    ):
        return problems
    found = [why_nothing_trains(state) for state in states]
    return found or ["nothing would train: no parameter of the model requires a gradient."]


def _idle(state: AdapterState) -> Iterator[str]:
    """Yield why adapters that could train would get no gradient; those frozen by hand (a teacher's) are to get none."""
    wanted = sorted(name for name in state.trainable & {*state.selected} if state.requires_gradients(name))
    if wanted and state.merged:
        yield (
            f"{wanted} would not train: {list(state.merged)} are merged into the weights; call unmerge_adapter(), or "
            "merge_and_unload() to train the merged weights themselves."
        )
    elif wanted and state.is_off:
        yield f"{wanted} would not train: adapters are disabled; call enable_adapters() first."


def _offloaded(model: nn.Module) -> Iterator[str]:
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.is_meta]
    if names and any("_hf_hook" in module.__dict__ for module in model.modules()):  # else FSDP2 is going to fill them
        yield (
            f"{len(names)} weights that train are offloaded ({some(names)}), where no optimizer can step: load or "
            "dispatch the base first (device_map=, cpu_offload) and add the adapter afterwards."
        )


def _lost_weights(model: nn.Module, state: AdapterState) -> Iterator[str]:
    found: dict[int, str] = {}  # tied weights are one
    for name, module in base_modules(model):
        for key, p in module._parameters.items():
            if p is not None and p.requires_grad:
                found.setdefault(id(p), full_name(name, key))
    for place, _, _, adapter in state.carried(*state.records):
        trained = {id(p) for p in adapter.trained()}
        for key, p in adapter.named_parameters(recurse=False):
            if p.requires_grad and id(p) not in trained:
                found.setdefault(id(p), f"{place}'s {key}, which its formula keeps as it began")
    if names := list(found.values()):
        yield (
            f"{len(names)} weights of the base require gradients ({some(names)}): they would train, and no save of an "
            "adapter holds them. Name their modules in modules_to_save, or freeze them again: "
            f"model.requires_grad_(False), then model.set_adapter({list(state.selected)!r}). To train every "
            "weight, merge_and_unload() first."
        )


def _lost_adapters(model: nn.Module, state: AdapterState) -> Iterator[str]:
    names = [n for n, m in model.named_modules() if isinstance(m, LoRALayer) and m._lora is not state]
    if names:
        yield (
            f"{len(names)} layers ({some(names)}) carry adapters of another LoRAModel inside this one, which this one "
            "neither chooses nor saves: unload() it and add its adapter to the whole."
        )


def _lost_averages(model: nn.Module, state: AdapterState) -> Iterator[str]:
    average = SAVED.adapter.key_for("running_mean")
    names = [
        name
        for name, module in base_modules(model)
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.momentum != 0
        and not any(average in module.carried(n) for n in state.route if isinstance(module, LoRALayer))
    ]  # fmt: skip
    if names:
        yield (
            f"{len(names)} batch norms of the base ({some(names)}) would move their running averages in training, and "
            "no save of an adapter holds them: evaluation after a reload would differ. Name them in modules_to_save "
            f"({names[0].rpartition('.')[2]!r} takes all of that name), or set their momentum to 0."
        )


def widen_masters(model: nn.Module) -> int:
    """Make half-precision adapter weights that require gradients float32, in place, and return how many there were.

    Casting a whole model (half(), bfloat16(), to(dtype)) casts its adapters as well. Steps of a usual learning rate are
    lost below half precision, and a GradScaler refuses float16. The parameters stay the same objects.
    """
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    held = {id(p): p for layer in layers for p in layer.adapters.parameters()}  # tied layers share them
    narrow = [p for p in held.values() if p.requires_grad and p.is_floating_point() and p.itemsize < 4]
    for parameter in narrow:
        parameter.data = parameter.data.to(torch.float32)
        parameter.grad = None  # of the old dtype
    return len(narrow)
