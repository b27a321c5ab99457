"""Token classification: entities in texts, or a tag for each word."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError, some
from ..columns import IGNORED
from ..data.checking import label_remarks, stream_rows
from ..data.columns import Role, is_empty, place_of, written_out
from .classes import averaged
from .texts import label_names, label_text, trimmed
from .windows import Windowed, cut_up, model_inputs

if TYPE_CHECKING:
    from datasets import Dataset

_OUTSIDE = "O"
_BEGINS, _ENDS = "BSU", "ESLU"  # prefixes of tags (IOB2, IOBES, BILOU) that begin an entity, and that end one


def _is_tokens(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _is_tags(value: Any) -> bool:
    return isinstance(value, str | list | dict)


TOKENS = Role("text", ("tokens", "words", "text", "sentence", "content", "文本", "texto", "texte"), _is_tokens)
TAGS = Role(
    "tags",
    ("ner tags", "tags", "entities", "spans", "labels", "label", "ner", "pos tags", "pos", "annotations", "标签"),
    _is_tags, is_label=True,
)  # fmt: skip
ROLES = (TOKENS, TAGS)
Span = tuple[int, int, str]


@dataclass
class _Reading:
    """A row: its text, where its units (words, or tokens of a text) stand, and its windows.

    words: the number of the word that a unit is. windows: what the model reads, and the places of its units in it.
    """

    text: str
    units: list[tuple[int, int]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    windows: list[tuple[dict[str, Any], list[int]]] = field(default_factory=list)


class Tokens(Windowed):
    """Words with a tag each ("B-PER", "NOUN"), or texts with entities from one character to another.

    Of words, the first token has the tag and the others are ignored. Of a text, each token has the tag of the entity
    that it is in, so no language needs to have words. options: labels, the tags; ids, whether whole numbers in the rows
    are places in them; spans, whether rows are texts with entities.
    """

    smooths: ClassVar[bool] = True
    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "labels", "ids", "spans")
    rows_tell: ClassVar[bool] = True
    ADOPTED = {"ids": True, "spans": False}

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether words come in lists, or tags look like those of entities."""
        cells = [each for row in rows for each in _opened(row[columns["tags"]])]
        tagged = any(str(cell)[:2] in ("B-", "I-", "S-") or isinstance(cell, Mapping | list) for cell in cells)
        return tagged or any(isinstance(row[columns["text"]], list) for row in rows)

    def look(self, rows: Dataset) -> None:
        column = self.columns["tags"]
        names = label_names(getattr(rows.features[column], "feature", None))
        cells = [_opened(value) for value in rows[column]]
        spans = any(isinstance(each, Mapping | list) for cell in cells for each in cell)
        self.options |= {"spans": spans, "ids": bool(names)}
        try:
            kinds = {
                kind for cell in cells for kind in (_kinds(cell) if spans else [label_text(t, names) for t in cell])
            }
        except DataError:
            kinds = {_OUTSIDE}  # `problem` tells where
        if not kinds - {_OUTSIDE}:
            raise DataError(f"column {column!r}: no row has a tag other than {_OUTSIDE!r}; there is nothing to learn.")
        tags = [f"{p}-{kind}" for kind in sorted(kinds) for p in "BI"] if spans else sorted(kinds - {_OUTSIDE})
        self.options["labels"] = names or [*([_OUTSIDE] if spans or _OUTSIDE in kinds else []), *tags]
        self.remarks = label_remarks((each, place_of(row)) for row in stream_rows(rows) for each in self._names(row))

    def _names(self, row: Mapping[str, Any]) -> list[str]:
        """Return a row's tags, or what its entities are; none where they cannot be read."""
        try:
            given = self._given(row)
        except DataError:
            return []
        return [kind for *_, kind in given] if self.options["spans"] else given

    @property
    def has_entities(self) -> bool:
        """Whether tags say where an entity begins; else there is one for each word, as parts of speech are."""
        return all(tag == _OUTSIDE or tag[1:2] == "-" for tag in self.options["labels"])

    def model_arguments(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.options["labels"]))}

    def metrics(self) -> tuple[str, ...]:
        return self.task.metrics if self.has_entities else ("accuracy", "f1")

    def metric_options(self) -> dict[str, dict[str, Any]]:
        return averaged("macro" if len(self.options["labels"]) > 2 else "binary")

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if self.value(row, "text") is None:
            return f"its text (column {self.columns['text']!r}) is empty"
        if not labelled:
            return None
        try:
            tags = self._given(row)
        except DataError as error:
            return str(error)
        if self.options["spans"]:
            text = self.value(row, "text")
            wrong = [each for each in tags if not 0 <= each[0] < each[1] <= len(text)]
            if wrong:
                return f"its entity {wrong[0]} is not within the text, of {len(text)} characters"
            tags = [f"B-{kind}" for *_, kind in tags]
        elif len(tags) != len(words := self._words(row)):
            return f"it has {len(words)} words and {len(tags)} tags"
        new = sorted(set(tags) - set(self.options["labels"]))
        return f"its tag {some(map(repr, new))} is none of those in training" if new else None

    def _given(self, row: Mapping[str, Any]) -> list[Any]:
        """Return a row's tags, or its entities as (start, end, kind), as they stand there. Raises DataError."""
        cell = _opened(row.get(self.columns["tags"]))
        if self.options["spans"]:
            return sorted(_spans(cell))
        return [label_text(tag, self.options["labels"] if self.options["ids"] else ()) for tag in cell]

    def _words(self, row: Mapping[str, Any]) -> list[str]:
        value = self.value(row, "text")
        return value.split() if isinstance(value, str) else [word.strip() or "-" for word in value]

    def windows(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[list[dict[str, Any]]]:
        found = []
        for row, reading in zip(rows, self._read(rows, processor), strict=True):
            tags = iter(self._tags(row, reading) if labelled else ())
            for feature, places in reading.windows if labelled else ():
                feature["labels"] = [IGNORED] * len(feature["input_ids"])
                for place in places:
                    feature["labels"][place] = self.options["labels"].index(next(tags))
            found.append([feature for feature, _ in reading.windows])
        return found

    def _read(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[_Reading]:
        readings = [_Reading(self._text(row)) for row in rows]
        encoded = processor(
            [reading.text for reading in readings], truncation=True, max_length=self.options["max_length"],
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        for row, reading, windows in zip(rows, readings, cut_up(encoded, len(rows)), strict=True):
            words = [] if self.options["spans"] else self._words(row)
            starts = list(accumulate((len(word) + 1 for word in words), initial=0))
            for window in windows:
                places = []
                for place, ends in enumerate(encoded["offset_mapping"][window]):
                    start, end = trimmed(reading.text, *ends)
                    word = bisect_right(starts, start) - 1
                    if start >= end or (
                        words and word in reading.words[-1:]
                    ):  # a special token, or a word's second one
                        continue
                    places.append(place)
                    reading.units.append((starts[word], starts[word] + len(words[word])) if words else (start, end))
                    reading.words.append(word)
                reading.windows.append((model_inputs(encoded, window, processor), places))
        return readings

    def _text(self, row: Mapping[str, Any]) -> str:
        return str(self.value(row, "text")) if self.options["spans"] else " ".join(self._words(row))

    def _tags(self, row: Mapping[str, Any], reading: _Reading) -> list[str]:
        """Return the tag of each unit."""
        given = self._given(row)
        if not self.options["spans"]:
            return [given[word] for word in reading.words]
        tags, last = [], None
        for start, end in reading.units:
            within = next((span for span in given if start < span[1] and span[0] < end), None)
            tags.append(_OUTSIDE if within is None else f"{'I' if within == last else 'B'}-{within[2]}")
            last = within
        return tags

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        tags = " ".join(self.options["labels"][label] for label in feature["labels"] if label != IGNORED)
        return super().shown({"input_ids": feature["input_ids"], "tags": tags}, processor)

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return each row's entities. Of rows of words, the text is the words with spaces between them."""
        outputs = iter(self.outputs(model, processor, rows))
        found = []
        for reading in self._read(rows, processor):
            chances = [next(outputs)[0][places].softmax(-1) for _, places in reading.windows]
            best = [
                (self.options["labels"][i], p)
                for each in chances
                for p, i in zip(*map(_list, each.max(-1)), strict=True)
            ]
            found.append({"entities": list(self._entities(reading, best))})
        return found

    def _entities(self, reading: _Reading, best: Sequence[tuple[str, float]]) -> Iterator[dict[str, Any]]:
        groups: list[tuple[str, list[int]]] = []
        before = _OUTSIDE
        for unit, (tag, _) in enumerate(best):
            prefix, _, kind = tag.partition("-") if self.has_entities else ("B", "", tag)
            goes_on = before not in (_OUTSIDE, "") and before[:1] not in _ENDS and groups and groups[-1][0] == kind
            if tag != _OUTSIDE and goes_on and prefix not in _BEGINS:
                groups[-1][1].append(unit)
            elif tag != _OUTSIDE:
                groups.append((kind, [unit]))
            before = tag
        for kind, units in groups:
            start, end = reading.units[units[0]][0], reading.units[units[-1]][1]
            score = sum(best[unit][1] for unit in units) / len(units)
            yield {"label": kind, "text": reading.text[start:end], "start": start, "end": end, "score": score}


def _list(values: Any) -> list[Any]:
    return values.tolist()


def _opened(cell: Any) -> list[Any]:
    """Return the list in a cell: of a CSV as JSON or Python writes it, or as words; of spaCy, the "entities"."""
    if is_empty(cell):
        return []
    if isinstance(cell, str) and cell.strip()[0] in "[{":
        cell = written_out(cell)
    if isinstance(cell, Mapping):
        cell = cell.get("entities", [cell])
    return cell.split() if isinstance(cell, str) else list(cell)


def _spans(cell: Sequence[Any]) -> Iterator[Span]:
    """Yield (start, end, kind) of entities in any of the layouts people keep. Raises DataError."""
    for each in cell:
        values = each
        if isinstance(each, Mapping):
            kind = next(
                (each[k] for k in ("label", "labels", "tag", "type", "entity", "entity_group", "class") if each.get(k)),
                None,
            )
            kind = kind[0] if isinstance(kind, list) and kind else kind
            ends = (each.get("start", each.get("start_offset")), each.get("end", each.get("end_offset")))
            values = (*ends, kind)
        try:
            start, end, kind = values
            yield int(start), int(end), str(kind if kind is not None else values[3])
        except (TypeError, ValueError, IndexError):
            raise DataError(f"its entity {each!r} has no start, end and label") from None


def _kinds(cell: Sequence[Any]) -> list[str]:
    return [kind for *_, kind in _spans(cell)]
