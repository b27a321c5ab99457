"""Regression: a number for a text, or for two."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import DataError, some
from ..columns import Columns
from ..data.checking import stream_rows
from ..data.columns import PLACE, Role, is_missing, place_of
from .classes import MANY
from .texts import PAIR, TEXT, Texts

if TYPE_CHECKING:
    from datasets import Dataset

_ALSO = {"eur": "€", "usd": "$", "gbp": "£"}
_USUAL, _LEAST = 3.0, 0.1  # |mean| + std, and std, of numbers that a new head learns soon; others are scaled

_UNIT = r"[$€£¥₹₽₩₺₴₫¢%]|EUR|USD|GBP|CHF|JPY|CNY|Fr\.?|kr\.?|zł|Kč"
# A number with its unit before or behind; spaces and apostrophes part thousands.
_CELL = re.compile(
    rf"(?P<minus>[-+\u2212]?)\s*(?P<before>{_UNIT})?\s*(?P<sign>[-+\u2212]?)"
    r"(?P<digits>\d{1,3}(?:(?P<space>[\s'\u2019])\d{3})(?:(?P=space)\d{3})*(?:[.,]\d+)?|[\d.,]*\d[\d.,]*(?:e[-+]?\d+)?)"
    rf"\s*(?P<behind>{_UNIT})?",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}([.,]\d{2,3})*[.,]\d{3}")  # in India by two
_HAS_THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2}([.,]\d{3})+\s*")


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _parts(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parts(cell: str) -> tuple[str, str] | None:
    """Return the number in a text without spaces, and its unit; None for what is no number.

    >>> _parts(" 7,50 €"), _parts("$1,200.50"), _parts("-1 200"), _parts("85 %"), _parts("$ 5 €")
    (('7,50', '€'), ('1,200.50', '$'), ('-1200', ''), ('85', '%'), None)
    """
    found = _CELL.fullmatch(cell.strip())
    if found is None or (found["before"] and found["behind"]) or (found["minus"] and found["sign"]):
        return None
    sign = (found["minus"] or found["sign"]).replace("\u2212", "-")
    unit = (found["before"] or found["behind"] or "").casefold()
    return sign + re.sub(r"[\s'\u2019]", "", found["digits"]), _ALSO.get(unit, unit)


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
    """A number a row, which may stand in a text, with a decimal comma and a unit.

    options: decimal, "." or ","; units, what may stand beside a number ("%", a currency, "" for nothing); mean and std.
    The model learns (number - mean) / std, which `predictions` and metrics turn back; 0 and 1 where the numbers are of
    a size that a head learns as they are.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "decimal", "units", "mean", "std")
    rows_tell: ClassVar[bool] = True
    ADOPTED = {"decimal": ".", "units": None, "mean": 0.0, "std": 1.0}

    @classmethod
    def suits(cls, config: Any) -> bool:
        return bool(config.num_labels == 1)

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether there are decimals, or more numbers than there would be classes."""
        said = {str(row[columns["label"]]).strip() for row in rows}
        return len(said) > MANY or any(not each.isdigit() for each in said)

    def look(self, rows: Dataset) -> None:
        column = self.columns["label"]
        places: dict[str, str] = {}
        for row in stream_rows(rows.select_columns([n for n in (column, PLACE) if n in rows.column_names])):
            if isinstance(row[column], str):
                places.setdefault(row[column], place_of(row))
        parts = {cell: found for cell in places if (found := _parts(cell)) is not None}
        said = {cell: f"{places[cell]}: its label {cell!r}" for cell in parts}
        self.options["units"] = _units({unit: said[cell] for cell, (_, unit) in parts.items()})
        self.options["decimal"], self.remarks = _decimal({number: said[cell] for cell, (number, _) in parts.items()})
        values = list(rows[column])
        read = {value: self.number(value) for value in set(values) if not is_missing(value)}
        finite = {value: number for value, number in read.items() if math.isfinite(number)}  # `problem` tells of others
        numbers = [finite[value] for value in values if value in finite]
        if len(set(numbers)) < 2:
            raise DataError(f"column {column!r}: every row has the number {numbers[:1]}; there is nothing to learn.")
        mean, std = float(np.mean(numbers)), float(np.std(numbers))
        usual = abs(mean) + std <= _USUAL and std >= _LEAST
        self.options |= {"mean": 0.0 if usual else mean, "std": 1.0 if usual else std}

    def number(self, value: Any) -> float:
        """Return the number in a cell; NaN where there is none."""
        if isinstance(value, str):
            decimal = self.options["decimal"]
            whole, mark, rest = (_parts(value) or ("", ""))[0].partition(decimal)
            between = "," if decimal == "." else "."
            if between in rest or (between in whole and not _GROUPED.fullmatch(whole)):
                return math.nan  # it has the other mark before its decimals
            value = whole.replace(between, "") + mark.replace(",", ".") + rest
        try:
            return float(value)
        except ValueError:
            return math.nan

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if (found := super().problem(row, labelled)) or not labelled:
            return found
        value, units = self.value(row, "label"), self.options.get("units")
        if is_missing(value):
            return self.missing(row, "label")
        if not math.isfinite(self.number(value)):
            is_other = isinstance(value, str) and _parts(value) is not None
            mark = "point" if self.options["decimal"] == "." else "comma"
            return f"its label {value!r} is no number{f' with a decimal {mark}, as in training' if is_other else ''}"
        _, unit = (isinstance(value, str) and _parts(value)) or ("", "")
        if units is not None and unit not in units:
            return f"its label {value!r} is in another unit than those in training ({some(map(repr, units))})"
        return None

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


def _units(found: Mapping[str, str]) -> list[str]:
    """Return the units that numbers may have: one, or none; a currency may be left out. found: a label of each.

    Raises DataError for several.
    """
    units = [unit for unit in found if unit]
    if len(units) > 1 or (units == ["%"] and "" in found):
        two = [found[unit] for unit in (*units, "")[:2]]
        raise DataError(f"{' and '.join(two)} are in two units; write all numbers in one.")
    return sorted({*found, *([] if units == ["%"] else [""])})


def _decimal(said: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return what stands before the decimals of numbers in texts, and a remark where they could be thousands.

    said: each number, and its place in words. Raises DataError where it cannot be told.
    """
    marks = {cell[max(cell.rfind(","), cell.rfind("."))]: cell for cell in said if "," in cell and "." in cell}
    alone = {mark: [cell for cell in said if mark in cell and other not in cell] for mark, other in (",.", ".,")}
    marks |= {mark: cell for mark, cells in alone.items() for cell in cells if not _HAS_THOUSANDS.fullmatch(cell)}
    if len(marks) > 1:
        two = " and ".join(said[cell] for cell in marks.values())
        raise DataError(f"{two}: some numbers have a decimal comma, others a decimal point; write a point.")
    if marks:
        return next(iter(marks)), []
    repeated = {mark for mark, cells in alone.items() if any(cell.count(mark) > 1 for cell in cells)}
    bare = [cell for cell in said if not set(cell) & {",", "."}]
    short = bool(bare) and all(len(cell.lstrip("+-")) <= 3 for cell in bare)  # as thousands leave them
    for mark in ",.":
        if alone[mark] and mark not in repeated and (mark == "," or (short and not repeated)):
            one = alone[mark][0]
            raise DataError(
                f"{said[one]} may be {one.replace(mark, '')} or {one.replace(mark, '.')}; write all without "
                "separators of thousands, and with a decimal point."
            )
    if alone["."] and not repeated:
        one = alone["."][0]
        return ".", [f"{said[one]} is read as {one}, and not as {one.replace('.', '')}."]
    return "," if "." in repeated else ".", []
