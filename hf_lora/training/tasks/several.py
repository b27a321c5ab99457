"""Classification of texts: any number of labels a row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError, some
from ..data.checking import label_remarks, stream_rows
from ..data.columns import PLACE, Role, is_empty, is_missing, place_of, written_out
from .classes import averaged, is_label, known
from .texts import PAIR, TEXT, Texts, in_order, label_names, label_text

if TYPE_CHECKING:
    from datasets import Dataset

_YES, _NO = {"1", "true", "yes"}, {"0", "false", "no", ""}
_SEPARATORS = (";", "|", ",")  # the first that any cell has parts the labels of all


def _is_labels(value: Any) -> bool:
    return is_label(value) or (isinstance(value, list) and all(map(is_label, value)))


LABELS = Role(
    "label",
    ("labels", "label", "tags", "categories", "topics", "genres", "classes", "emotions", "etiketten", "标签", "类别"),
    _is_labels, is_required=False, is_label=True,
)  # fmt: skip
ROLES = (TEXT, PAIR, LABELS)


class Labels(Texts):
    """Any number of labels a row: in a list, in a text with separators, or in a column of zeros and ones for each.

    options: labels, in the order of the model's outputs; ids, whether whole numbers in the rows are places in it;
    separator, of the labels in a text; marked, the columns of zeros and ones, None where one column has the labels.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "labels", "ids", "separator", "marked")
    rows_tell: ClassVar[bool] = True
    ADOPTED = {"ids": False, "separator": ",", "marked": None}

    @classmethod
    def suits(cls, config: Any) -> bool:
        return bool(config.problem_type == "multi_label_classification")

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether a cell has several labels, or several columns have nothing but marks."""
        if "label" not in columns:
            left = [name for name in rows[0] if name not in columns.values() and name != PLACE]
            return sum(all(_is_mark(row[name]) for row in rows) for name in left) > 1
        cells = [row[columns["label"]] for row in rows]
        return any(isinstance(cell, list) or (isinstance(cell, str) and ";" in cell) for cell in cells) or _recur(cells)

    def look(self, rows: Dataset) -> None:
        self._find_labels(rows)
        self.remarks = label_remarks((each, place_of(row)) for row in stream_rows(rows) for each in self.labels(row))

    def labels_of(self, row: Mapping[str, Any]) -> list[str]:
        return sorted(self.labels(row))

    def _find_labels(self, rows: Dataset) -> None:
        if "label" not in self.columns:
            self.options["marked"] = _marked(rows, set(self.columns.values()))
            self.options["labels"] = self.options["marked"]
            return
        column = self.columns["label"]
        names = label_names(rows.features[column])
        texts = [value for value in rows[column] if isinstance(value, str)]
        self.options["separator"] = next((s for s in _SEPARATORS if any(s in text for text in texts)), _SEPARATORS[0])
        found = known({label_text(each, names) for value in rows[column] for each in self._parts(value)})
        if not found:
            raise DataError(f"column {column!r}: no row has a label; there is nothing to learn.")
        self.options |= {"labels": names or in_order(found), "ids": bool(names)}

    def _parts(self, value: Any) -> list[Any]:
        """Return the labels of a cell, as they stand there."""
        if is_empty(value):
            return []
        if (
            isinstance(value, str) and value.strip()[:1] == "["
        ):  # a list in a cell of a CSV, as JSON or Python writes it
            value = written_out(value)
        if isinstance(value, str):
            value = [part for part in re.split(f"[{re.escape(self.options['separator'])}\n]", value) if part.strip()]
        return [each for each in value if not is_empty(each)] if isinstance(value, list) else [value]

    def labels(self, row: Mapping[str, Any]) -> set[str]:
        """Return a row's labels."""
        if marked := self.options.get("marked"):
            return {name for name in marked if _mark(row.get(name)) in _YES}
        names = self.options["labels"] if self.options.get("ids") else ()
        found = {label_text(each, names) for each in self._parts(row.get(self.columns["label"]))}
        return {label for label in found if label in self.options["labels"] or not is_missing(label)}

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if found := super().problem(row, labelled):
            return found
        if not labelled:
            return None
        for name in self.options.get("marked") or ():
            if name not in row or _mark(row[name]) not in _YES | _NO:
                return f"its {name!r} is {row.get(name)!r}, neither 1 nor 0"
        new = sorted(self.labels(row) - set(self.options["labels"]))
        return f"its label {some(map(repr, new))} is none of those in training" if new else None

    def target(self, row: Mapping[str, Any]) -> list[float]:
        labels = self.labels(row)
        return [float(name in labels) for name in self.options["labels"]]

    def model_arguments(self) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(self.options["labels"])),
            "problem_type": "multi_label_classification",
        }

    def metric_options(self) -> dict[str, dict[str, Any]]:
        return averaged("macro")

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the labels that are likelier than not, and the probability of each."""
        logits = self.outputs(model, processor, rows).logits.float()
        found = [dict(zip(self.options["labels"], row, strict=True)) for row in logits.sigmoid().tolist()]
        chosen = (logits > 0).tolist()  # as the metrics choose
        return [
            {"labels": [name for name, is_chosen in zip(scores, row, strict=True) if is_chosen], "scores": scores}
            for scores, row in zip(found, chosen, strict=True)
        ]


def _recur(cells: Sequence[Any]) -> bool:
    """Return whether cells are few labels in many combinations, with commas or bars between.

    >>> _recur(["a, b", "b", "a", "c, a", "c, b"]), _recur(["Rome, Italy", "Oslo, Norway", "Bern"])
    (True, False)
    """
    said = {cell for cell in cells if isinstance(cell, str) and not is_empty(cell)}
    parts = [[part.strip() for part in re.split(r"[,|]", cell)] for cell in said]
    return len({part for each in parts for part in each}) < len(said) and any(len(each) > 1 for each in parts)


def _is_mark(value: Any) -> bool:
    return is_label(value) and _mark(value) in _YES | _NO


def _mark(value: Any) -> str:
    return "" if is_missing(value) else label_text(value).casefold()


def _marked(rows: Dataset, taken: set[str]) -> list[str]:
    """Return the columns that hold zeros and ones. Raises DataError where fewer than two do."""
    left = [name for name in rows.column_names if name not in taken | {PLACE}]
    flat = [name for name in left if hasattr(rows.features[name], "dtype")]  # a list has none
    found = [name for name in flat if {_mark(value) for value in rows.unique(name)} <= _YES | _NO]
    if len(found) < 2:
        raise DataError(
            f"no column has labels: neither one of lists or of texts, as 'news; sport', nor one of 0 and 1 for each "
            f"label, among {', '.join(map(repr, rows.column_names))}. Say which one with --column label=NAME."
        )
    return found
