"""New rows of the vocabulary: tokens that were added and resized for are trained and saved, and only they.

Which rows are new is noted when the model is resized (`integrations/models.py`), so that nobody has to ask the Hub
how large the base's vocabulary was, and the whole embedding need not be saved to be sure.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError, ConfigError
from ..formats.keys import PREFIX
from ..formats.peft import trained_rows
from ..layers.layer import base_modules
from ..layers.memory.head import own_head
from ..layers.routes import OFF
from ..layers.state import CHANGES, AdapterState
from ..targets.names import input_table, listed_modules, saved_modules
from ..variants.adapter import own_tensor
from .adding import extend
from .selecting import select

_MOST_NEW = 1_000_000  # rows: no file can make us ask for any amount of memory
_FIRST_NEW = "_lora_first_new_row"  # of a table: its rows from here on were added by resizing


@contextmanager
def new_rows_noted(model: Any) -> Iterator[None]:
    """Note on a model's table, inside a `with` block that may resize it, from which row on it is new.

    Shrinking below that row takes the note back.
    """
    table = input_table(model)
    first = _rows(table) if table is None else table.__dict__.get(_FIRST_NEW, _rows(table))
    yield
    table = input_table(model)
    if table is not None and first < _rows(table):
        table.__dict__[_FIRST_NEW] = first
    elif table is not None:
        table.__dict__.pop(_FIRST_NEW, None)


def with_new_rows(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """Return a config that trains the rows that resizing added, those of an untied output layer as well.

    The same config where there are none. Rows that it names itself train beside them. Where it saves the table whole,
    the output layer tied to it is saved too. Raises ConfigError where it adapts a table, whose new rows would be lost,
    and names no rows; where it does name some, an adapted output layer is told by a warning.
    """
    table = input_table(model)
    first = None if table is None else table.__dict__.get(_FIRST_NEW)
    if table is None or first is None:
        return config
    modules, head = dict(base_modules(model)), _head(model) or table
    tied = own_tensor(head, "weight") is own_tensor(table, "weight")
    names = {n: m for n, m in modules.items() if m is table or m is head}
    saved, given = saved_modules(config.modules_to_save or (), names), config.trainable_token_indices
    if lost := [n for n in listed_modules(config, names) if n not in saved]:
        new = f"the vocabulary was resized, and rows {first} to {_rows(table) - 1} of {lost[0]} are new: LoRA on it "
        if given is None:
            raise ConfigError(
                f"{new}would not save them. Name it in modules_to_save, or its rows in trainable_token_indices."
            )
        warnings.warn(f"{new}does not save them, so a reload has others. Name it in modules_to_save.", stacklevel=3)
    if given is None and saved and tied:
        return config.copy(modules_to_save=[*(config.modules_to_save or ()), *(n for n in names if n not in saved)])
    own = {n: m for n, m in names.items() if n not in (*saved, *lost) and (m is table or not tied)}
    named = _named(config, next(n for n, m in names.items() if m is table))
    for name, module in own.items():
        key = next((key for key in named if saved_modules([key], {name: module})), name)
        rows = named.get(key, [])
        if more := [row for row in range(first, _rows(module)) if row not in rows]:
            named[key] = [*rows, *more]
    same = list(named.values()) if isinstance(given, list) else named
    return config if same in (given, [given], {}) else config.copy(trainable_token_indices=named)


def _named(config: LoRAConfig, table: str) -> dict[str, list[int]]:
    """Return the rows that a config trains by the names that it gives tables; table: the input table's own."""
    rows = config.trainable_token_indices
    by_name = rows if isinstance(rows, Mapping) else {table: rows} if rows else {}
    return {name: list(each) for name, each in by_name.items()}


def _head(model: nn.Module) -> nn.Module | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return head if isinstance(head, nn.Linear) else None


