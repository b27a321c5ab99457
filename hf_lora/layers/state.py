"""The state that all layers of a model share: a record an adapter, and the route that a forward takes.

A route is a value that never changes: the names of the adapters that act, in order; one without names is off. A model
has one for everybody. A block (`routed`) has one of its own in its thread or task, whatever others do meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..config.lora_config import LoRAConfig
from ..errors import AdapterNameError, AdapterStateError
from ..maths.fingerprint import Fingerprint
from ..variants.adapter import Adapter
from .gate import Gate
from .rates import LearningRates
from .routes import OFF, Route, Told

CHANGES = threading.RLock()  # held while a model's layers and records change, which may take seconds
BLOCKS = threading.Lock()  # held while a block begins or ends, or what blocks must not see changes; within CHANGES


class Block:
    """A block of one thread or task: its route, until it ends. outer: the one around it, of the same state.

    trains: whether it began in training mode, so that a backward pass may compute its forward again. is_fixed: whether
    switching the adapters on or off has no effect inside, since the model's own code does it there.
    """

    def __init__(self, route: Route, outer: Block | None, trains: bool, is_fixed: bool) -> None:
        self.route, self.outer, self.trains, self.is_fixed, self.is_open = route, outer, trains, is_fixed, True


_HERE: ContextVar[Mapping[int, Block]] = ContextVar("hf_lora_blocks", default={})  # noqa: B039 (never written)


@dataclass(frozen=True)
class Origin:
    """What is known of an adapter's base.

    note: what its file says, written again as it is; None for an adapter that trains on the base that is here.
    seen: that base's fingerprint when the adapter came, for when its weights cannot be read any more (sharded).
    floats: where some of its adapted weights cannot be read (quantised), that of what can, and a checksum of its names.
    settings: what its file says of how the base was loaded, for when that cannot be told of the base that is here.
    recipe: of which adapters it was made, and how; None for one that began by itself.
    """

    note: Mapping[str, Any] | None = None
    seen: Fingerprint | None = None
    floats: tuple[Fingerprint, str] | None = None
    settings: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None


@dataclass
class Record:
    """One adapter of a model: its config, where it comes from, and whether it trains when it is selected.

    is_asked: whether a first step has told what of it does not train. trains_in_rows: whether it was asked to train
    whatever is selected.
    """

    config: LoRAConfig
    origin: Origin = field(default_factory=Origin)
    trainable: bool = False
    is_asked: bool = False
    trains_in_rows: bool = False


class Carried(NamedTuple):
    """One adapter on its layer: the layer's full name, the layer, the adapter's key there."""

    module: str
    layer: Any
    key: str
    adapter: Adapter


@dataclass
class AdapterState:
    """The adapters of a model, and which of them act.

    layers: the adapted ones (LoRALayer) by full name. selected: what `set_adapter` chose, which is the route outside of
    blocks. instead: the route in its place, None but for adapters that are switched off. merged: what is inside the
    weights, so that no route adds it again.
    thawed: the parameters that required gradients before; commit: the base's on the Hub; place: where else there its
    checkpoint lies (revision, subfolder, cache_dir); rates: learning rates. looked_at: the layers of which it was seen
    which cannot tell whose a row is: turned: those `below_turning`, singles: those of a single expert.
    """

    records: dict[str, Record] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    place: Mapping[str, Any] = field(default_factory=dict)
    selected: Route = OFF
    instead: Route | None = None
    merged: Route = OFF
    thawed: tuple[str, ...] = ()
    rates: LearningRates = field(default_factory=LearningRates)
    blocks: list[Block] = field(default_factory=list)  # of every thread and task, while they run
    is_routed: bool = False  # some block runs: only then a forward looks for one of its own
    told: Told = field(default_factory=Told)
    looked_at: Mapping[str, Any] | None = None
    turned: frozenset[str] = frozenset()
    singles: tuple[str, ...] = ()
    gate: Gate = field(default_factory=Gate)  # passed by every call of the model, closed while numbers change in place

    @property
    def configs(self) -> dict[str, LoRAConfig]:
        """The adapters' configs by name."""
        return {name: record.config.attached() for name, record in self.records.items()}

    def carried(self, *names: str) -> Iterator[Carried]:
        """Yield every adapter of some names where it is; one that tied layers share comes in each of them."""
        for module, layer in self.layers.items():
            for name in names:
                for key, adapter in layer.carried(name).items():
                    yield Carried(module, layer, key, adapter)

    def requires_gradients(self, name: str) -> bool:
        """Return whether anything of an adapter is trained now."""
        return any(p.requires_grad for each in self.carried(name) for p in each.adapter.parameters())

    @property
    def trainable(self) -> set[str]:
        """The names of the adapters that train when they are selected."""
        return {name for name, record in self.records.items() if record.trainable}

    @property
    def is_off(self) -> bool:
        """Whether the adapters are switched off for everybody outside of a block."""
        return self.instead is not None

    @property
    def route(self) -> Route:
        """The route of a forward here and now; layers read nothing else, so switching costs no walk over them.

        Raises AdapterStateError where a backward pass computes again, in a thread of its own, what a block that began
        in training mode may have computed: that thread cannot know the block's route.
        """
        if (told := self.told.route) is not None:
            return told
        if self.is_routed:
            block = self.own_block()
            if block is not None:
                return block.route
            self._refuse_unknown()
        return OFF if self.merged else self.selected if self.instead is None else self.instead

    @contextmanager
    def routed(self, route: Route, what: str = "", trains: bool = False, is_fixed: bool = False) -> Iterator[None]:
        """Take this route inside a `with` block: in this thread (or task) alone, and in no other once it has ended.

        what: who asks, to be refused while adapters are merged. trains: whether a backward pass may follow inside.
        is_fixed: whether nothing inside switches adapters on or off.
        Raises AdapterStateError while merged, AdapterNameError where an adapter of the route is gone.
        """
        with BLOCKS:
            if what:
                self.refuse_while_merged(what)
            if gone := [name for name in route if name not in self.records]:
                raise AdapterNameError(f"the adapter {gone[0]!r} was deleted meanwhile.")
            block = Block(route, self.own_block(), trains, is_fixed)
            self.blocks.append(block)
            self.is_routed = True
        token = _HERE.set({**_HERE.get(), id(self): block})
        told, self.told.route = self.told.route, None
        try:
            yield
        finally:
            block.is_open = False
            if told is not None:
                self.told.route = told
            with suppress(ValueError):  # somebody closes a generator elsewhere; the block has ended there as well
                _HERE.reset(token)
            with BLOCKS:
                self.blocks.remove(block)
                self.is_routed = bool(self.blocks)

    @contextmanager
    def inside(self, route: Route) -> Iterator[None]:
        """Take a part of the route of a block that is open here, for a part of what computes in it."""
        outer = self.own_block()
        token = _HERE.set({**_HERE.get(), id(self): Block(route, outer, outer is not None and outer.trains, False)})
        try:
            yield
        finally:
            _HERE.reset(token)

    def refuse_inside(self, what: str, name: str | None = None) -> None:
        """Raise AdapterStateError where a block of any thread or task uses an adapter, or runs at all unless named.

        What changes the weights or takes an adapter away would compute with both, or with neither, in there.
        """
        used = [block.route for block in tuple(self.blocks) if name is None or name in block.route]
        if used:
            names = sorted({each for route in used for each in route})
            block = f"adapters_active() uses {names}" if names else "adapters_disabled() runs"
            raise AdapterStateError(f"{what}: a block of {block} in this thread or another; end it first.")

    def own_block(self) -> Block | None:
        """Return the innermost open block that this thread (or task) is in, None where it is in none."""
        block = _HERE.get().get(id(self))
        while block is not None and not block.is_open:
            block = block.outer
        return block

    def _refuse_unknown(self) -> None:
        if torch._C._current_graph_task_id() != -1 and any(block.trains for block in tuple(self.blocks)):
            raise AdapterStateError(
                "a backward pass computes a forward again (gradient checkpointing) in a thread that knows nothing of "
                "the block around it: call disable_adapters() before the forward and enable_adapters() after the "
                "backward pass, in the place of adapters_disabled()."
            )

    def refuse_while_merged(self, what: str) -> None:
        """Raise AdapterStateError while adapters are inside the weights."""
        if self.merged:
            raise AdapterStateError(
                f"{what}: {list(self.merged)} are merged into the weights; call unmerge_adapter() first."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "blocks": [], "is_routed": False}  # a copy is in nobody's block
