"""Which task, and which column: told from the columns of a file, in any order and language, or asked for."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig, GPT2Config, ViTConfig

from hf_lora.errors import DataError

from .peek import guess_task

TEXTS = ["the film was lovely", "a dull story", "very fine indeed", "it was poor", "so warm", "cold, all of it"]


def _rows(**columns: Any) -> list[dict[str, Any]]:
    """Return six rows: of a text for each of TEXTS, and of what a column repeats."""
    return [{name: values[n % len(values)] for name, values in columns.items()} for n in range(len(TEXTS))]


GUESSES: list[tuple[list[dict[str, Any]], Any, str, dict[str, str]]] = [
    (_rows(label=["a", "b"], text=TEXTS), None, "text-classification", {"text": "text", "label": "label"}),
    (_rows(id="123456", 评论=TEXTS, 标签=["好", "坏"]), None, "text-classification", {"text": "评论", "label": "标签"}),
    (_rows(Klasse=["1", "2"], Rezension=TEXTS), None, "text-classification", {"text": "Rezension", "label": "Klasse"}),
    (_rows(Отзыв=TEXTS, метка=["да", "нет"]), None, "text-classification", {"text": "Отзыв", "label": "метка"}),
    (_rows(فئة=["أ", "ب"], نص=TEXTS), None, "text-classification", {"text": "نص", "label": "فئة"}),
    (_rows(verdict=["so", "so", "la"], what=TEXTS), BertConfig(), "text-classification", {"text": "what", "label": "verdict"}),
    (_rows(id="123456", review=TEXTS, stars=["neg", "pos"]), BertConfig(), "text-classification", {"text": "review", "label": "stars"}),
    *((_rows(Datum=TEXTS[::-1], Autor="123456", **{text: [f"{each}, so" for each in TEXTS], label: ["gut", "schlecht"]}), config,
       "text-classification", {"text": text, "label": label})
      for text, label in (("Text", "Bewertung"), ("avis", "étiquette"), ("texto", "sentimiento"), ("Kommentar", "Stimmung"),
                          ("文本", "情感"), ("텍스트", "감정"))
      for config in (None, BertConfig(), GPT2Config()) if text.isascii() or config is None),
    (_rows(Text=TEXTS, Ergebnis=["gut", "schlecht"], Datum="123456"), BertConfig(), "text-classification", {"text": "Text", "label": "Ergebnis"}),
    (_rows(Text=TEXTS, Bewertung=["1,5", "2,25"]), BertConfig(), "regression", {"text": "Text", "label": "Bewertung"}),
    (_rows(Text=TEXTS, Bewertung=["1", "2"]), BertConfig(), "text-classification", {"text": "Text", "label": "Bewertung"}),
    (_rows(text=TEXTS, price=["7,50 €", "8 €", "N/A"]), BertConfig(), "regression", {"text": "text", "label": "price"}),
    *(
        (_rows(**{one: TEXTS, two: TEXTS[::-1], "is_same": ["0", "1"]}), BertConfig(), "text-classification",
         {"text": one, "text_pair": two, "label": "is_same"})
        for one, two in [("question1", "question2"), ("sentence1", "sentence2"), ("text_a", "text_b"), ("query", "passage"),
                         ("premise", "hypothesis"), ("text1", "text2")]
    ),
    (_rows(text=TEXTS), GPT2Config(), "causal-lm", {"text": "text"}),
    (_rows(text=TEXTS), BertConfig(), "masked-lm", {"text": "text"}),
    (_rows(text=TEXTS, tags=[["a", "b"], []]), BertConfig(), "multi-label", {"text": "text", "label": "tags"}),
    (_rows(id="123456", text=TEXTS, tags=["a, b", "b", "a", "c, a", "", "c, b"]), BertConfig(), "multi-label", {"text": "text", "label": "tags"}),
    (_rows(text=TEXTS, town=["Rome, Italy", "Bern"]), BertConfig(), "text-classification", {"text": "text", "label": "town"}),
    (_rows(text=TEXTS, score=["1,5", "2,25"]), BertConfig(), "regression", {"text": "text", "label": "score"}),
    (_rows(tokens=[["Ann", "sat"]], ner_tags=[["B-PER", "O"]]), None, "token-classification", {"text": "tokens", "tags": "ner_tags"}),
    (
        _rows(question=["who?"], context=TEXTS, answers=[{"text": ["o"], "answer_start": [2]}]), None,
        "question-answering", {"question": "question", "context": "context", "answers": "answers"},
    ),
    (
        _rows(question=["who?"], A=TEXTS, B=TEXTS, answer=["A", "B"]), BertConfig(),
        "multiple-choice", {"text": "question", "label": "answer"},
    ),
    (
        _rows(history=[["one", "two"]], item=TEXTS, clicked=["0", "1"]), BertConfig(),
        "recommendation", {"history": "history", "candidate": "item", "label": "clicked"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "config", "task", "columns"), GUESSES, ids=[guess[2] for guess in GUESSES])
def test_columns_tell_the_task(rows: list[dict[str, Any]], config: Any, task: str, columns: dict[str, str]) -> None:
    guess = guess_task(rows, {}, "rows.csv", config)
    assert (guess.task.name, guess.columns) == (task, columns)


@pytest.mark.parametrize(
    ("rows", "config", "said"),
    [
        (_rows(file=[f"a/cat/{n}.png" for n in range(6)], label=["cat", "dog"]), BertConfig(), "'file', 'label', which are for image-classification, and the base is a bert, for text-classification (text and label), "),
        (_rows(text=TEXTS, label=["a", "b"]), ViTConfig(), "which are for text-classification, and the base is a vit, for image-classification (image and label). Take a base for AutoModelForSequenceClassification, or rows for this one."),
        (_rows(a="123456", b="123456"), None, "'a', 'b', which fit no task. Say which column is what, as --column text=NAME"),
        (
            _rows(Datum=["1.2.2024", "3.2.2024", "4.2.2024", "5.2.2024"], Bewertung=TEXTS * 2, **{"Unser Urteil": ["gut", "schlecht"] * 2}),
            BertConfig(), "as --column text=Bewertung --column 'label=Unser Urteil', or",
        ),
        (_rows(text=TEXTS), None, "could be for masked-lm or causal-lm"),
        (_rows(title="fedcba", review=TEXTS, rating=["1", "2"]), None, "could be for masked-lm or causal-lm or text-classification or regression"),
        (_rows(text=TEXTS, source=["web", "book"]), GPT2Config(), "could be for text-classification or causal-lm"),
        (_rows(text=TEXTS, source=["web", "book"], lang=["en", "de"]), GPT2Config(), "could be for causal-lm or text-classification"),
    ],
)  # fmt: skip
def test_columns_that_could_be_for_several_tasks_are_asked_about(
    rows: list[dict[str, Any]], config: Any, said: str
) -> None:
    with pytest.raises(DataError, match="rows.csv: ") as caught:
        guess_task(rows, {}, "rows.csv", config)
    assert said in str(caught.value)


def test_a_column_that_is_said_decides() -> None:
    rows = _rows(a=TEXTS, b=["x", "y"], c=["1", "2"])
    assert guess_task(rows, {"label": "c", "text": "a"}, "rows.csv").columns == {"label": "c", "text": "a"}


def test_words_in_a_column_that_is_said_are_no_numbers_and_others_may_be_left() -> None:
    rows = _rows(Nr="123456", Datum=["1.2.2024", "3.2.2024"], Meinung=TEXTS, Bewertung=["gut", "schlecht"])
    for given in ({"label": "Bewertung", "text": "Meinung"}, {"label": "Bewertung"}):
        guess = guess_task(rows, given, "rows.csv", BertConfig())
        assert (guess.task.name, guess.columns) == ("text-classification", {"label": "Bewertung", "text": "Meinung"})
