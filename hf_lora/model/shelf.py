"""Where the adapters of a cache lie, on the model or in CPU memory, and which of them leave for others."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from ..errors import AdapterNameError, AdapterStateError, some
from ..layers.state import AdapterState
from .cached import Cached

# By cache (its id): the adapters that the blocks around use, in this thread or task.
HELD: ContextVar[Mapping[int, tuple[str, ...]]] = ContextVar("hf_lora_cached", default={})  # noqa: B039 (never written)


class Shelf:
    """Registered adapters, by name, and where each is. Its methods are called under the lock of whoever owns it.

    model: a LoRAModel. max_adapters, max_bytes, max_host_bytes: as of an AdapterCache.
    """

    def __init__(self, model: Any, max_adapters: int | None, max_bytes: int | None, max_host_bytes: int | None) -> None:
        self.model = model
        self._state: AdapterState = model._lora
        self.max_adapters, self.max_bytes, self.max_host_bytes = max_adapters, max_bytes, max_host_bytes
        self._entries: dict[str, Cached] = {}
        self._present: dict[str, Cached] = {}  # on the model, or moving to or from it; those asked for last come last
        self._host: dict[str, Cached] = {}  # in CPU memory; those that left last come last
        self._counts = dict.fromkeys(("hits", "misses", "from_host", "evictions", "loaded_bytes"), 0)

    def _known(self, names: Sequence[str]) -> list[Cached]:
        if unknown := [name for name in names if name not in self._entries]:
            raise AdapterNameError(
                f"no adapter {some([*map(repr, unknown)])} is registered; there are {len(self._entries)}: "
                f"{some([*self._entries], 8)}."
            )
        return [self._entries[name] for name in names]

    def _count(self, **more: int) -> None:
        for what, number in more.items():
            self._counts[what] += number

    def _check(self, entries: Mapping[str, Cached]) -> None:
        """Raise an error where adapters could not be resident at once, however long this thread waits."""
        there: Any = getattr(self.model, "_lora", None)
        if there is not self._state:
            raise AdapterStateError("the cache's model was unloaded: make an AdapterCache of the one that is here.")
        for name, entry in zip(entries, self._known([*entries]), strict=True):
            if entry is not entries[name]:
                raise AdapterNameError(f"{name!r} was unregistered meanwhile, and is another adapter now.")
            if name not in self._present and name in self._state.records:
                raise AdapterNameError(
                    f"the model has an adapter {name!r} that this cache did not bring, or that was swapped since: "
                    "delete_adapter() it, or register the file under another name."
                )
        used = self._used_here()
        stay = {n: e for n, e in self._present.items() if n not in entries and n in used}
        if entries.keys() - self._present.keys() and not self._fits({**stay, **entries}):
            beside = f" beside {some([*stay])}, which are selected, or in use around," if stay else ""
            raise AdapterStateError(
                f"{len(entries)} adapters of {sum(entry.size for entry in entries.values()):,} bytes are asked for at "
                f"once{beside} and max_adapters={self.max_adapters}, max_bytes={self.max_bytes}: ask for fewer at a "
                "time, or make the cache larger."
            )

    def _used_here(self) -> set[str]:
        """Return what does not leave before this thread (or task) goes on: it is selected, or in a block around."""
        block, names = self._state.own_block(), {*self._state.selected, *self._state.merged}
        held = (name for name in HELD.get().get(id(self), ()) if name in self._entries)
        names |= {name for name in held if self._entries[name].pins}
        while block is not None:
            names |= {*block.route}
            block = block.outer
        return names

    def _has_room(self, entries: Mapping[str, Cached]) -> bool:
        """Return whether adapters can be resident now: none of them moves, and enough others may leave."""
        for name, entry in [(name, entry) for name, entry in self._present.items() if not entry.moves]:
            if not entry.is_on(self.model, name):  # somebody deleted it, or put another in its place
                self._present.pop(name).built = None
        self._check(entries)
        if any(entry.moves for entry in entries.values()):
            return False
        stay = {name: entry for name, entry in self._present.items() if not self._may_leave(name, entry)}
        return entries.keys() <= self._present.keys() or self._fits({**stay, **entries})

    def _leaving(self, entries: Mapping[str, Cached]) -> dict[str, Cached]:
        """Return who leaves so that adapters have room: those that nobody asked for longest."""
        together, leaving = {**self._present, **entries}, dict[str, Cached]()
        for name, entry in self._present.items() if entries.keys() - self._present.keys() else ():
            if self._fits(together):
                break
            if name not in entries and self._may_leave(name, entry):
                leaving[name] = together.pop(name)
        return leaving

    def _may_leave(self, name: str, entry: Cached) -> bool:
        """Return whether nobody uses an adapter: not by this cache, and not by the model's own methods."""
        used = (*self._state.selected, *self._state.merged, *(n for b in tuple(self._state.blocks) for n in b.route))
        return not (entry.pins or entry.moves or name in used)

    def _fits(self, entries: Mapping[str, Cached]) -> bool:
        size = sum(entry.size for entry in entries.values())
        return (self.max_adapters is None or len(entries) <= self.max_adapters) and (
            self.max_bytes is None or size <= self.max_bytes
        )

    def _settle(self, missing: Mapping[str, Cached], leaving: Mapping[str, Cached]) -> None:
        """Note where adapters are that moved, and drop those that left first from CPU memory where it is too much."""
        for name, entry in {**missing, **leaving}.items():
            entry.moves = False
            if entry.is_on(self.model, name):
                self._count(loaded_bytes=entry.size if name in missing else 0)
                continue
            del self._present[name]
            if name in leaving and entry.built:
                self._host[name] = entry
            else:  # it could not be brought
                entry.built = entry.files = None
        size = sum(entry.size for entry in self._host.values())
        while self._host and self.max_host_bytes is not None and size > self.max_host_bytes:
            entry = self._host.pop(next(iter(self._host)))
            entry.built, size = None, size - entry.size
