"""What `hf-lora data` tells of rows: how they were read, what they are for, how long they are, and what is odd."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..data.checking import count_different, count_empty, count_shared, stream_rows
from ..data.columns import PLACE, is_empty, place_of
from ..data.written import Found
from ..tasks.lengths import Lengths, measure_lengths
from ..tasks.preparation import Preparation
from .rows import choose_task, prepare, read_found
from .settings import RunSettings

if TYPE_CHECKING:
    from datasets import Dataset

_SAMPLES = 3
_LOOKED_AT = 1000  # rows whose letters are counted
_TOLD = 4  # rows with a problem that are named
_CLASSES = 1000  # more different labels are no classes


def describe(settings: RunSettings, scratch: Path) -> dict[str, Any]:
    """Return what is understood of the rows to train on, and of those to choose by and to test on, as JSON types.

    settings: `train` and what else says how rows are read; with a `model` the rows are checked as training does, and
    lengths are tokens, else characters. Raises DataError for what cannot be read, ModelError.
    """
    found = read_found(settings, scratch)
    rows = {split: each.rows for split, each in found.items()}
    told: dict[str, Any] = {
        "source": settings.train,
        "splits": {split: _split(each) for split, each in found.items()},
        "columns": [_column(rows["train"], name) for name in rows["train"].column_names if name != PLACE],
    }
    try:
        task, columns, why = choose_task(settings, rows["train"])
    except DataError as error:
        return {
            **told,
            "task": None,
            "why": str(error),
            "samples": _samples(rows["train"], _spread(rows["train"], _SAMPLES), {}),
        }
    roles = {column: role for role, column in columns.items()}
    for each in told["columns"]:
        each["role"] = roles.get(each["name"])
    told |= {"task": task.name, "why": why}
    if settings.model is None:
        preparation = _without_base(task.preparation(task, columns), rows["train"])
        told |= {"problems": _problems(rows, preparation)}
        if preparation.processor_class == "AutoTokenizer":  # else they are pictures or sounds
            told["lengths"] = _letters(rows["train"], _said(preparation))
    else:
        preparation, processor = prepare(settings, task, columns, rows["train"])
        told |= _use(rows, preparation, processor)
    told["samples"] = _samples(rows["train"], _chosen(rows["train"], preparation), columns)
    return told | _values(rows, preparation)


def _values(rows: dict[str, Dataset], preparation: Preparation) -> dict[str, Any]:
    """Return the classes, what comes again, and what is odd."""
    columns, roles = preparation.columns, preparation.task.roles
    labels = [role.name for role in roles if role.is_label and role.name in columns]
    counted = "label" in labels or preparation.options.get("marked")
    classes = {"classes": _classes(rows, preparation)} if counted else {}
    odd = _odd(rows, _said(preparation), [columns[name] for name in labels])
    return {**classes, "odd": odd, "remarks": preparation.remarks}


def _without_base(preparation: Preparation, rows: Dataset) -> Preparation:
    """Return what checks rows where no base is named: the task's own way, if rows alone tell it, or a simpler one."""
    try:
        preparation.look(rows)
        if preparation.rows_tell:
            return preparation
    except DataError as error:
        preparation.remarks = [str(error)]
    simpler = Preparation(preparation.task, preparation.columns)
    simpler.remarks, simpler.processor_class = preparation.remarks, preparation.processor_class  # type: ignore[misc]
    return simpler


def _said(preparation: Preparation) -> list[str]:
    """Return the columns of what is not learnt."""
    columns = preparation.columns
    labels = {role.name for role in preparation.task.roles if role.is_label}
    return [column for role, column in columns.items() if role not in labels] or list(columns.values())


def _use(rows: dict[str, Dataset], preparation: Preparation, processor: Any) -> dict[str, Any]:
    """Return what a training can use of the rows: those with problems, lengths in tokens, and what a base sees."""
    told = {"problems": _problems(rows, preparation)}
    if told["problems"]["count"]:
        return told
    lengths = measure_lengths(preparation, rows["train"], processor)
    first = preparation.features(rows["train"].select(_chosen(rows["train"], preparation)).to_list(), processor)
    tokens = {} if lengths is None else {"lengths": _tokens(lengths)}
    return {**told, **tokens, "seen": [preparation.shown(each, processor) for each in first]}


def _split(found: Found) -> dict[str, Any]:
    return {"rows": len(found.rows), **found.about, "left_out": len(found.left_out)}


def _column(rows: Dataset, name: str) -> dict[str, Any]:
    values = (row[name] for row in stream_rows(rows.select_columns([name])) if not is_empty(row[name]))
    return {
        "name": name, "type": _kind(rows.features[name]), "role": None, "empty": count_empty(rows, name),
        "example": _short(next(values, None)),
    }  # fmt: skip


