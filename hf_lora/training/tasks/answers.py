"""Question answering: the part of a context that answers a question, or that there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ...errors import ConfigError, DataError
from ..columns import Columns, as_objects
from ..data.columns import Role, is_empty, written_out
from .texts import is_text, mean_length, shortened, trimmed
from .windows import Windowed, cut_up, model_inputs

if TYPE_CHECKING:
    from datasets import Dataset

QUESTION = Role("question", ("question", "query", "frage", "pregunta", "问题", "سؤال"), is_text)
CONTEXT = Role(
    "context", ("context", "passage", "paragraph", "document", "text", "article", "kontext", "上下文"), is_text,
    preference=mean_length,
)  # fmt: skip
ANSWERS = Role(
    "answers", ("answers", "answer", "answer text", "answer texts", "antwort", "respuesta", "答案"),
    lambda value: isinstance(value, str | list | dict), is_label=True,
)  # fmt: skip
START = Role(
    "start", ("answer start", "start", "start position"), lambda value: str(value).strip().isdigit(),
    is_required=False, is_label=True,
)  # fmt: skip
ROLES = (QUESTION, CONTEXT, ANSWERS, START)


class _Answer(NamedTuple):
    """A part of a context, by its characters: context[start:end] is text."""

    start: int
    end: int
    text: str


class _Window(NamedTuple):
    """What a model reads at once. offsets: the characters of the context's tokens, by their place. null: the place
    that stands for no answer."""

    feature: dict[str, Any]
    offsets: dict[int, tuple[int, int]]
    null: int


class Answers(Windowed):
    """A question, a context and its answer. Long contexts are read in windows that overlap by a quarter.

    Where an answer's start is not given, or is wrong, it is the nearest place, or the first one, where its text stands.
    options: unanswerable, whether questions without an answer are among those to train on; then "no answer" is an
    answer (SQuAD 2); longest, of answers, in characters: twice the longest to train on.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length", "unanswerable", "longest")
    ADOPTED = {"unanswerable": False, "longest": 200}

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether most answers stand in their contexts."""
        pairs = []
        for row in rows:
            with suppress(DataError):  # `problem` tells of it
                pairs += [(row[columns["context"]] or "", text) for text, _ in _given(row[columns["answers"]], None)]
        return 2 * sum(text in context for context, text in pairs) > len(pairs)

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        if self.options["max_length"] < 32:
            raise ConfigError(f"--max-length {self.options['max_length']}: a question and a context need 32 tokens.")
        unanswerable, longest = False, 0
        for row in rows:
            try:
                found = self._answers(row)
            except DataError:
                continue  # `problem` tells where
            unanswerable |= not found
            longest = max([longest, *(len(each.text) for each in found)])
        if not longest:
            raise DataError(
                f"column {self.columns['answers']!r}: no question has an answer; there is nothing to learn."
            )
        self.options |= {"unanswerable": unanswerable, "longest": 2 * longest}

    def metrics(self) -> tuple[str, ...]:
        return ("squad_v2",) if self.options["unanswerable"] else self.task.metrics

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if empty := super().problem(row, labelled=False):
            return empty
        try:
            found = self._answers(row) if labelled else ()
        except DataError as error:
            return str(error)
        if labelled and not found and not self.options["unanswerable"]:
            return "its question has no answer, as none of those to train on is without"
        return None

    def _answers(self, row: Mapping[str, Any]) -> list[_Answer]:
        """Return where a row's answers stand in its context. Raises DataError where one does not."""
        context, found = str(self.value(row, "context")), []
        for text, said in _given(row.get(self.columns["answers"]), self.value(row, "start")):
            start = context.find(text)
            if said is not None and start >= 0:
                places = np.array([i for i in range(len(context)) if context.startswith(text, i)])
                start = int(places[abs(places - said).argmin()])
            if start < 0:
                raise DataError(f"its answer {text[:60]!r} does not stand in its context")
            found.append(_Answer(start, start + len(text), text))
        return found

    def windows(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[list[dict[str, Any]]]:
        found = self._read(rows, processor)
        if labelled:
            for row, windows in zip(rows, found, strict=True):
                answer = next(iter(self._answers(row)), None)
                for window in windows:
                    start, end = _tokens_of(answer, window)
                    window.feature.update(start_positions=start, end_positions=end)
        return [[window.feature for window in windows] for windows in found]

    def _read(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[list[_Window]]:
        most = self.options["max_length"]
        contexts = [str(self.value(row, "context")) for row in rows]
        # A question leaves its context half of the tokens.
        questions = [shortened(str(self.value(row, "question")).strip(), most // 2, processor) for row in rows]
        encoded = processor(
            questions, contexts, truncation="only_second", max_length=most,
            stride=most // 4 - 4, return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        found = zip(contexts, cut_up(encoded, len(rows)), strict=True)
        return [[_window(encoded, i, context, processor) for i in windows] for context, windows in found]

    def compared(self, rows: Dataset, processor: Any, predictions: Any, labels: Any) -> dict[str, Columns]:
        """Return the answer to each question, over all its windows, and all the right ones."""
        outputs = zip(*(np.asarray(values) for values in predictions[:2]), strict=True)
        said, truth = [], []
        for row in rows:
            (windows,) = self._read([row], processor)
            said.append(self._answer(row, windows, [next(outputs) for _ in windows])["answer"])
            truth.append([each.text for each in self._answers(row)])
        firsts = as_objects([each[0] if each else "" for each in truth])
        return {"answers": Columns(as_objects(said), as_objects(truth)), "texts": Columns(as_objects(said), firsts)}

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return each question's answer, its characters in the context and its probability; "" where there is none."""
        outputs = iter(self.outputs(model, processor, rows))
        logits = ([each.numpy() for each in heads] for heads in outputs)
        read = zip(rows, self._read(rows, processor), strict=True)
        return [self._answer(row, windows, [next(logits) for _ in windows]) for row, windows in read]

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        ids = feature["input_ids"]
        answer = processor.decode(ids[feature["start_positions"] : feature["end_positions"] + 1])
        return super().shown({"input_ids": ids, "answer": answer}, processor)

    def _answer(self, row: Mapping[str, Any], windows: Sequence[_Window], logits: Sequence[Any]) -> dict[str, Any]:
        """Return the best span over all windows, or none where that is better in each (Devlin et al. 2018,
        arXiv:1810.04805, section 4.3)."""
        best, found, null, no_answer = -np.inf, (0, 0, 0.0), np.inf, 0.0
        for window, (starts, ends) in zip(windows, logits, strict=True):
            places = list(window.offsets)
            first, last = np.array([window.offsets[place] for place in places]).reshape(-1, 2).T
            chances = [np.exp(v - np.logaddexp.reduce(v)) for v in _relevant(window, places, starts, ends)]
            none = float(starts[window.null] + ends[window.null])
            if none < null:
                null, no_answer = none, float(chances[0][-1] * chances[1][-1])
            scores = starts[places][:, None] + ends[places][None, :]
            length = last[None, :] - first[:, None]
            fits = np.triu(np.ones_like(scores, dtype=bool)) & (length > 0) & (length <= self.options["longest"])
            if not fits.any():
                continue
            i, j = np.unravel_index(np.where(fits, scores, -np.inf).argmax(), scores.shape)
            if scores[i, j] > best:
                best = float(scores[i, j])
                found = (int(first[i]), int(last[j]), float(chances[0][i] * chances[1][j]))
        if self.options["unanswerable"] and null >= best:
            return {"answer": "", "start": None, "end": None, "score": no_answer}
        start, end, score = found
        return {"answer": str(self.value(row, "context"))[start:end], "start": start, "end": end, "score": score}


def _relevant(window: _Window, places: list[int], *logits: Any) -> list[Any]:
    """Return the logits of the context's tokens, and last that of no answer."""
    return [each[[*places, window.null]].astype(np.float64) for each in logits]


def _window(encoded: Any, number: int, context: str, processor: Any) -> _Window:
    feature = model_inputs(encoded, number, processor)
    sides = encoded.sequence_ids(number)
    offsets = [trimmed(context, *ends) for ends in encoded["offset_mapping"][number]]
    ids = feature["input_ids"]
    null = ids.index(processor.cls_token_id) if processor.cls_token_id in ids else 0
    return _Window(feature, {i: offsets[i] for i, side in enumerate(sides) if side == 1}, null)


def _tokens_of(answer: _Answer | None, window: _Window) -> tuple[int, int]:
    """Return the first and the last token of an answer; the place of no answer where a window has not all of it."""
    spans = list(window.offsets.items())
    if answer is None or not spans or spans[0][1][0] > answer.start or spans[-1][1][1] < answer.end:
        return window.null, window.null
    within = [place for place, (start, end) in spans if start < answer.end and end > answer.start]
    return (within[0], within[-1]) if within else (window.null, window.null)


def _given(cell: Any, start: Any) -> Iterator[tuple[str, int | None]]:
    """Yield (text, start) of the answers in a cell: of SQuAD's layout, of a list, of a text, of JSON in a text."""
    if isinstance(cell, str) and cell.strip()[:1] in ("{", "["):
        cell = written_out(cell)
    if isinstance(cell, Mapping) and isinstance(cell.get("text"), list):
        starts = cell.get("answer_start") or [None] * len(cell["text"])
        if not isinstance(starts, list) or len(starts) != len(cell["text"]):
            raise DataError(f"it has {len(cell['text'])} answers, and their starts are {starts!r}")
        cell = [{"text": text, "answer_start": at} for text, at in zip(cell["text"], starts, strict=True)]
    for each in cell if isinstance(cell, list) else [cell]:
        text, at = (each.get("text"), each.get("answer_start", start)) if isinstance(each, Mapping) else (each, start)
        if not is_empty(text):
            yield str(text), _place(at)


def _place(start: Any) -> int | None:
    """Return the number of an answer's first character; None where none is given. Raises DataError for no number."""
    at = start[0] if isinstance(start, list) and len(start) == 1 else start
    if is_empty(at):
        return None
    try:
        return int(at) if int(at) >= 0 else None
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"its answer's start {start!r} is no whole number") from None
