"""A cache of adapters: many are registered, few lie on the model, and those that nobody asked for longest leave."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..errors import AdapterNameError, AdapterStateError, ArgumentError, some
from ..formats.contents import Contents
from ..layers.memory.head import own_head
from ..layers.routes import BASE
from ..layers.state import AdapterState, Record
from ..variants.adapter import Adapter
from . import adding, selecting
from .loading import opened
from .settings import warn_of_others
from .swapping import wait_for_devices

__all__ = ["AdapterCache", "CacheInfo"]

Asked = str | Sequence[str | Sequence[str] | Mapping[str, float]]


class CacheInfo(NamedTuple):
    """What a cache holds now, and what it did so far.

    registered, resident, pinned: numbers of adapters. hits, misses: of names asked for, those that were resident or
    not. from_host: the misses that came from CPU memory; the others came from disk. evictions: how many left.
    bytes, host_bytes: what the resident ones, and those that left, take. loaded_bytes: all that came so far.
    """

    registered: int
    resident: int
    pinned: int
    hits: int
    misses: int
    from_host: int
    evictions: int
    bytes: int
    host_bytes: int
    loaded_bytes: int


@dataclass(eq=False)
class _Entry:
    """A registered adapter. pins: how many requests use it; size: bytes on the device, an estimate until it was there.

    files: read, and not built yet. built: its adapters and record, while it is on the model or in CPU memory.
    """

    path: str | os.PathLike[str]
    kwargs: Mapping[str, Any]
    check_base: bool
    pins: int = 0
    size: int = 0
    moves: bool = False
    files: Contents | None = None
    built: tuple[adding.Groups, Record] | None = None
    devices: dict[Adapter, torch.device] = field(default_factory=dict)
    reading: threading.Lock = field(default_factory=threading.Lock)


class AdapterCache:
    """Adapters by name, of which those asked for last lie on a LoRAModel.

    model: a LoRAModel; adapters that it has besides are left alone. max_adapters, max_bytes: of how many, and of how
    much, may be resident; max_host_bytes: how much of those that left may wait in CPU memory, the rest is read again.
    None is no limit. Any number of threads may ask; loading disturbs none that computes, and waits only where all that
    is resident is in use.

    >>> from hf_lora import LoRAConfig, add_lora
    >>> cache = AdapterCache(add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoRAConfig(target_modules=["0"])))
    >>> cache.register("fr", "adapters/fr")  # nothing is read yet
    >>> cache.info().registered, cache.info().resident
    (1, 0)
    """

    def __init__(
        self,
        model: Any,
        *,
        max_adapters: int | None = None,
        max_bytes: int | None = None,
        max_host_bytes: int | None = None,
    ) -> None:
        if not isinstance(getattr(model, "_lora", None), AdapterState):
            raise ArgumentError(f"AdapterCache takes a LoRAModel, not a {type(model).__name__}.")
        for what, limit in (("max_adapters", max_adapters), ("max_bytes", max_bytes)):
            if limit is not None and limit < 1:
                raise ArgumentError(f"{what}={limit!r}: it is positive, or None for no limit.")
        self.model, self._state = model, model._lora
        self.max_adapters, self.max_bytes, self.max_host_bytes = max_adapters, max_bytes, max_host_bytes
        self._entries: dict[str, _Entry] = {}
        self._present: dict[str, _Entry] = {}  # on the model, or moving to or from it; those asked for last come last
        self._host: dict[str, _Entry] = {}  # in CPU memory; those that left last come last
        self._width = 8 if any(p.dtype == torch.float64 for p in model.parameters()) else 4  # bytes of a master
        self._changed = threading.Condition()
        self._counts = dict.fromkeys(("hits", "misses", "from_host", "evictions", "loaded_bytes"), 0)

    def register(self, name: str, path: str | os.PathLike[str], *, check_base: bool = True, **kwargs: Any) -> None:
        """Make an adapter known by a name; it is read when it is first asked for.

        path, check_base, kwargs: as for `load_adapter`. Raises AdapterNameError.
        """
        with self._changed:
            selecting.check_name(name, {**self._entries, **self._state.records})
            self._entries[name] = _Entry(path, kwargs, check_base)

    def unregister(self, name: str) -> None:
        """Forget an adapter, on the model, too. Raises AdapterStateError while it is in use."""
        with self._changed:
            entry = self._known([name])[0]
            if entry.pins or entry.moves:
                raise AdapterStateError(f"the adapter {name!r} is in use; unregister it when its requests have ended.")
            if self._present.pop(name, None) and name in self._state.records:
                self.model.delete_adapter(name)
            self._host.pop(name, None)
            del self._entries[name]
            self._changed.notify_all()

    @contextmanager
    def using(self, adapter_names: Asked) -> Iterator[None]:
        """Have adapters resident inside a `with` block: a name, or what `adapter_names=` of a call takes.

        All of a batch at once: who holds some and asks for more may wait for somebody who does the same.
        Raises what `acquire` raises.
        """
        self.acquire(adapter_names)
        try:
            yield
        finally:
            self.release(adapter_names)

    def acquire(self, adapter_names: Asked) -> None:
        """Make adapters resident, all or none, and keep them so until as many `release`; waits where there is no room.

        Raises AdapterNameError for names that are not registered, AdapterStateError where they are too many or too
        large to be resident at once, and what `load_adapter` raises.
        """
        names = _names(adapter_names)
        with self._changed:
            entries = dict(zip(names, self._known(names), strict=True))
        for entry in entries.values():
            self._read(entry)
        with self._changed:
            self._check_size(entries)
            self._changed.wait_for(lambda: self._has_room(entries))
            missing = {name: entry for name, entry in entries.items() if name not in self._present}
            leaving = self._leaving(entries)
            for name, entry in entries.items():
                self._present.pop(name, None)
                self._present[name] = entry
                entry.pins += 1
            for entry in (*missing.values(), *leaving.values()):
                entry.moves = True
            self._count(hits=len(entries) - len(missing), misses=len(missing), evictions=len(leaving))
            self._count(from_host=sum(self._host.pop(name, None) is not None for name in missing))
        if missing:
            self._move(entries, missing, leaving)

    def release(self, adapter_names: Asked) -> None:
        """End one use of adapters that `acquire` made resident. They stay until others need their room."""
        with self._changed:
            entries = self._known(_names(adapter_names))
            if any(not entry.pins for entry in entries):
                raise AdapterStateError(f"release({adapter_names!r}): not acquired, or released already.")
            for entry in entries:
                entry.pins -= 1
            self._changed.notify_all()

    def info(self) -> CacheInfo:
        """Return what the cache holds now and did so far."""
        with self._changed:
            there = [entry for entry in self._present.values() if not entry.moves]
            bytes_, host = (sum(e.size for e in entries) for entries in (there, self._host.values()))
            pinned = sum(entry.pins > 0 for entry in there)
            return CacheInfo(len(self._entries), len(there), pinned, bytes=bytes_, host_bytes=host, **self._counts)

    # --- who is where; under the lock -------------------------------------------------------------------------------

    def _known(self, names: Sequence[str]) -> list[_Entry]:
        if unknown := [name for name in names if name not in self._entries]:
            raise AdapterNameError(
                f"no adapter {some([*map(repr, unknown)])} is registered; there are {len(self._entries)}: "
                f"{some([*self._entries], 8)}."
            )
        return [self._entries[name] for name in names]

    def _count(self, **more: int) -> None:
        for what, number in more.items():
            self._counts[what] += number

    def _check_size(self, entries: Mapping[str, _Entry]) -> None:
        """Raise AdapterStateError where adapters could not be resident at once, whoever leaves."""
        if not self._fits(entries):
            for entry in entries.values():
                entry.files = None
            raise AdapterStateError(
                f"{len(entries)} adapters of {sum(entry.size for entry in entries.values()):,} bytes are asked for at "
                f"once, and max_adapters={self.max_adapters}, max_bytes={self.max_bytes}: ask for fewer at a time, or "
                "make the cache larger."
            )

    def _has_room(self, entries: Mapping[str, _Entry]) -> bool:
        """Return whether adapters can be resident now: none of them moves, and enough others may leave."""
        for name in [name for name, entry in self._present.items() if not entry.moves]:
            if name not in self._state.records:  # somebody deleted it
                self._present.pop(name).built = None
        if any(entry.moves for entry in entries.values()):
            return False
        stay = {name: entry for name, entry in self._present.items() if not self._may_leave(name, entry)}
        return entries.keys() <= self._present.keys() or self._fits({**stay, **entries})

    def _leaving(self, entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
        """Return who leaves so that adapters have room: those that nobody asked for longest."""
        together, leaving = {**self._present, **entries}, dict[str, _Entry]()
        for name, entry in self._present.items() if entries.keys() - self._present.keys() else ():
            if self._fits(together):
                break
            if name not in entries and self._may_leave(name, entry):
                leaving[name] = together.pop(name)
        return leaving

    def _may_leave(self, name: str, entry: _Entry) -> bool:
        """Return whether nobody uses an adapter: not by this cache, and not by the model's own methods."""
        used = (*self._state.selected, *self._state.merged, *(n for b in tuple(self._state.blocks) for n in b.route))
        return not (entry.pins or entry.moves or name in used)

    def _fits(self, entries: Mapping[str, _Entry]) -> bool:
        size = sum(entry.size for entry in entries.values())
        return (self.max_adapters is None or len(entries) <= self.max_adapters) and (
            self.max_bytes is None or size <= self.max_bytes
        )

    def _settle(self, missing: Mapping[str, _Entry], leaving: Mapping[str, _Entry]) -> None:
        """Note where adapters are that moved, and drop those that left first from CPU memory where it is too much."""
        for name, entry in {**missing, **leaving}.items():
            entry.moves = False
            if name in self._state.records:
                self._count(loaded_bytes=entry.size if name in missing else 0)
                continue
            del self._present[name]
            if name in leaving:
                self._host[name] = entry
            else:  # it could not be brought
                entry.built = entry.files = None
        size = sum(entry.size for entry in self._host.values())
        while self._host and self.max_host_bytes is not None and size > self.max_host_bytes:
            entry = self._host.pop(next(iter(self._host)))
            entry.built, size = None, size - entry.size

    # --- moving; outside of the lock --------------------------------------------------------------------------------

    def _move(
        self, entries: Mapping[str, _Entry], missing: Mapping[str, _Entry], leaving: Mapping[str, _Entry]
    ) -> None:
        """Take adapters off the model and bring others."""
        try:
            for name, entry in leaving.items():
                wait_for_devices(entry.devices)  # kernels of calls that have ended may still read it
                self.model.delete_adapter(name)
                for adapter in entry.devices:
                    adapter.to("cpu")
            for name, entry in missing.items():
                self._bring(name, entry)
        except BaseException:
            with self._changed:
                for entry in entries.values():
                    entry.pins -= 1
            raise
        finally:
            with self._changed:
                self._settle(missing, leaving)
                self._changed.notify_all()

    def _read(self, entry: _Entry) -> Contents | None:
        """Return an adapter's files, None where it is built; others wait for the same ones."""
        with entry.reading:
            if entry.built is None and entry.files is None:
                entry.files = opened(entry.path, **entry.kwargs).onto(self.model)
                tensors = entry.files.tensors.values()
                entry.size = sum(t.numel() * max(self._width, t.element_size()) for t in tensors)
            return entry.files if entry.built is None else None

    def _bring(self, name: str, entry: _Entry) -> None:
        """Put an adapter onto the model, from CPU memory or as it was read."""
        if entry.built is None:
            files = self._read(entry)  # again where it left CPU memory since
            assert files is not None
            warn_of_others(files.notes, self.model, ())
            with own_head(self.model):
                entry.built, entry.files = adding.read(self.model, self._state, files, False, entry.check_base), None
            adapters = {adapter for group in entry.built[0].values() for _, adapter in group.values()}
            entry.devices = {a: next(iter(a.held().values())).device for a in adapters}
            entry.size = sum(t.nbytes for adapter in adapters for t in adapter.held().values())
        for adapter, device in entry.devices.items():
            adapter.to(device)
        with own_head(self.model):
            adding.put_on(self.model, self._state, name, *entry.built)


def _names(given: Asked) -> tuple[str, ...]:
    """Return the adapters that `adapter_names=` of a call names, each once."""
    entries = [given] if isinstance(given, str) else given
    named = dict.fromkeys(name for entry in entries for name in ([entry] if isinstance(entry, str) else entry))
    return tuple(name for name in named if name != BASE)
