"""Layers that something puts in the place of a model's own: the adapters move over, or their loss is told."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import AdapterStateError, TargetError, some
from ..kinds.kind import is_packed
from ..kinds.probe import forward_factor
from ..kinds.table import KINDS
from ..layers.forward import watch
from ..layers.layer import LoRALayer, attach, base_modules, detach
from ..layers.specialising import base_of
from ..layers.state import BLOCKS, CHANGES, AdapterState
from ..layers.tying import is_plain
from ..variants.adapter import own_tensor

_ROUNDING = 0.01  # by how much a dtype's rounding may change what a forward multiplies by


@contextmanager
def moving_over(model: Any) -> Iterator[None]:
    """Take all adapters off their layers inside a `with` block, and put them on what stands there when it ends.

    Parameters train afterwards where those of the same name did. Raises AdapterStateError while merged, and while a
    block of any thread runs.
    """
    state: AdapterState = model._lora
    with CHANGES, BLOCKS:
        state.refuse_while_merged("dequantize")
        state.refuse_inside("dequantize")
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
    """Raise AdapterStateError where layers with adapters are no part of the model any more, or not what they were.

    What a forward multiplies by is measured when an adapter is attached, as is what shares a table whose rows train:
    what rounding changes in it is followed.
    """
    gone = []
    for path, layer in state.layers.items():
        watch(layer)
        try:
            now = model.get_submodule(path)
        except AttributeError:
            now = None
        if getattr(now, "_orig_mod", now) is not layer:  # of torch.compile(layer)
            gone.append(path)
    if gone:
        raise AdapterStateError(
            f"{len(gone)} layers that carry adapters are no part of the model any more ({some(gone)}): something put "
            "others in their place, and their adapters do nothing. Change the layers of the base first and add or load "
            "the adapters afterwards."
        )
    configs = {name: some(fields) for name, record in state.records.items() if (fields := record.config.changed())}
    edited = [f"{fields} of {name!r} was set in its config" for name, fields in configs.items()]
    if problems := [*edited, *_changed(state), *_parted(model, state)]:
        raise AdapterStateError(
            f"since an adapter was attached, {some(problems, 4, '; ')}. Set it back, or change the base first and add "
            "or load the adapter afterwards."
        )


def _changed(state: AdapterState) -> Iterator[str]:
    """Yield where a layer's forward is not the one that its adapters were put behind."""
    for path, layer in state.layers.items():
        weight = own_tensor(layer, "weight")
        if weight is None or weight.ndim < 2:  # spread over processes
            continue
        held = [a for name in state.records for key, a in layer.carried(name).items() if key in layer.behind(name)]
        for adapter in held:
            kind = KINDS[adapter.kind]
            try:
                kind.check(layer, path, adapter.r)
            except TargetError as error:
                yield str(error)
                break
            factor = forward_factor(kind, layer, base_of(type(layer)))
            if factor is None or not math.isclose(factor, adapter.factor, rel_tol=_ROUNDING):
                now = "does something else" if factor is None else f"multiplies by {factor:g}, not {adapter.factor:g}"
                yield f"the forward of {path} {now}"
                break
            if not kind.is_quantised and is_packed(weight):
                yield f"{path} was quantised"
                break
            adapter.factor = factor


def _parted(model: nn.Module, state: AdapterState) -> Iterator[str]:
    """Yield where a table whose rows train is tied to others than it was."""
    tables: dict[int, dict[str, Any]] = {}
    for path, layer, _, adapter in state.carried(*state.records):
        if adapter.row.of_rows:
            tables.setdefault(id(adapter), {})[path] = _own(layer)
    modules = dict(base_modules(model)) if tables else {}
    for held in tables.values():
        if any(own is None or own.is_meta or not is_plain(own) for own in held.values()):
            continue  # where it is offloaded or spread, each has a tensor of its own
        table = next(iter(held.values()))
        others = [n for n, module in modules.items() if n not in held and _own(module) is table]
        if any(own is not table for own in held.values()):
            yield f"{' and '.join(held)}, whose rows train, were parted"
        elif joined := [n for n in others if not _is_copied(modules[n])]:
            yield f"{some(joined)} was tied to {some(held)}, whose rows train"


def _own(module: nn.Module) -> Tensor | None:
    """Return a module's own weight, also while another is merged in its place."""
    kept: dict[str, Tensor] = module.__dict__.get("_originals", {})
    return kept.get("weight", own_tensor(module, "weight"))


def _is_copied(module: nn.Module) -> bool:
    if not isinstance(module, LoRALayer):
        return False
    held = (a for name in module._lora.records for a in module.carried(name).values())
    return any(a.row.whole and a.parameter == "weight" for a in held)
