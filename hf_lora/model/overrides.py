"""The methods of a Transformers model's class that a LoRAModel has otherwise, where the class has them."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layers.state import AdapterState
from . import by_row, vocabulary
from .hooks import around, quietly
from .selecting import recomputing

_SWITCHES = frozenset({"enable_adapters", "disable_adapters", "set_adapter"})


def overridden(base: type) -> dict[str, Any]:
    """Return what a LoRAModel of a class does otherwise than the class, methods by name."""
    found = vocabulary.overridden(base) if hasattr(base, "tie_weights") else {}
    if hasattr(base, "enable_input_require_grads"):
        found["enable_input_require_grads"] = _enabling(base.enable_input_require_grads)
    if hasattr(base, "_set_gradient_checkpointing"):
        found["_set_gradient_checkpointing"] = _checkpointing(base._set_gradient_checkpointing)
    found |= {name: _unswitched(method) for name, method in _switching(base).items()}
    if hasattr(base, "generate"):
        found["generate"] = by_row.taking_names(found.get("generate", base.generate))
    if hasattr(base, "get_compiled_call"):
        found["get_compiled_call"] = by_row.telling_compiled(base.get_compiled_call)
    return found


def takes_gradients(model: Any) -> None:
    """Have the hooks that make a model's embeddings take gradients work on every model.

    Transformers' own takes a single tensor (Swin's embeddings return two values) and makes it a leaf, which no model
    can write in place afterwards (GIT adds its positions so).
    """
    for module in model.modules():
        for number, hook in module._forward_hooks.items():
            if getattr(hook, "__name__", "") == "make_inputs_require_grads":
                module._forward_hooks[number] = _take_gradients


def keeps_routes(model: Any) -> None:
    """Have gradient checkpointing compute a forward again with the adapters that acted in it."""
    for module in model.modules():
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is not None and not isinstance(checkpoint, _KeepsRoute):
            module._gradient_checkpointing_func = _KeepsRoute(model._lora, checkpoint)


def forgets_routes(model: Any) -> None:
    """Undo `keeps_routes`."""
    for module in model.modules():
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(checkpoint, _KeepsRoute):
            module._gradient_checkpointing_func = checkpoint.checkpoint


class _KeepsRoute:
    """A model's checkpointing function: what runs again in the backward pass takes the route of the forward."""

    def __init__(self, state: AdapterState, checkpoint: Callable[..., Any]) -> None:
        self.state, self.checkpoint = state, checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint a function of a forward."""
        if torch.compiler.is_compiling():  # the route is a constant of the compiled code
            return self.checkpoint(function, *args, **kwargs)
        state, route, merged, records = self.state, self.state.route, self.state.merged, self.state.records
        ran: list[bool] = []

        def run(*args: Any, **kwargs: Any) -> Any:
            if not ran:  # the forward itself
                ran.append(True)
                return function(*args, **kwargs)
            with recomputing(state, route, merged, records):
                return function(*args, **kwargs)

        return self.checkpoint(run, *args, **kwargs)


@around
def _checkpointing(method: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    result = method(self, *args, **kwargs)
    keeps_routes(self)
    return result


@around
def _enabling(method: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    with quietly():  # a model without embeddings (Wav2Vec2) trains all the same: no need to warn
        result = method(self, *args, **kwargs)
    takes_gradients(self)
    return result


def _take_gradients(_: Any, __: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        takes = output.is_floating_point() and not output.requires_grad and torch.is_grad_enabled()
        return output.detach().requires_grad_().clone() if takes else output
    if type(output) in (tuple, list):
        return type(output)(_take_gradients(_, __, each) for each in output)
    return output


def _switching(base: type) -> dict[str, Callable[..., Any]]:
    """Return the methods in which a model of Transformers switches adapters by itself: GraniteSpeech's `generate`."""
    found = {}
    for cls in base.__mro__:
        for name in vars(cls) if cls.__module__.startswith("transformers.models.") else ():
            method = getattr(base, name)
            code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            if code is not None and _SWITCHES.intersection(code.co_names):
                found[name] = method
    return found


@around
def _unswitched(method: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap a method: the adapters stay as the user chose them, whatever the model's own code switches."""
    with self._lora.routed(self._lora.route, is_fixed=True):
        return method(self, *args, **kwargs)
