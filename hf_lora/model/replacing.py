"""Layers that something puts in the place of a model's own: the adapters move over, or their loss is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import AdapterStateError, some
from ..layers.layer import attach, detach
from ..layers.state import BLOCKS, CHANGES, AdapterState

__all__ = ["check_in_place", "moving_over"]


@contextmanager
def moving_over(model: Any, what: str) -> Iterator[None]:
    """Take all adapters off their layers inside a `with` block, and put them on what stands there when it ends.

    what: who asks. Parameters train afterwards where those of the same name did. Raises AdapterStateError while merged,
    and while a block of any thread runs.
    """
    state: AdapterState = model._lora
    with CHANGES, BLOCKS:
        state.refuse_while_merged(what)
        state.refuse_inside(what)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        held = [
            (path, name, adapters, layer.behind(name), layer._steps.shown)
            for path, layer in state.layers.items()
            for name in state.records
            if (adapters := layer.carried(name))
        ]
        for path, name, *_ in held:
            detach(state.layers[path], name)
        try:
            yield
        finally:
            layers = {}
            for path, name, adapters, *ways in held:
                layers[path] = layer = model.get_submodule(path)
                for adapter in adapters.values():
                    adapter.settle_on(layer)
                attach(layer, state, name, adapters, *ways)
            state.layers = layers
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and name not in trained:
                    parameter.requires_grad_(False)


def check_in_place(model: nn.Module, state: AdapterState) -> None:
    """Raise AdapterStateError where layers with adapters are no part of the model any more."""
    gone = []
    for path, layer in state.layers.items():
        try:
            now = model.get_submodule(path)
        except AttributeError:
            now = None
        if now is not layer:
            gone.append(path)
    if gone:
        raise AdapterStateError(
            f"{len(gone)} layers that carry adapters are no part of the model any more ({some(gone)}): something put "
            "others in their place, and their adapters do nothing. Change the layers of the base first and add or load "
            "the adapters afterwards."
        )
