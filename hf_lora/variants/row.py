"""Row: what the variants' tables say of an adapter: its name, its class, its tensors, its paper. Needs no torch.

The class behind a row is imported when the first adapter of it is made, so that looking into files stays light.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from .papers import Paper

Part = Literal["A", "B", "embedding", "head", "other"]
RATED_HERE = "MiniLM on the sentiment of words, beside LoRA's 2e-3 (docs/benchmarks.md)"
MOST_ITERATIONS = 128  # of a randomised SVD: far more than it needs, and a config may be a stranger's


@dataclass(frozen=True)
class Rate:
    """The best learning rate of a formula or a start, relative to plain LoRA's. source: who measured it."""

    factor: float
    source: str


@dataclass(frozen=True)
class Stored:
    """One tensor of an adapter. attribute: its name there; key: its name in PEFT's files, below the layer's.

    table_key: the key of an embedding's, where that is another. older: keys that are read and not written.
    part: what LoRA+ takes it for. decays: whether weight decay falls on it; None where that depends on what it copies.
    inputs, outputs: the dimension that counts the inputs or the outputs of the weight. trains: False where it is saved
    and stays as it began, so that no gradient is made for it and no optimizer gets it. rank: the dimension that counts
    the rank. shared: one tensor for all adapters of a group (`Adapter.group_of`), which a file holds once: below the
    first layer of the group, or at_top of the file. needed: False where an adapter may be without it. of_base: it
    measures, row by row, what the adapter takes out of the base: a file's is compared with it, and never taken.
    """

    attribute: str
    key: str
    table_key: str = ""
    older: tuple[str, ...] = ()
    part: Part = "other"
    decays: bool | None = False
    inputs: int | None = None
    outputs: int | None = None
    trains: bool = True
    rank: int | None = None
    shared: bool = False
    at_top: bool = False
    needed: bool = True
    of_base: bool = False

    def key_on(self, embeds: bool) -> str:
        """Return the key that is written, of an embedding or another layer."""
        return self.table_key if embeds and self.table_key else self.key

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that stands for this tensor."""
        return tuple(filter(None, (self.key, self.table_key, *self.older)))

    @property
    def stems(self) -> tuple[str, ...]:
        """The keys without their last word, where that is "weight" or "bias"; older files put a name after them."""
        return tuple(dict.fromkeys(re.sub(r"\.(weight|bias)$", "", key) for key in self.keys))


@dataclass(frozen=True, eq=False)
class Row:
    """One kind of adapter.

    name: the row's, which configs and messages use. title: as its paper and reports write it.
    code: where its class is, "module:class". tensors: what it trains and saves, in the order in which it is saved.
    low_rank: it is a product of two factors on a weight. whole: it holds all of a parameter. of_rows: some of its rows.
    switch: the key of a config that asks for it; a key that is no field of LoRAConfig lies in `other`.
    peft_type: the method's name in an adapter_config.json, where PEFT or we have it as a method of its own; the switch
    is then in no file. renamed: fields of LoRAConfig -> their keys in such a file; values: of such a field, our word ->
    theirs. lacks: fields of LoRAConfig that it has no place for. in_peft: whether PEFT has the method at all.
    settings: keys of its own -> their defaults; bounds: of numbers among them, the least and the most; problems:
    returns what is wrong with them and `r` together, a sentence each. unread: keys of such a file that say nothing
    which its tensors and settings do not.
    budget: where the class is that chooses in training which components stay, "" where all do.
    unscaled: alpha / r has no part in it. starts: the values of init_lora_weights that it takes; empty for all.
    no_bias: why it goes with no `lora_bias`, "" where it does. engines: what can serve it as it is meant.
    own_tensor: what its first tensor beyond plain LoRA's is called in a report.
    elsewhere: why another tool's adapter under the same switch is something else, by tool. rate: None where nobody has
    measured it.
    """

    name: str
    title: str
    code: str
    tensors: tuple[Stored, ...]
    low_rank: bool = False
    whole: bool = False
    of_rows: bool = False
    switch: str = ""
    peft_type: str = "LORA"
    in_peft: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    problems: Callable[[Mapping[str, Any]], list[str]] = lambda settings: []
    budget: str = ""
    starts: frozenset[bool | str] = frozenset()
    unscaled: bool = False
    paper: Paper | None = None
    no_bias: str = ""
    engines: frozenset[str] = frozenset()
    own_tensor: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    rate: Rate | None = None

    @cached_property
    def adapter(self) -> Any:
        """The class, a subclass of `adapter.Adapter`."""
        return _imported(self.code)

    @cached_property
    def budget_class(self) -> Any:
        """The class of its budget, where it has one."""
        return _imported(self.budget)

    @property
    def needed(self) -> set[str]:
        """The attributes of the tensors that a file holds for each adapted layer."""
        return {stored.attribute for stored in self.tensors if stored.needed and not stored.shared}

    @property
    def reads_base(self) -> bool:
        """Whether such an adapter is built on factors of the weight itself, which no file holds."""
        return any(stored.of_base for stored in self.tensors)

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """The tensors by attribute."""
        return {stored.attribute: stored for stored in self.tensors}


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
