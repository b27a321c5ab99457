"""The one object that says which adapters a model has and which of them a forward uses; all its layers share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError
from ..maths.fingerprint import Fingerprint
from .rates import LearningRates

_ROUTES: ContextVar[dict[int, tuple[str, ...]]] = ContextVar("hf_lora_routes", default={})  # noqa: B039 (never written)

_OPEN: list[tuple[int, tuple[str, ...]]] = []  # the routes of all blocks that run now, in any thread


@dataclass(frozen=True)
class Origin:
    """What is known of an adapter's base.

    note: what its file says, written again as it is; None for an adapter that trains on the base that is here.
    seen: that base's fingerprint when the adapter came, for when its weights cannot be read any more (sharded).
    """

    note: Mapping[str, Any] | None = None
    seen: Fingerprint | None = None


@dataclass
class AdapterState:
    """Adapters by name, and the ones in use.

    active: what a forward adds, in order; empty while disabled or merged. Layers read nothing else, so switching
    costs no walk over them. origins: what is known of the base that each was trained on; commit: the base's on the Hub.
    """

    configs: dict[str, LoRAConfig] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)  # full name -> LoRALayer
    origins: dict[str, Origin] = field(default_factory=dict)
    commit: str | None = None
    trainable: set[str] = field(default_factory=set)
    selected: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    enabled: bool = True
    thawed: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    rates: LearningRates = field(default_factory=LearningRates)

    def select(self, names: tuple[str, ...]) -> None:
        """Choose the adapters that a forward uses while enabled."""
        self.selected = names
        self._route()

    def enable(self, enabled: bool) -> None:
        """Switch all adapters on or off."""
        self.enabled = enabled
        self._route()

    def note_merged(self, names: tuple[str, ...]) -> None:
        """Record which adapters are inside the weights now."""
        self.merged = names
        self._route()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Let every reader see the base's own tensors inside a `with` block."""
        active, self.active = self.active, ()
        try:
            yield
        finally:
            self.active = active

    @contextmanager
    def routed(self, names: tuple[str, ...]) -> Iterator[None]:
        """Let forwards use these adapters inside a `with` block: in this thread (or task) alone."""
        if type(self) is AdapterState:  # a model that is never routed pays nothing for it
            self.__class__ = _RoutedState
        token, entry = _ROUTES.set({**_ROUTES.get(), id(self): names}), (id(self), names)
        _OPEN.append(entry)
        try:
            yield
        finally:
            _OPEN.remove(entry)
            _ROUTES.reset(token)

    def refuse_inside(self, what: str, names: tuple[str, ...] | None = None) -> None:
        """Raise AdapterStateError where a `routed` block of any thread uses one of these adapters (any unless given).

        What changes the weights or takes an adapter away would compute with both, or with neither, in there.
        """
        used = {name for key, block in tuple(_OPEN) if key == id(self) for name in block}
        if used if names is None else used & {*names}:
            raise AdapterStateError(
                f"{what}: a block of adapters_active() uses {sorted(used)} in this thread or another; end it first."
            )

    def refuse_in_own_block(self, what: str, instead: str) -> None:
        """Raise AdapterStateError where this thread (or task) is in a `routed` block, whose choice would stand."""
        if id(self) in _ROUTES.get():
            raise AdapterStateError(f"{what} would change nothing inside a block of adapters_active(); {instead}.")

    def _route(self) -> None:
        self.__dict__["active"] = self.selected if self.enabled and not self.merged else ()


class _RoutedState(AdapterState):
    """A state that looks for the running context's own route before the common one."""

    @property
    def active(self) -> tuple[str, ...]:
        route = _ROUTES.get().get(id(self))
        return self.__dict__["active"] if route is None else route

    @active.setter
    def active(self, names: tuple[str, ...]) -> None:
        routes = _ROUTES.get()
        if id(self) in routes:
            routes[id(self)] = names
        else:
            self.__dict__["active"] = names
