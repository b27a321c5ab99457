"""Regression: a number for a text, or for two."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import DataError
from ..columns import Columns
from ..data.columns import Role, is_empty
from .classes import MANY
from .texts import PAIR, TEXT, Texts

if TYPE_CHECKING:
    from datasets import Dataset

_USUAL, _LEAST = 3.0, 0.1  # |mean| + std, and std, of numbers that a new head learns soon; others are scaled

_HAS_THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2}([.,]\d{3})+\s*")


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"\s*[-+]?[\d.,]*\d[\d.,]*(e[-+]?\d+)?\s*", value, re.IGNORECASE))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _variety(values: Sequence[Any]) -> float:
    return len(set(values)) / max(len(values), 1)


NUMBER = Role(
    "label",
    (
        "label", "score", "rating", "stars", "value", "target", "labels", "similarity", "price", "bewertung", "sterne",
        "note", "punkte", "puntuación", "estrellas", "评分",
    ),
    _is_number, is_label=True, preference=_variety,
)  # fmt: skip
ROLES = (TEXT, PAIR, NUMBER)


class Numbers(Texts):
    """A number a row, which may stand in a text, with a decimal comma.

    options: decimal, "." or ","; mean and std. The model learns (number - mean) / std, which `predictions` and metrics
    turn back; 0 and 1 where the numbers are of a size that a head learns as they are.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "decimal", "mean", "std")
    ADOPTED = {"decimal": ".", "mean": 0.0, "std": 1.0}

    @classmethod
    def suits(cls, config: Any) -> bool:
        return bool(config.num_labels == 1)

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether there are decimals, or more numbers than there would be classes."""
        said = {str(row[columns["label"]]).strip() for row in rows}
        return len(said) > MANY or any(not each.isdigit() for each in said)

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        column = self.columns["label"]
        cells = [value for value in rows.unique(column) if not is_empty(value)]
        self.options["decimal"] = _decimal([cell for cell in cells if isinstance(cell, str)], column)
        read = (self.number(value) for value in rows[column] if not is_empty(value))
        numbers = [number for number in read if math.isfinite(number)]  # `problem` tells of others
        if len(set(numbers)) < 2:
            raise DataError(f"column {column!r}: every row has the number {cells[:1]}; there is nothing to learn.")
        mean, std = float(np.mean(numbers)), float(np.std(numbers))
        usual = abs(mean) + std <= _USUAL and std >= _LEAST
        self.options |= {"mean": 0.0 if usual else mean, "std": 1.0 if usual else std}

    def number(self, value: Any) -> float:
        """Return the number in a cell; NaN where there is none."""
        if isinstance(value, str):
            decimal = self.options["decimal"]
            value = value.replace("," if decimal == "." else ".", "").replace(decimal, ".")
        try:
            return float(value)
        except ValueError:
            return math.nan

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        found = super().problem(row, labelled)
        if found or not labelled or math.isfinite(self.number(self.value(row, "label"))):
            return found
        return f"its label {self.value(row, 'label')!r} is no number"

    def target(self, row: Mapping[str, Any]) -> float:
        return (self.number(self.value(row, "label")) - self.options["mean"]) / self.options["std"]

    def model_arguments(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def compared(self, rows: Dataset, processor: Any, predictions: Any, labels: Any) -> dict[str, Columns]:
        """Return the numbers as they stand in the rows."""
        said, truth = (np.asarray(v, dtype=np.float64).reshape(len(rows)) for v in (predictions, labels))
        mean, std = self.options["mean"], self.options["std"]
        return {"numbers": Columns(said * std + mean, truth * std + mean)} if np.isfinite(said).all() else {}

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        found = self.outputs(model, processor, rows).logits.double()[:, 0]
        return [{"value": value * self.options["std"] + self.options["mean"]} for value in found.tolist()]


def _decimal(cells: Sequence[str], column: str) -> str:
    """Return what stands before the decimals of numbers in texts. Raises DataError where that cannot be told."""
    marks = {cell[max(cell.rfind(","), cell.rfind("."))] for cell in cells if "," in cell and "." in cell}
    alone = {mark: [cell for cell in cells if mark in cell and other not in cell] for mark, other in (",.", ".,")}
    marks |= {mark for mark, some in alone.items() if not all(map(_HAS_THOUSANDS.fullmatch, some))}
    if len(marks) > 1:
        raise DataError(f"column {column!r}: some numbers have a decimal comma, others a decimal point; write a point.")
    if marks:
        return marks.pop()
    repeated = {mark for mark, some in alone.items() if any(cell.count(mark) > 1 for cell in some)}
    if alone[","] and repeated != {","}:
        one = alone[","][0]
        raise DataError(
            f"column {column!r}: {one!r} may be {one.replace(',', '')} or {one.replace(',', '.')}; write them "
            "without separators of thousands, and with a decimal point."
        )
    return "," if "." in repeated else "."
