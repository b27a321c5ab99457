"""The one file that asks Transformers where weights of its older versions lie in today's models.

Version 5 renamed modules (ViT's `attention.attention.query` is `attention.q_proj`), fused the experts of mixtures into
one parameter and split fused projections. Its checkpoint loader holds the table: names are rewritten by a list of
renamings, then by at most one converter, which also says how the tensors are put together.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..layers.specialising import is_pretrained


@dataclass(frozen=True)
class Today:
    """Where an older weight lies today.

    names: full names of parameters; several where the weight was split. steps: how it got there: "stack" (one of
    several along a new first dimension), "beside in D" (put together along dimension D), "split" (rows apart); any
    other word is an operation that is not understood here. part of parts: which of the weights put together. item:
    which of the stack.
    """

    names: tuple[str, ...]
    steps: tuple[str, ...] = ()
    part: int = 0
    parts: int = 1
    item: int = 0


def todays_names(model: Any, names: Iterable[str]) -> dict[str, Today]:
    """Return where Transformers' table puts weights by their older full names; only those that it knows."""
    if not is_pretrained(model):
        return {}
    # Not above: where no model's class has been imported yet, these take two seconds.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    table = get_model_conversion_mapping(model)
    converters = [row for row in table if isinstance(row, WeightConverter)]
    found = {}
    for name in sorted(names):  # rows that act in groups expect this order
        new = name
        for row in table:
            if not isinstance(row, WeightConverter):
                new, _ = row.rename_source_key(new)
        today = Today((new,))
        for row in converters:
            full, source = row.rename_source_key(new)
            if source is not None:
                today = _converted(row, name, full, row.source_patterns.index(source))
                break
        if today.names != (name,):
            found[name] = today
    return found


def _converted(row: Any, name: str, full: str, part: int) -> Today:
    first, *others = row.target_patterns
    names = (full, *(full.replace(first, other) for other in others))
    steps = tuple(word for op in row.operations if (word := _word(op)) is not None)
    return Today(names, steps, part, len(row.source_patterns), _item(name, full))


def _word(op: Any) -> str | None:
    """Return our word for an operation, None for one that changes no value or order of a matrix's rows."""
    name, dim = type(op).__name__, getattr(op, "dim", None)
    if name == "Force16BytesAlignment" or (name == "Transpose" and {op.dim0, op.dim1} == {1, 2}):
        return None  # how a stack's matrices lie is their owner's to say
    if name == "MergeModulelist" and dim == 0:
        return "stack"
    if name == "Concatenate" and dim in (0, 1):
        return f"beside in {dim}"
    if name in ("Chunk", "Split") and dim == 0 and getattr(op, "num_shards_attribute", None) is None:
        return "split"
    return repr(op)


def _item(old: str, new: str) -> int:
    """Return the number in an old name that the new one has lost: the expert's."""
    before, after = old.split("."), new.split(".")
    while before and after and before[-1] == after[-1]:
        before.pop(), after.pop()
    while before and after and before[0] == after[0]:
        before.pop(0), after.pop(0)
    return next((int(word) for word in reversed(before) if word.isdigit()), 0)