def _kind(feature: Any) -> str:
    """Return what stands in a column, in a word."""
    kind = getattr(feature, "dtype", None)
    words = {"string": "text", "large_string": "text", "bool": "yes or no", "null": "nothing"}
    if isinstance(kind, str) and not hasattr(feature, "feature"):
        return words.get(kind, "number" if kind.startswith(("int", "uint", "float")) else kind)
    return "list" if hasattr(feature, "feature") else type(feature).__name__.lower().replace("dict", "object")


def _spread(rows: Dataset, most: int) -> list[int]:
    """Return the numbers of some rows, from all over the file."""
    return [number * len(rows) // most for number in range(most)] if len(rows) > most else list(range(len(rows)))


def _chosen(rows: Dataset, preparation: Preparation) -> list[int]:
    """Return the numbers of three rows from all over the file, of different labels where there are some."""
    numbers = _spread(rows, _LOOKED_AT)
    first: dict[str, int] = {}
    for number, row in zip(numbers, stream_rows(rows.select(numbers)), strict=True):
        first.setdefault(str(preparation.labels_of(row)), number)
    labels = list(first.values())
    different = [labels[number * len(labels) // _SAMPLES] for number in range(_SAMPLES)]
    return sorted(list(dict.fromkeys([*different, *_spread(rows, _SAMPLES)]))[:_SAMPLES])


def _samples(rows: Dataset, chosen: list[int], columns: dict[str, str]) -> list[dict[str, str]]:
    """Return some rows, by role where there are some."""
    names = columns or {name: name for name in rows.column_names if name != PLACE}
    return [
        {"place": place_of(row), **{role: _short(row[column]) for role, column in names.items()}}
        for row in rows.select(chosen).to_list()
    ]


def _short(value: Any, most: int = 200) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _classes(rows: dict[str, Dataset], preparation: Preparation) -> dict[str, dict[str, int]]:
    """Return how many rows of each split have each label, the most frequent first; nothing for too many labels."""
    needed = {*preparation.columns.values(), *(preparation.options.get("marked") or ())}
    counts = {
        split: Counter(label for row in stream_rows(each) for label in preparation.labels_of(row))
        for split, each in rows.items()
        if needed <= set(each.column_names)
    }
    labels = dict.fromkeys(label for each in counts.values() for label, _ in each.most_common())
    few = len(labels) <= _CLASSES and len(labels) <= max(len(rows["train"]) / 2, 2)
    return {label: {split: each.get(label, 0) for split, each in counts.items()} for label in labels} if few else {}


def _odd(rows: dict[str, Dataset], said: list[str], labels: list[str]) -> dict[str, int]:
    """Count rows that say the same as one before, of these those with another label, and rows shared between splits."""
    different = count_different(rows["train"], said)
    found = {"repeated": len(rows["train"]) - different}
    if labels and found["repeated"]:
        found["repeated_with_another_label"] = count_different(rows["train"], [*said, *labels]) - different
    for split, each in rows.items():
        if split != "train" and set(said) <= set(each.column_names):
            found[f"shared_with_{split}"] = count_shared(rows["train"], each, said)
    return {name: number for name, number in found.items() if number}


def _problems(rows: dict[str, Dataset], preparation: Preparation) -> dict[str, Any]:
    count = 0
    told: list[str] = []
    for each in rows.values():
        for row in stream_rows(each):
            if (wrong := preparation.problem(row, True)) is not None:
                count += 1
                told += [f"{place_of(row)}: {wrong}"] if len(told) < _TOLD else []
    return {"count": count, "first": told}


def _letters(rows: Dataset, columns: list[str]) -> dict[str, Any]:
    looked_at = rows.select(_spread(rows, _LOOKED_AT)).to_list()
    counts = sorted(sum(len(str(row[name] or "")) for name in columns) for row in looked_at)
    return {"unit": "characters", **_quantiles(Lengths(counts, 0, 0, 0))}


def _tokens(lengths: Lengths) -> dict[str, Any]:
    shares = {"cut": lengths.cut / len(lengths.tokens), "lost": lengths.lost / len(lengths.tokens)}
    return {"unit": "tokens", **_quantiles(lengths), "limit": lengths.limit, **shares}


def _quantiles(lengths: Lengths) -> dict[str, Any]:
    shares = {"shortest": 0.0, "median": 0.5, "95%": 0.95, "longest": 1.0}
    return {"rows": len(lengths.tokens), **{name: lengths.quantile(share) for name, share in shares.items()}}
