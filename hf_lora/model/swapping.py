"""Hot swapping: the numbers of an adapter that is there become a file's, while its tensors stay the same objects."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..config.rules import is_int
from ..errors import AdapterMismatchError, AdapterStateError, ArgumentError, full_name, some
from ..formats.contents import Contents
from ..layers.memory.head import own_head
from ..layers.state import CHANGES, AdapterState, Record
from ..variants.adapter import Adapter
from . import adding, attaching
from .selecting import check_known, names_of
from .settings import warn_of_others

Pairs = list[tuple[Adapter, Adapter]]


def prepare(model: Any, max_r: int, given: str | Sequence[str] | None) -> None:
    """Make room in adapters for any rank up to max_r (`LoRAModel.prepare_hotswap`)."""
    state: AdapterState = model._lora
    if not is_int(max_r):
        raise ArgumentError(f"max_r={max_r!r}; it is the largest rank that comes, a positive integer.")
    with state.gate.closed("prepare_hotswap"), CHANGES:
        names = tuple(state.records) if given is None else names_of(state, given)
        _check_now(model, names, "prepare_hotswap")
        held = {a: _place(module, a) for module, _, _, a in state.carried(*names)}
        if problems := [f"{place} {why}" for adapter, place in held.items() if (why := adapter.refuses_room(max_r))]:
            raise AdapterStateError(
                f"prepare_hotswap(max_r={max_r}): {some(dict.fromkeys(problems), 6, '; ')}. Name a larger rank, or "
                "other adapters."
            )
        for adapter in held:
            adapter.make_room(max_r)


def swap(model: Any, files: Contents, name: str, is_trainable: bool, check_base: bool) -> None:
    """Have an adapter become a file's (`LoRAModel.load_adapter(hotswap=True)`): all of it, or nothing.

    What can fail, and what takes long, comes first. Then the calls that run are waited for, and none begins until the
    numbers are copied.
    """
    state: AdapterState = model._lora
    check_known(state, [name])
    if is_trainable and not state.records[name].trainable:
        raise ArgumentError(
            f"is_trainable=True: {name!r} was loaded for inference, which a hot swap leaves as it is. Load the file "
            "under another name to train it."
        )
    _check_now(model, [name], "hotswap=True")
    files = files.onto(model)
    warn_of_others(files.notes, model, ())
    with own_head(model):
        groups, record = adding.read(model, state, files, state.records[name].trainable, check_base)
    _paired(state, name, groups)  # before anybody waits
    with state.gate.closed("load_adapter(hotswap=True)"), CHANGES:
        check_known(state, [name])
        _check_now(model, [name], "hotswap=True")
        pairs = _paired(state, name, groups)
        for old, new in pairs:
            new.fit_into(old)
        wait_for_devices(old for old, _ in pairs)  # a call ends before its kernels do
        try:
            _take_over(state, name, pairs, record)
        except BaseException:  # Ctrl-C between two tensors: half of each would be neither
            _take_over(state, name, pairs, record)
            raise


def _take_over(state: AdapterState, name: str, pairs: Pairs, record: Record) -> None:
    """Have all adapters of a name become others; once more is as once."""
    for old, new in pairs:
        old.become(new)
    wait_for_devices(old for old, _ in pairs)
    if (before := state.records[name]) is not record:
        state.records = {**state.records, name: record}
        before.config.released()


def _check_now(model: Any, names: Sequence[str], what: str) -> None:
    """Raise AdapterStateError where numbers cannot change now."""
    state: AdapterState = model._lora
    if set(names) & set(state.merged):
        state.refuse_while_merged(what)
    if model.training:
        raise AdapterStateError(
            f"{what} is for inference, and the model is in training mode: call eval(). To resume a training, "
            "load_weights(directory) copies saved tensors into its adapters."
        )


def _paired(state: AdapterState, name: str, groups: attaching.Groups) -> Pairs:
    """Return (an adapter of a name, the file's in its place) for all of them. Raises AdapterMismatchError."""
    own = {(m, key): a for m, _, key, a in state.carried(name)}
    new = {(m, key): a for m, group in groups.items() for key, (_, a) in group.items()}
    problems = [f"{_place(m, own[m, key])} has no tensors in the file" for m, key in own if (m, key) not in new]
    problems += [f"{_place(m, new[m, key])} is in the file alone" for m, key in new if (m, key) not in own]
    both = {a: new[place] for place, a in own.items() if place in new}
    places = {a: _place(module, a) for (module, _), a in own.items()}
    problems += [f"{places[a]} {why}" for a, other in both.items() if (why := a.unlike(other))]
    beside = [n for n in state.selected if n != name] if name in state.selected else []
    problems += [
        f"{_place(module, a)} has no meaning beside {other!r}, which is active as well"
        for (module, _), a in new.items()
        for other in (beside if module in state.layers else ())
        for b in state.layers[module].carried(other).values()
        if a.parameter == b.parameter and not a.acts_beside(b)
    ]
    if problems:
        raise AdapterMismatchError(
            f"hotswap=True: the file's adapter is not of the same targets and tensors as {name!r}: "
            f"{some(problems, 6, '; ')}. Nothing is changed; load it under another name."
        )
    if offloaded := [places[a] for a in both if any(tensor.is_meta for tensor in a.held().values())]:
        raise AdapterStateError(f"hotswap=True: {some(offloaded)}: offloaded adapters take no values in place.")
    return [*both.items()]


def _place(module: str, adapter: Adapter) -> str:
    return full_name(module, adapter.parameter)


def wait_for_devices(adapters: Iterable[Adapter]) -> None:
    """Wait until what was asked of the devices of adapters is done, on every stream."""
    devices = {tensor.device for adapter in adapters for tensor in adapter.held().values()}
    for device in devices - {torch.device("cpu")}:
        torch.accelerator.synchronize(device)
