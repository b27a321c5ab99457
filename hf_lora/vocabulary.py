"""New rows of the vocabulary: tokens that were added and resized for are trained and saved, and only they.

Which rows are new is noted when the model is resized (`hooks`), so that nobody has to ask the Hub how large the base's
vocabulary was, and the whole embedding need not be saved to be sure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .config import LoRAConfig
from .layer import base_modules, own_tensor
from .targets import listed_modules, saved_modules

__all__ = ["input_table", "new_rows_noted", "with_new_rows"]

_FIRST_NEW = "_lora_first_new_row"  # of a table: its rows from here on were added by resizing


def input_table(model: Any) -> nn.Module | None:
    """Return the table that a model looks its tokens up in, None where it has none or does not say."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table if isinstance(table, nn.Module) else None


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

    The same config where there are none, where it names rows itself, or saves or adapts the table.
    """
    table = input_table(model)
    first = None if table is None else table.__dict__.get(_FIRST_NEW)
    if table is None or first is None or config.trainable_token_indices is not None:
        return config
    modules = dict(base_modules(model))
    names = {name: module for name, module in modules.items() if any(module is t for t in _tables(model, table))}
    covered = {*saved_modules(config.modules_to_save or (), names), *listed_modules(config, names)}
    rows = {name: list(range(first, _rows(module))) for name, module in names.items() if name not in covered}
    return config.copy(trainable_token_indices=rows) if any(rows.values()) else config


def _tables(model: Any, table: nn.Module) -> list[nn.Module]:
    """Return the input table, and the output layer where its weight is another parameter."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or own_tensor(head, "weight") is own_tensor(table, "weight"):
        return [table]
    return [table, head]


def _rows(table: nn.Module | None) -> int:
    weight: Tensor | None = None if table is None else own_tensor(table, "weight")
    return 0 if weight is None else weight.shape[0]
