"""Classification of texts: one label a row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError, some
from ..data.checking import label_remarks, stream_rows
from ..data.columns import PLACE, Role, is_empty, is_missing, place_of
from .texts import PAIR, TEXT, Texts, in_order, label_names, label_text

if TYPE_CHECKING:
    from datasets import Dataset

MANY = 20  # so many classes may be more than half as many as there are rows


def is_label(value: Any) -> bool:
    """Return whether a cell can be a label."""
    return isinstance(value, str | int | bool) or (isinstance(value, float) and value.is_integer())


def repetition(values: Sequence[Any]) -> float:
    """Labels come again, names, dates and texts do not."""
    return float(len(set(values)) <= len(values) / 2)


LABEL = Role(
    "label",
    (
        "label", "labels", "class", "category", "target", "sentiment", "etikett", "klasse", "kategorie", "etiqueta",
        "categoría", "clase", "étiquette", "catégorie", "classe", "categoria", "etichetta", "klasa", "метка", "класс",
        "标签", "类别", "標籤", "類別", "ラベル", "라벨", "فئة", "תווית", "intent", "emotion", "polarity", "stimmung",
        "bewertung", "wertung", "sentimiento", "valoración", "sentimento", "valutazione", "avaliação", "polarité",
        "évaluation", "ocena", "оценка", "тональность", "情感", "情绪", "感情", "感情ラベル", "감정", "تصنيف", "duygu",
    ),
    is_label, is_label=True, preference=repetition,
)  # fmt: skip
ROLES = (TEXT, PAIR, LABEL)


class Classes(Texts):
    """One label a row, a word or a number; the classes are what stands there in training, sorted.

    options: labels, in the order of the model's outputs; ids, whether whole numbers in the rows are places in it.
    """

    smooths: ClassVar[bool] = True
    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "labels", "ids")
    rows_tell: ClassVar[bool] = True

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether labels are words or whole numbers: decimals of texts are learnt as numbers."""
        said = [str(row[columns["label"]]) for row in rows if not is_missing(row[columns["label"]])]
        decimals = re.compile(r"[-+]?\d+[.,]\d+")
        are_decimals = any(re.search("[.,]0*[1-9]", each) for each in said) and all(
            each.isdecimal() or decimals.fullmatch(each) for each in map(str.strip, said)
        )
        return not (are_decimals and "text" in columns)

    @classmethod
    def suits(cls, config: Any) -> bool:
        return config.num_labels > 1 and config.problem_type in (None, "single_label_classification")

    def look(self, rows: Dataset) -> None:
        if self.options.get("labels") is None:
            column = self.columns["label"]
            names = label_names(rows.features[column])
            found = known({label_text(value, names) for value in rows.unique(column) if not is_empty(value)})
            _check_classes(found, len(rows), column)
            self.options |= {"labels": names or in_order(found), "ids": bool(names)}
        told = rows.select_columns([name for name in (self.columns["label"], PLACE) if name in rows.column_names])
        self.remarks = label_remarks((each, place_of(row)) for row in stream_rows(told) for each in self.labels_of(row))

    def labels_of(self, row: Mapping[str, Any]) -> list[str]:
        label = self.label(row)
        return [label] if label in self.options["labels"] or not is_missing(label) else []

    def model_arguments(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.options["labels"]))}

    def label(self, row: Mapping[str, Any]) -> str:
        """Return a row's label as a word."""
        return label_text(self.value(row, "label"), self.options["labels"] if self.options.get("ids") else ())

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        found = super().problem(row, labelled)
        if found or not labelled or (label := self.label(row)) in self.options["labels"]:
            return found
        if is_missing(label):
            return self.missing(row, "label")
        return f"its label {label!r} is none of those in training, {some(self.options['labels'])}"

    def target(self, row: Mapping[str, Any]) -> int:
        return self.options["labels"].index(self.label(row))

    def metric_options(self) -> dict[str, dict[str, Any]]:
        return averaged("macro" if len(self.options["labels"]) > 2 else "binary")

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        scores = self.outputs(model, processor, rows).logits.float().softmax(-1)
        best = scores.argmax(-1).tolist()
        return [{"label": self.options["labels"][i], "score": scores[row, i].item()} for row, i in enumerate(best)]


def averaged(average: str) -> dict[str, dict[str, Any]]:
    """Return the options of metrics that are a mean over classes; a class that no row has, or is given, counts 0."""
    return {name: {"average": average, "zero_division": 0} for name in ("f1", "precision", "recall")}


def known(labels: set[str]) -> set[str]:
    """Return labels without those that say that there is none; "-" is one beside "+"."""
    return {label for label in labels if not is_missing(label) or (label == "-" and "+" in labels)}


def _check_classes(found: set[str], rows: int, column: str) -> None:
    """Raise DataError where labels tell no classes apart, or one is written in two ways."""
    alike: dict[Any, str] = {}
    for label in in_order(found):
        first = alike.setdefault(_meant(label), label)
        if first != label:
            raise DataError(
                f"column {column!r}: the labels {first!r} and {label!r} are one, written in two ways "
                f"({first!a}, {label!a}); write it alike in all rows."
            )
    if len(found) < 2:
        raise DataError(
            f"column {column!r}: every row has the label {', '.join(found)!r}; there is nothing to tell apart."
        )
    if len(found) > MANY and 2 * len(found) > rows:
        numbers = ", or learn numbers with --task regression" if all(re.match(r"\W*\d", each) for each in found) else ""
        raise DataError(
            f"column {column!r}: {len(found):,} labels in {rows:,} rows, as {some(in_order(found))}, are no classes. "
            f"Name the column of the labels with --column label=NAME{numbers}."
        )


def _meant(label: str) -> Any:
    """Return what is the same for "1" and "1.0", and for a letter and its parts (Unicode's NFC and NFD)."""
    return float(label) if re.fullmatch(r"[-+]?\d{1,15}(\.0+)?", label) else unicodedata.normalize("NFC", label)
