"""Multiple choice: which of several answers goes with a context or a question."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import DataError
from ..columns import Columns
from ..data.columns import Role, is_empty, is_missing, place_of, plain_name, written_out
from .preparation import Preparation
from .texts import is_text, label_names, label_text, mean_length, pad, split_up

if TYPE_CHECKING:
    from datasets import Dataset

_ONE_OF = re.compile(r"(?:(?:choice|option|ending|answer|candidate|sol|opt|alternative|op) ?)?([a-z]|\d)")
CONTEXT = Role(
    "text", ("question", "context", "text", "sent1", "sentence", "prompt", "premise", "history", "ctx", "goal", "问题"),
    is_text, preference=mean_length,
)  # fmt: skip
SECOND = Role("start", ("sent2", "ctx b"), is_text, is_required=False)
CHOICES = Role(
    "choices", ("choices", "options", "endings", "answers", "candidates", "alternatives", "选项"),
    lambda value: isinstance(value, list | dict | str), is_required=False,
)  # fmt: skip
LABEL = Role(
    "label", ("label", "answer", "answer key", "answerkey", "correct", "gold", "target", "correct answer", "答案"),
    lambda value: isinstance(value, str | int), is_label=True,
)  # fmt: skip
ROLES = (CONTEXT, SECOND, CHOICES, LABEL)


class Choices(Preparation):
    """A context and some choices, of which the model scores each; rows may have different numbers of them.

    The right one is given by its number (from 0, or from 1 where no row says 0), its letter, its key or its text. A
    column "start" begins every choice ("sent2" of SWAG). options: choice_columns, where each choice has its own; first,
    the number of the first choice; numbered, whether all labels are numbers of choices, and none their text.
    """

    smooths: ClassVar[bool] = True
    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "choice_columns", "first", "numbered")
    rows_tell: ClassVar[bool] = True
    ADOPTED = {"choice_columns": None, "first": 0, "numbered": True}

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether there are choices, in a list or in columns."""
        if "choices" in columns:
            return all(isinstance(_opened(row[columns["choices"]] or []), list | Mapping) for row in rows)
        return len(_choice_columns(rows[0], columns)) > 1

    def look(self, rows: Dataset) -> None:
        if "choices" not in self.columns:
            named = _choice_columns(rows.column_names, self.columns)
            self.options["choice_columns"] = named
            if len(named) < 2:
                raise DataError(
                    f"there are no choices: neither a column of lists nor several, as choice1 and choice2, among "
                    f"{', '.join(map(repr, rows.column_names))}. Say which one with --column choices=NAME."
                )
        given = []
        for row in rows:
            label = self.value(row, "label")
            with suppress(DataError):  # `problem` tells of it
                given += [] if is_missing(label) else [(label_text(label), self.choices(row), place_of(row))]
        said = [(int(label), len(choices)) for label, choices, _ in given if label.isdecimal()]
        is_class = bool(label_names(rows.features[self.columns["label"]]))
        first = int(
            bool(said) and not is_class and all(n > 0 for n, _ in said) and any(n == count for n, count in said)
        )
        numbered = len(said) == len(given) and all(0 <= number - first < count for number, count in said)
        self.options |= {"first": first, "numbered": numbered}
        if numbered:
            self._tell_numbers_from_texts(given)

    def _tell_numbers_from_texts(self, given: Sequence[tuple[str, dict[str, str], str]]) -> None:
        """Decide for all rows what labels mean that are a choice, and the number of another: choices where all are.

        given: each row's label, choices and place.
        """
        texts = [(label, [text.strip() for text in choices.values()], place) for label, choices, place in given
                 if label not in choices]  # fmt: skip
        first = self.options["first"]
        both = [(label, place) for label, said, place in texts if label in said and said[int(label) - first] != label]
        if both:
            self.options["numbered"] = not all(label in said for label, said, _ in texts)
            meaning = f"the number of a choice, from {first} on" if self.options["numbered"] else "the choice"
            label, place = both[0]
            told = f"{place}: its label {label!r} is a choice, and the number of another one"
            self.remarks = [f"{told}; in all rows labels are read as {meaning}."]

    def choices(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return a row's choices by their keys: letters, unless the row has its own."""
        columns = self.options.get("choice_columns")
        if columns is None and "choices" not in self.columns:  # an adapter that others trained
            columns = _choice_columns(row, self.columns)
        if columns:
            return {_letter(i): str(row[name]) for i, name in enumerate(columns) if not is_empty(row.get(name))}
        cell = _opened(self.value(row, "choices"))
        if isinstance(cell, Mapping) and isinstance(cell.get("text"), list):  # ARC, CommonsenseQA
            keys = cell.get("label") or list(map(_letter, range(len(cell["text"]))))
            if len(keys) != len(cell["text"]):
                raise DataError(f"it has {len(cell['text'])} choices, and the labels {keys} for them")
            return {str(key): str(text) for key, text in zip(keys, cell["text"], strict=True)}
        if isinstance(cell, Mapping):
            return {str(key): str(value) for key, value in cell.items() if not is_empty(value)}
        return {_letter(i): str(each) for i, each in enumerate(cell or ())}

    def right(self, row: Mapping[str, Any]) -> int | None:
        """Return the place of the right choice; None where the label is none of them."""
        label, choices = label_text(self.value(row, "label")), self.choices(row)
        keys, texts = [key.casefold() for key in choices], [text.strip() for text in choices.values()]
        if self.options["numbered"] and label not in keys:
            place = int(label) - self.options["first"] if label.isdecimal() else -1
            return place if 0 <= place < len(choices) else None
        found = [i for among in (keys, texts) for i, each in enumerate(among) if each in (label, label.casefold())]
        return found[0] if found else None

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if found := super().problem(row, labelled):
            return found
        try:
            choices = self.choices(row)
        except DataError as error:
            return str(error)
        if len(choices) < 2:
            return "it has fewer than two choices"
        if labelled and self.right(row) is None:
            return f"its label {self.value(row, 'label')!r} is none of its choices, {', '.join(choices)}"
        return None

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        features = []
        for row in rows:
            start = self.value(row, "start")
            choices = [f"{start} {text}" if start else text for text in self.choices(row).values()]
            context = [str(self.value(row, "text"))] * len(choices)
            encoded = processor(context, choices, truncation="longest_first", max_length=self.options["max_length"])
            features.append({"choices": split_up(encoded), **({"labels": self.right(row)} if labelled else {})})
        return features

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return what makes (rows, choices, tokens) of features. Where a row has fewer, a wrong one stands in."""
        import torch

        def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
            most = max(len(feature["choices"]) for feature in features)
            wrong = [f["choices"][int(f.get("labels") == 0)] for f in features]
            every = [f["choices"] + [w] * (most - len(f["choices"])) for f, w in zip(features, wrong, strict=True)]
            batch = processor.pad([one for choices in every for one in choices], return_tensors="pt")
            made = {key: value.view(len(features), most, -1) for key, value in batch.items()}
            if "labels" in features[0]:
                made["labels"] = torch.tensor([feature["labels"] for feature in features])
            return made

        return collate

    def compared(self, rows: Dataset, processor: Any, predictions: Any, labels: Any) -> dict[str, Columns]:
        """Return the best of each row's own choices, without those that stand in."""
        logits, counts = np.asarray(predictions), [len(self.choices(row)) for row in rows]
        best = [int(scores[:count].argmax()) for scores, count in zip(logits, counts, strict=True)]
        return {"classes": Columns(np.array(best), np.asarray(labels), max(counts))}

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        texts = {f"choice {i}": processor.decode(each["input_ids"]) for i, each in enumerate(feature["choices"])}
        return super().shown({**texts, "labels": feature["labels"]}, processor)

    def fit_model(self, model: Any, processor: Any) -> None:
        pad(model, processor)

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the best choice, its number from 0, and the probability of each."""
        logits, found = self.outputs(model, processor, rows).logits.float(), []
        for row, scores in zip(rows, logits, strict=True):
            texts = list(self.choices(row).values())
            chances = scores[: len(texts)].softmax(-1)
            best = int(chances.argmax())
            found.append({"choice": texts[best], "index": best, "scores": chances.tolist()})
        return found


def _choice_columns(names: Iterable[str], columns: Mapping[str, str]) -> list[str]:
    """Return the columns of one choice each: A, option2, ending0."""
    return [name for name in names if name not in columns.values() and _ONE_OF.fullmatch(plain_name(name))]


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number)


def _opened(cell: Any) -> Any:
    """Return the choices in a cell; in a text they are a list as JSON or Python writes it, or have ";", "|" between."""
    if not isinstance(cell, str):
        return cell
    found = written_out(cell)
    if isinstance(found, list | tuple | set | Mapping):
        return found if isinstance(found, Mapping) else list(found)
    separator = next((s for s in ("\n", "|", ";") if s in cell), ",")
    return [part.strip() for part in cell.split(separator) if part.strip()]
