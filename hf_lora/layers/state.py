"""The state that all layers of a model share: a record an adapter, and the route that a forward takes.

A route is a value that never changes: the names of the adapters that act, in order; one without names is off. A model
has one for everybody. A block (`routed`) has one of its own in its thread or task, whatever others do meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError
from ..maths.fingerprint import Fingerprint
from .rates import LearningRates

__all__ = ["CHANGES", "OFF", "AdapterState", "Origin", "Record", "Route"]

Route = tuple[str, ...]
OFF: Route = ()
CHANGES = threading.RLock()  # held while a model's layers, records or common route change

_ROUTES: ContextVar[Mapping[int, Route]] = ContextVar("hf_lora_routes", default={})  # noqa: B039 (never written)


@dataclass(frozen=True)
class Origin:
    """What is known of an adapter's base.

    note: what its file says, written again as it is; None for an adapter that trains on the base that is here.
    seen: that base's fingerprint when the adapter came, for when its weights cannot be read any more (sharded).
    """

    note: Mapping[str, Any] | None = None
    seen: Fingerprint | None = None


@dataclass
class Record:
    """One adapter of a model: its config, where it comes from, and whether it trains when it is selected."""

    config: LoRAConfig
    origin: Origin = field(default_factory=Origin)
    trainable: bool = False


@dataclass
class AdapterState:
    """The adapters of a model, and which of them act.

    layers: the adapted ones (LoRALayer) by full name. selected: what `set_adapter` chose. default: the route outside
    of blocks, which is what is selected, or off. merged: what is inside the weights, so that no route adds it again.
    thawed: the parameters that required gradients before; commit: the base's on the Hub; rates: learning rates.
    """

    records: dict[str, Record] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    selected: Route = OFF
    default: Route = OFF
    merged: Route = OFF
    thawed: tuple[str, ...] = ()
    rates: LearningRates = field(default_factory=LearningRates)
    blocks: list[Route] = field(default_factory=list)  # of every thread and task, while they run
    is_routed: bool = False  # some block runs: only then a forward looks for one of its own

    @property
    def configs(self) -> dict[str, LoRAConfig]:
        """The adapters' configs by name."""
        return {name: record.config for name, record in self.records.items()}

    @property
    def trainable(self) -> set[str]:
        """The names of the adapters that train when they are selected."""
        return {name for name, record in self.records.items() if record.trainable}

    @property
    def is_off(self) -> bool:
        """Whether the selected adapters are switched off."""
        return self.selected != self.default

    @property
    def route(self) -> Route:
        """The route of a forward here and now; layers read nothing else, so switching costs no walk over them."""
        if self.is_routed:
            own = _ROUTES.get().get(id(self))
            if own is not None:
                return own
        return OFF if self.merged else self.default

    def select(self, names: Route) -> None:
        """Choose the adapters that act while they are not switched off."""
        self.selected, self.default = names, OFF if self.is_off else names

    def enable(self, enabled: bool) -> None:
        """Switch the selected adapters on or off, for everybody outside of a block."""
        self.default = self.selected if enabled else OFF

    @contextmanager
    def routed(self, route: Route) -> Iterator[None]:
        """Take this route inside a `with` block: in this thread (or task) alone."""
        with CHANGES:
            self.blocks.append(route)
            self.is_routed = True
        token = _ROUTES.set({**_ROUTES.get(), id(self): route})
        try:
            yield
        finally:
            try:
                _ROUTES.reset(token)
            finally:
                with CHANGES:
                    self.blocks.remove(route)
                    self.is_routed = bool(self.blocks)

    def refuse_inside(self, what: str, name: str | None = None) -> None:
        """Raise AdapterStateError where a block of any thread or task uses an adapter, or runs at all unless named.

        What changes the weights or takes an adapter away would compute with both, or with neither, in there.
        """
        used = [route for route in tuple(self.blocks) if name is None or name in route]
        if used:
            names = sorted({each for route in used for each in route})
            block = f"adapters_active() uses {names}" if names else "adapters_disabled() runs"
            raise AdapterStateError(f"{what}: a block of {block} in this thread or another; end it first.")

    def refuse_in_own_block(self, what: str, instead: str) -> None:
        """Raise AdapterStateError where this thread (or task) is in a block, whose route would stand."""
        if id(self) in _ROUTES.get():
            raise AdapterStateError(f"{what} would change nothing inside a block of adapters_active(); {instead}.")

    def refuse_while_merged(self, what: str) -> None:
        """Raise AdapterStateError while adapters are inside the weights."""
        if self.merged:
            raise AdapterStateError(
                f"{what}: {list(self.merged)} are merged into the weights; call unmerge_adapter() first."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "blocks": [], "is_routed": False}  # a copy is in nobody's block
