"""Classification of texts: one label a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError
from ..data.columns import is_empty
from .preparation import Preparation

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Classes"]


class Classes(Preparation):
    """One label a row, a word or a number; the classes are what stands there in training, sorted."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "labels")

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        if self.options.get("labels") is None:
            column = self.columns["label"]
            found = {str(value).strip() for value in rows.unique(column) if not is_empty(value)}
            if len(found) < 2:
                raise DataError(
                    f"column {column!r}: every row has the label {', '.join(found)!r}; there is nothing to tell apart."
                )
            self.options["labels"] = sorted(found, key=_order)

    def model_arguments(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.options["labels"]))}

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        found = super().problem(row, labelled)
        if found or not labelled:
            return found
        label = str(self.value(row, "label")).strip()
        return None if label in self.options["labels"] else f"its label {label!r} is none of those in training"

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        features = self.inputs(rows, processor)
        if labelled:
            for feature, row in zip(features, rows, strict=True):
                feature["labels"] = self.options["labels"].index(str(self.value(row, "label")).strip())
        return features

    def inputs(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[dict[str, Any]]:
        """Return what the model gets of each row, without the label."""
        texts = [str(self.value(row, "text")) for row in rows]
        pairs = [str(self.value(row, "text_pair") or "") for row in rows] if "text_pair" in self.columns else None
        encoded = processor(texts, pairs, truncation=True, max_length=self.options["max_length"])
        return [{key: encoded[key][i] for key in encoded} for i in range(len(rows))]

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        logits = self.outputs(model, processor, rows).logits.float()
        scores = logits.softmax(-1)
        best = scores.argmax(-1).tolist()
        return [{"label": self.options["labels"][i], "score": scores[row, i].item()} for row, i in enumerate(best)]


def _order(label: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words by the alphabet."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label
