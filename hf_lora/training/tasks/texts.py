"""What tasks on one text, or on two, have in common: the tokens of a row, and the words for its label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ModelError
from ..data.columns import Role
from .preparation import Preparation


def is_text(value: Any) -> bool:
    """Return whether a cell is a text."""
    return isinstance(value, str)


def mean_length(values: Sequence[Any]) -> float:
    """Return how long texts are in the mean, for a Role's preference."""
    return sum(map(len, values)) / max(len(values), 1)


TEXT = Role(
    "text",
    (
        "text", "sentence", "review", "comment", "content", "message", "body", "premise",
        "sentence1", "text1", "text a", "question1", "query", "rezension", "kommentar", "nachricht",
        "texto", "reseña", "comentario", "texte", "avis", "commentaire", "testo", "recensione", "commento", "tekst",
        "текст", "отзыв", "文本", "内容", "评论", "評論", "本文", "レビュー", "텍스트", "리뷰", "نص", "טקסט",
    ),
    is_text, preference=mean_length,
)  # fmt: skip
PAIR = Role(
    "text_pair",
    ("text pair", "sentence2", "text2", "text b", "hypothesis", "question2", "passage"), is_text, is_required=False,
)  # fmt: skip


class Texts(Preparation):
    """A text a row, or two; `target` says what a model learns of it."""

    def target(self, row: Mapping[str, Any]) -> Any:
        """Return what stands for a row's label in a batch."""
        raise NotImplementedError

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        features = self.inputs(rows, processor)
        if labelled:
            for feature, row in zip(features, rows, strict=True):
                feature["labels"] = self.target(row)
        return features

    def inputs(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[dict[str, Any]]:
        """Return what the model gets of each row, without the label."""
        texts = [str(self.value(row, "text") or "") for row in rows]
        pairs = [str(self.value(row, "text_pair") or "") for row in rows] if "text_pair" in self.columns else None
        return split_up(processor(texts, pairs, truncation=True, max_length=self.options["max_length"]))

    def fit_model(self, model: Any, processor: Any) -> None:
        pad(model, processor)


def split_up(encoded: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a tokenizer's output row by row."""
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def shortened(text: str, most: int, processor: Any) -> str:
    """Return a text cut to so many tokens, without special ones."""
    offsets = processor(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= most else text[: offsets[most - 1][1]]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return where a token stands without the white space that it may begin with.

    >>> trimmed("in Rome", 2, 7)
    (3, 7)
    """
    return end - len(text[start:end].lstrip()), end


def pad(model: Any, processor: Any) -> None:
    """Have a tokenizer and a model that know no padding pad with the end of a text. Raises ModelError without one."""
    if processor.pad_token is None:
        if processor.eos_token is None:
            raise ModelError("the tokenizer has no token that pads and none that ends a text; give it a pad_token.")
        processor.pad_token = processor.eos_token
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = processor.pad_token_id


def label_text(value: Any, names: Sequence[str] = ()) -> str:
    """Return a label as a word, the same from every format of file.

    names: of the labels that whole numbers stand for, as in a data set with a ClassLabel.

    >>> label_text(" good "), label_text(1.0), label_text(True), label_text(1, ["bad", "good"])
    ('good', '1', 'true', 'good')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value).strip()


def label_names(feature: Any) -> list[str]:
    """Return the names of a column's ClassLabel, or of the one in its lists; empty where it has none."""
    return list(getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or ())


def in_order(labels: set[str]) -> list[str]:
    """Return labels sorted: numbers by their size, before words by the alphabet."""

    def key(label: str) -> tuple[bool, float, str]:
        try:
            number = float(label)
        except ValueError:
            number = math.nan
        return (False, number, label) if number == number else (True, 0.0, label)  # "nan" is a word: it has no order

    return sorted(labels, key=key)
