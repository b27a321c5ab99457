"""A cache of adapters: many are registered, few lie on the model, and those that nobody asked for longest leave."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from ..config.lora_config import LoRAConfig
from ..config.rules import is_int
from ..errors import AdapterNameError, AdapterStateError, ArgumentError
from ..files.sources import HUB_KWARGS, place_of
from ..layers.routes import BASE
from ..layers.state import AdapterState
from . import selecting
from .cached import Cached
from .hints import checked, refuse_unknown
from .shelf import HELD, Shelf

_LOOK = 0.05  # seconds: the model's own methods end their use of an adapter without a word

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


class AdapterCache(Shelf):
    """Adapters by name, of which those asked for last lie on a LoRAModel.

    model: a LoRAModel; adapters that it has besides are left alone. max_adapters, max_bytes: of how many, and of how
    much, may be resident; max_host_bytes: how much of those that left may wait in CPU memory, the rest is read again.
    None is no limit. Any number of threads may ask; loading disturbs none that computes, and waits only where all that
    is resident is in use.

    >>> import torch
    >>> from hf_lora import LoRAConfig, add_lora
    >>> cache = AdapterCache(add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoRAConfig(target_modules=["0"])))
    >>> cache.register("fr", "adapters/fr")  # nothing is read yet
    >>> cache.info().registered, cache.info().resident
    (1, 0)
    """

    @checked("AdapterCache()")
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
        limits = (("max_adapters", max_adapters, 1), ("max_bytes", max_bytes, 1), ("max_host_bytes", max_host_bytes, 0))
        for what, limit, least in limits:
            if limit is not None and not is_int(limit, least):
                raise ArgumentError(f"{what}={limit!r}: it is an integer from {least} on, or None for no limit.")
        super().__init__(model, max_adapters, max_bytes, max_host_bytes)
        self._changed = threading.Condition()

    def register(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        lora_config: LoRAConfig | None = None,
        check_base: bool = True,
        ignore_unknown: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make an adapter known by a name; it is read when it is first asked for.

        path and the others: as for `load_adapter`. Raises AdapterNameError, ArgumentError.
        """
        refuse_unknown("register()", kwargs, ("lora_config", "check_base", "ignore_unknown", *HUB_KWARGS))
        with self._changed:
            if name in self._entries:
                raise AdapterNameError(f"{name!r} is registered already: unregister() it first, or take another name.")
            selecting.check_name(name, {**self._entries, **self._state.records})
            self._entries[name] = Cached((place_of(path), lora_config, ignore_unknown), kwargs, check_base)

    def unregister(self, name: str) -> None:
        """Forget an adapter, on the model, too. Raises AdapterStateError while it is in use."""
        with self._changed:
            entry = self._known([name])[0]
            if entry.pins or entry.moves:
                raise AdapterStateError(f"the adapter {name!r} is in use; unregister it when its requests have ended.")
            if name in self._present and entry.is_on(self.model, name):
                self.model.delete_adapter(name)
            for held in (self._present, self._host, self._entries):
                held.pop(name, None)
            self._changed.notify_all()

    @contextmanager
    def using(self, adapter_names: Asked) -> Iterator[None]:
        """Have adapters resident inside a `with` block: a name, or what `adapter_names=` of a call takes.

        All of a batch at once: who holds some and asks for more may wait for somebody who does the same.
        Raises what `acquire` raises.
        """
        names, outer = self._asked(adapter_names), HELD.get()
        self.acquire(names)
        token = HELD.set({**outer, id(self): (*outer.get(id(self), ()), *names)})
        try:
            yield
        finally:
            with suppress(ValueError):  # somebody closes a generator elsewhere
                HELD.reset(token)
            self.release(names)

    def acquire(self, adapter_names: Asked) -> None:
        """Make adapters resident, all or none, and keep them so until as many `release`; waits where there is no room.

        Raises AdapterNameError for names that are not registered, or that somebody gave to another adapter;
        AdapterStateError where they are too many or too large to be resident at once, beside what is selected and what
        the blocks around use; and what `load_adapter` raises.
        """
        names = self._asked(adapter_names)
        with self._changed:
            entries = dict(zip(names, self._known(names), strict=True))
        try:
            for entry in entries.values():
                entry.read(self.model)
            missing, leaving = self._take(entries)
        except BaseException:
            for entry in entries.values():
                entry.files = None  # whoever else waits with them reads them again
            raise
        if missing:
            self._move(entries, missing, leaving)

    def _take(self, entries: Mapping[str, Cached]) -> tuple[dict[str, Cached], dict[str, Cached]]:
        """Wait until there is room, pin adapters, and return (those that have to come, those that leave for them)."""
        with self._changed:
            while not self._has_room(entries):
                self._changed.wait(_LOOK)
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
            return missing, leaving

    def release(self, adapter_names: Asked) -> None:
        """End one use of adapters that `acquire` made resident. They stay until others need their room."""
        with self._changed:
            entries = self._known(self._asked(adapter_names))
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

    def _asked(self, given: Asked) -> tuple[str, ...]:
        """Return the adapters that are asked for, without those of the model that are not the cache's to bring."""
        return tuple(n for n in _names(given) if n in self._entries or n not in self._state.records)

    def _move(
        self, entries: Mapping[str, Cached], missing: Mapping[str, Cached], leaving: Mapping[str, Cached]
    ) -> None:
        """Take adapters off the model and bring others, outside of the lock."""
        try:
            for name, entry in leaving.items():
                entry.put_away(self.model, name)
            for name, entry in missing.items():
                entry.bring(self.model, name)
        except BaseException:
            with self._changed:
                for entry in entries.values():
                    entry.pins -= 1
            raise
        finally:
            with self._changed:
                self._settle(missing, leaving)
                self._changed.notify_all()


def _names(given: Asked) -> tuple[str, ...]:
    """Return the adapters that `adapter_names=` of a call names, each once."""
    entries = [given] if isinstance(given, str) else given
    named = dict.fromkeys(name for entry in entries for name in ([entry] if isinstance(entry, str) else entry))
    return tuple(name for name in named if name != BASE)
