"""A model's output layer that promises its logits instead of computing them, while it trains."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...maths.tracing import is_traced
from ..layer import LoRALayer
from ..specialising import Specialised, refine, restore
from .lazy import promise


class LazyHead(Specialised, nn.Module):
    """An output layer that gives `LazyLogits` in a training step; everywhere else it is what it was."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled() and not is_traced() and len(args) == 1:
            hidden, parameters = args[0], tuple(p for p in self.parameters() if p.requires_grad)
            floats = type(hidden) is Tensor and hidden.is_floating_point()
            if floats and (hidden.requires_grad or parameters) and not kwargs:
                return promise(_as_now(self, super().forward), hidden, parameters)
        return super().forward(*args, **kwargs)


def enable_linear_cross_entropy(model: nn.Module) -> None:
    """Specialise the output layer of a model, in place. Raises ModelError where it has none that can be."""
    head, name = _output_layer(model), type(model).__name__
    if head is None or isinstance(head, nn.Embedding):
        raise ModelError(
            f"enable_linear_cross_entropy: {name} has no output layer over a vocabulary (get_output_embeddings() gives "
            f"{head!r}), so there are no logits to save. It is for language models, such as AutoModelForCausalLM gives."
        )
    if any(p.is_meta for p in head.parameters()):
        raise ModelError(
            f"enable_linear_cross_entropy: the output layer of {name} is offloaded, so its weight is gone when the "
            "loss is computed. Load the model with a device_map that keeps it on a device."
        )
    if not isinstance(head, LazyHead):
        refine(head, LazyHead)


def disable_linear_cross_entropy(model: nn.Module) -> bool:
    """Give the output layer its own class back, and return whether it was specialised."""
    head = _output_layer(model)
    if not isinstance(head, LazyHead):
        return False
    restore(head)
    return True


@contextmanager
def own_head(model: nn.Module) -> Iterator[None]:
    """Give the output layer its own class inside a `with` block, where adapters come or go."""
    was_lazy = disable_linear_cross_entropy(model)
    try:
        yield
    finally:
        if was_lazy:
            enable_linear_cross_entropy(model)


def _output_layer(model: nn.Module) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]


def _as_now(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a layer's forward with the adapters that are active now, whenever it is called."""
    if not isinstance(layer, LoRALayer):
        return forward
    state, route = layer._lora, layer._lora.route

    def then(hidden: Tensor) -> Tensor:
        if state.route == route:
            return forward(hidden)
        with state.routed(route):
            return forward(hidden)

    return then
