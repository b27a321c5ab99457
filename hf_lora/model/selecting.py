"""Which adapters of a model act: selected for everybody, in a block of one thread or task, switched off, or deleted."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterNameError, AdapterStateError, ArgumentError, some
from ..layers.layer import LoRALayer, detach
from ..layers.routes import BASE, OFF, Route
from ..layers.state import BLOCKS, CHANGES, AdapterState, Record

_KEEPS = "hf_lora keeps the gradient"  # of a node of autograd: in its metadata


def names_of(state: AdapterState, given: str | Sequence[str]) -> Route:
    """Return the names that a caller gives, one or several, each once and in order.

    Raises AdapterNameError, and ArgumentError for what are no names.
    """
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise ArgumentError(
            f"{given!r} is given where adapters are named, by one name or a list; the model has {_held(state)}. "
            "disable_adapters() switches all of them off."
        )
    if isinstance(given, Mapping):
        raise ArgumentError(
            f"{given!r:.200} is given where names alone count, and weights have no place. Rows of a batch take them, "
            "adapter_names=[{'a': 0.7, 'b': 0.3}, ...], and add_weighted_adapter makes one adapter of several."
        )
    names = [given] if isinstance(given, str) else [*given]
    check_known(state, names)
    return tuple(dict.fromkeys(names))


def check_known(state: AdapterState, names: Sequence[str], *others: str) -> None:
    """Raise AdapterNameError where the model has no adapter of one of these names; others: what may be meant."""
    if unknown := [n for n in names if not isinstance(n, str) or n not in state.records]:
        near = [difflib.get_close_matches(str(n), [*state.records, *others], 1, 0.6) for n in unknown]
        told = (f"{n!r} (did you mean {m[0]!r}?)" if m else repr(n) for n, m in zip(unknown, near, strict=True))
        base = (
            f" {BASE!r} is a row of adapter_names= by itself, beside no other name; disable_adapters() and `with "
            "model.adapters_disabled():` switch off all adapters."
        )
        raise AdapterNameError(
            f"no adapter {', '.join(told)}; the model has {_held(state)}.{base if BASE in unknown else ''}"
        )


def _held(state: AdapterState) -> str:
    return f"[{some(map(repr, state.records), 8)}]"


def check_name(name: object, taken: Collection[str]) -> None:
    """Raise AdapterNameError where a new adapter cannot have a name: it is a key of torch's, and a folder's name."""
    if not isinstance(name, str) or not name or "." in name:
        raise AdapterNameError(f"{name!r} cannot name an adapter: a name is a non-empty string without dots.")
    if name == BASE:
        raise AdapterNameError(f"{name!r} cannot name an adapter: it stands for none, in the rows of adapter_names=.")
    if name in taken:
        raise AdapterNameError(f"the model has an adapter {name!r} already; choose another name or delete it first.")
    if name in dir(nn.ModuleDict):
        raise AdapterNameError(f"{name!r} is a method of torch's containers and cannot name an adapter.")
    parts = name.split("/")  # a folder in a folder, as PEFT saves it; deeper ones nobody would look for
    is_path = len(parts) <= 2 and all(part and part == part.strip() for part in parts)
    if not {*name}.isdisjoint('\\\0<>:"|?*') or not name.isprintable() or not is_path or len(name) > 100:
        raise AdapterNameError(
            f"{name!a:.200} cannot name an adapter: its files lie in a folder of that name where there are several, so "
            "it has at most one slash, between two names, no signs that a system refuses, and at most 100 characters."
            f"{'' if is_path else ' load_adapter(path, name) and register(name, path) take both, in this order.'}"
        )
    if same := [each for each in taken if each.casefold() == name.casefold()]:
        raise AdapterNameError(
            f"{name!r} cannot stand beside the adapter {same[0]!r}: their folders would be one where a system takes "
            "capital and small letters for the same. Choose another name."
        )


def check_place(state: AdapterState, name: str, hotswap: bool) -> None:
    """Raise ArgumentError or AdapterNameError where a file cannot become an adapter of that name."""
    if not isinstance(hotswap, bool):
        raise ArgumentError(f"hotswap={hotswap!r}: True puts a file's numbers into the adapter that has the name.")
    if hotswap:
        check_known(state, [name])
    else:
        check_name(name, state.records)


def select(state: AdapterState, given: str | Sequence[str]) -> None:
    """Choose which adapters a forward uses; of the trainable ones only these require gradients."""
    with CHANGES:
        names = names_of(state, given)
        state.refuse_while_merged("set_adapter")
        check_together(state, names)
        _choose(state, names)


def _choose(state: AdapterState, names: Route) -> None:
    changed = {n for n in {*names, *state.selected} if (n in names) != (n in state.selected)} | set(names)
    state.selected = names
    for layer in state.layers.values() if changed & state.trainable else ():
        for name in changed & state.trainable:
            require_grad(layer, name, name in names)


def check_together(state: AdapterState, names: Sequence[str]) -> None:
    """Raise AdapterStateError where two of these adapters cannot act at once on one parameter."""
    for module, layer in state.layers.items() if len(names) > 1 else ():
        held = [(name, adapter) for name in names for adapter in layer.carried(name).values()]
        for (name, one), (other_name, other) in combinations(held, 2):
            if name != other_name and one.parameter == other.parameter and not one.acts_beside(other):
                what = f"{type(one).__name__} of {name!r} and {type(other).__name__} of {other_name!r}"
                raise AdapterStateError(
                    f"{list(names)} cannot be active at once: {module}.{one.parameter} would have {what}, whose "
                    "combination has no meaning. Activate one of them."
                )


def set_requires_grad(state: AdapterState, given: str | Sequence[str], wanted: bool) -> None:
    """Switch whether adapters train, whatever is selected. Raises AdapterStateError for those loaded for inference."""
    with CHANGES:
        names = names_of(state, given)
        if wanted and (frozen := [name for name in names if not state.records[name].trainable]):
            raise AdapterStateError(f"{frozen} were loaded for inference: load them with is_trainable=True.")
        for name in names:
            state.records[name].trains_in_rows = wanted
            for layer in state.layers.values():
                require_grad(layer, name, wanted)


def require_grad(layer: LoRALayer, name: str, wanted: bool) -> None:
    """Switch requires_grad of what trains of an adapter in a layer; what its row keeps as it began stays frozen."""
    if wanted:
        layer._steps.forget_stack()
    for adapter in layer.carried(name).values():
        for parameter in adapter.trained():
            if parameter.requires_grad and not wanted:
                _keep_pending_gradients(parameter)
            parameter.requires_grad_(wanted)


def _keep_pending_gradients(parameter: nn.Parameter) -> None:
    """Have the backward of a forward that is already made give its gradient, though the flag is about to go."""
    # autograd looks at the flag when the gradient arrives. Where no graph waits, the node and its hooks are gone at
    # once.
    if parameter.is_inference():
        return
    with torch.inference_mode(False), torch.enable_grad():
        node = torch.autograd.graph.get_gradient_edge(parameter).node
    noted: dict[str, Any] = node.metadata  # type: ignore[assignment]  # torch's stub calls it a method
    if _KEEPS in noted:
        return
    noted[_KEEPS] = True
    lent: list[bool] = []  # not where the flag is there: it is the user's own

    def arrives(_: object) -> None:
        if not parameter.requires_grad:
            lent.append(True)
            parameter.requires_grad_(True)

    def has_arrived(_: object, gradients: Sequence[Tensor | None]) -> None:
        if lent:
            parameter.requires_grad_(not lent.pop())
        elif not parameter.requires_grad and (gradient := gradients[0]) is not None:
            # torch 2.6 forgets `arrives` where the forward was computed again (use_reentrant=False)
            gradient = gradient.detach()
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

    node.register_prehook(arrives)
    node.register_hook(has_arrived)


@contextmanager
def recomputing(state: AdapterState, route: Route, merged: Route, records: Mapping[str, Record]) -> Iterator[None]:
    """Compute a forward again inside a `with` block, in a backward pass: with the adapters of then, which train.

    route: the forward's; merged, records: what was merged and there then. Raises AdapterStateError where that has
    changed, and AdapterNameError where an adapter is gone.
    """
    if state.merged != merged:
        raise AdapterStateError(
            "adapters were merged or unmerged between a forward with gradient checkpointing and its backward pass, "
            "which would compute it again with other weights. Merge after the backward pass."
        )
    if swapped := [name for name in route if name in state.records and state.records[name] is not records.get(name)]:
        raise AdapterStateError(
            f"the adapter {swapped[0]!r} became another one between a forward with gradient checkpointing and its "
            "backward pass, which would compute it again with other numbers. Swap after the backward pass."
        )
    lent = [
        (layer, name)
        for name in route
        if name in state.trainable and name not in state.selected
        for layer in state.layers.values()
        if not any(p.requires_grad for adapter in layer.carried(name).values() for p in adapter.parameters())
    ]
    for layer, name in lent:
        require_grad(layer, name, True)
    try:
        with state.routed(route):
            yield
    finally:
        for layer, name in lent:
            require_grad(layer, name, False)


def disable(state: AdapterState) -> None:
    """Switch the adapters off for everybody. Raises AdapterStateError while merged, and inside a block of one's own."""
    block = state.own_block()
    if block is not None and block.is_fixed:
        return
    state.refuse_while_merged("disable_adapters")
    if block is None:
        state.instead = OFF
    elif block.route:  # inside adapters_disabled() they are off, and on again after it
        raise AdapterStateError(
            f"disable_adapters would change nothing inside a block of adapters_active({list(block.route)}); use `with "
            "model.adapters_disabled()`."
        )