def make_room(model: nn.Module, config: LoRAConfig, tensors: Mapping[str, Tensor], cut: int | None = None) -> None:
    """Resize a base that was loaded for an adapter to the vocabulary that it was trained with, where the adapter says.

    It does where it holds the whole table, or every row from the base's last one on. Said by a UserWarning.
    cut: the rows of a table that was made smaller.
    """
    table = input_table(model)
    own = _rows(table)
    name = next((n for n, m in base_modules(model) if m is table), None)
    if table is None or name is None:
        return
    saved, rows = tensors.get(f"{PREFIX}{name}.weight"), trained_rows(config)
    count = saved.shape[0] if saved is not None and saved.ndim == 2 else max(*rows, (cut or 0) - 1, -1) + 1
    if count == own or count > own + _MOST_NEW:
        return
    if saved is None and (count != cut if count < own else not rows >= set(range(own, count))):
        return
    resize: Any = model.resize_token_embeddings
    takes_mean = "mean_resizing" in inspect.signature(resize).parameters  # MobileBERT's own takes a size only
    is_brought = takes_mean and _brings_all(model, config, tensors, name, range(own, count))
    resize(count, **({"mean_resizing": False} if is_brought else {}))
    warnings.warn(
        f"the base's vocabulary was resized from {own} to {count} rows, as it was when the adapter was trained.",
        stacklevel=4,
    )


def _brings_all(model: nn.Module, config: LoRAConfig, tensors: Mapping[str, Tensor], name: str, new: range) -> bool:
    """Return whether a file has all new rows of the input table of that name, and of an untied output layer."""
    # Else some stay as resizing makes them, which is near the mean of the others.
    table, head = input_table(model), _head(model)
    is_untied = head is not None and table is not None and own_tensor(head, "weight") is not own_tensor(table, "weight")
    tables = {n: m for n, m in base_modules(model) if n == name or (is_untied and m is head)}
    rows = _named(config, name)
    held = {n: {r for key in rows if saved_modules([key], {n: m}) for r in rows[key]} for n, m in tables.items()}
    return all(held[n] >= {*new} or f"{PREFIX}{n}.weight" in tensors for n in tables)


def warn_of_tokens(model: nn.Module, tokenizer: Any) -> None:
    """Warn where a tokenizer, or that of a processor, has tokens that the model's table has no rows for."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    count, rows = len(tokenizer) if hasattr(tokenizer, "__len__") else 0, _rows(input_table(model))
    if 0 < rows < count:
        warnings.warn(
            f"the tokenizer has {count} tokens and the model rows for {rows}: a text with a later one would end in an "
            f"IndexError. model.resize_token_embeddings({count}), before the adapter is added or after, makes room.",
            stacklevel=2,
        )


def _rows(table: nn.Module | None) -> int:
    weight: Tensor | None = None if table is None else own_tensor(table, "weight")
    return 0 if weight is None else weight.shape[0]


def overridden(base: type) -> dict[str, Any]:
    """Return the methods of a Transformers model's class as a LoRAModel has them, where the class has them."""

    def tie_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Tie the base's own parameters, as the model's class does; adapters stay where they are.

        Raises AdapterStateError while merged: what merging parted would be lost.
        """
        self._lora.refuse_while_merged("tie_weights")
        with self._lora.routed(OFF):
            return base.tie_weights(self, *args, **kwargs)  # type: ignore[attr-defined]

    def resize_token_embeddings(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Resize the vocabulary, as the model's class does; rows that are new train with the trainable adapters.

        Raises AdapterStateError while merged, and where an embedding or the output layer carries an adapter and the
        size would change: it would be lost with the module that is replaced. Resize before adding the adapter.
        """
        state: AdapterState = self._lora
        state.refuse_while_merged("resize_token_embeddings")
        table = self.get_input_embeddings()
        adapted = [n for n, layer in state.layers.items() if layer is table or layer is self.get_output_embeddings()]
        given = dict(zip(("new_num_tokens", "pad_to_multiple_of"), args, strict=False)) | kwargs
        if adapted:
            count, multiple = given.get("new_num_tokens"), given.get("pad_to_multiple_of") or 1
            if _rows(table) == -(-(_rows(table) if count is None else count) // multiple) * multiple:
                return table
            raise AdapterStateError(f"{adapted[0]} carries an adapter, which resizing would lose; resize first.")
        with own_head(self), CHANGES:
            table = base.resize_token_embeddings(self, *args, **kwargs)  # type: ignore[attr-defined]
            for name in sorted(state.trainable):
                extend(self, state, with_new_rows(self, state.configs[name]), name)
            select(state, state.selected)
        return table

    return {"tie_weights": tie_weights, "resize_token_embeddings": resize_token_embeddings}
