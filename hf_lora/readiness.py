"""Whether anything of a model would train, and if not, why and what to do."""

from __future__ import annotations

from torch import nn

from .errors import AdapterStateError
from .layer import LoRALayer
from .state import AdapterState

__all__ = ["check_trains", "states_of", "why_nothing_trains"]


def states_of(model: nn.Module) -> list[AdapterState]:
    """Return the states of the LoRAModels that a module is or contains, whatever is wrapped around them."""
    return list({id(m._lora): m._lora for m in model.modules() if isinstance(m, LoRALayer)}.values())


def check_trains(model: nn.Module) -> None:
    """Raise AdapterStateError where no parameter requires a gradient, or those of adapters could not get one."""
    if any(p.requires_grad for p in model.parameters()):
        for state in states_of(model):
            _check_used(state)
        return
    told = [why_nothing_trains(state) for state in states_of(model)]
    raise AdapterStateError(" ".join(told) or "nothing would train: no parameter of the model requires a gradient.")


def why_nothing_trains(state: AdapterState) -> str:
    """Return why no parameter of a model with adapters requires a gradient, with the cure."""
    if state.trainable:
        return (
            f"nothing would train: {sorted(state.trainable)} can, but {list(state.selected)} are active; "
            "set_adapter() chooses."
        )
    return (
        f"nothing would train: {list(state.configs)} were loaded for inference. Load the adapter with "
        "is_trainable=True to train it on; for dropout without training, call train() under torch.no_grad()."
    )


def _check_used(state: AdapterState) -> None:
    wanted = sorted(state.trainable & {*state.selected})
    if wanted and state.merged:
        raise AdapterStateError(
            f"{wanted} would not train: {list(state.merged)} are merged into the weights; call unmerge_adapter() first."
        )
    if wanted and not state.enabled:
        raise AdapterStateError(f"{wanted} would not train: adapters are disabled; call enable_adapters() first.")