def enable(state: AdapterState) -> None:
    """Switch the adapters on again for everybody."""
    block = state.own_block()
    if block is None or not block.is_fixed:
        state.instead = None


@contextmanager
def active(model: nn.Module, state: AdapterState, given: Any) -> Iterator[None]:
    """Take the route of these adapters inside a `with` block, which is refused in training."""
    with BLOCKS:  # nobody takes an adapter off its layers meanwhile
        names = names_of(state, given)
        check_together(state, names)
    if model.training and torch.is_grad_enabled():
        raise AdapterStateError("adapters_active() is for inference: call eval(), or set_adapter() to train.")
    with state.routed(names, "adapters_active"):
        yield


def delete(state: AdapterState, given: str | Sequence[str]) -> None:
    """Remove adapters, all or none; layers that carried no other get their own class back."""
    with CHANGES, BLOCKS:
        names = names_of(state, given)
        if set(names) & set(state.merged):
            state.refuse_while_merged("delete_adapter")
        for name in names:
            state.refuse_inside("delete_adapter", name)
        _choose(state, tuple(n for n in state.selected if n not in names))
        for name in names:
            remove(state, name)


def remove(state: AdapterState, name: str) -> None:
    """Take an adapter off its layers and out of the state, whatever uses it."""
    for layer in state.layers.values():
        if isinstance(layer, LoRALayer) and name in layer.adapters:
            detach(layer, name)
    state.layers = {n: layer for n, layer in state.layers.items() if isinstance(layer, LoRALayer)}
    if gone := state.records.get(name):
        gone.config.released()
    state.records = {n: record for n, record in state.records.items() if n != name}
