"""Rows for models that write: what is trained, what is cut, what is packed, and what a model is asked to go on with."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from .peek import TRAINING_TASKS
from .trainings import tokenizer

WORDS = "a b c d e f g".split()


def preparation(task: str, rows: list[dict[str, Any]], words: Any, **options: Any) -> Any:
    """Return what a task does with rows, whose columns are named as its roles."""
    row = TRAINING_TASKS[task]
    made = row.preparation(row, {name: name for name in rows[0]}, **{"max_length": 64, **options})
    made.learn(Dataset.from_list(rows), words)
    return made


def words_of(words: Any, feature: dict[str, Any]) -> tuple[str, str]:
    """Return the words of a feature, and those of them that are trained."""
    trained = [label for label in feature["labels"] if label != -100]
    assert all(label in (-100, token) for token, label in zip(feature["input_ids"], feature["labels"], strict=True))
    return words.decode(feature["input_ids"]), words.decode(trained)


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"text": "a b"}, ("a b [EOS]", "a b [EOS]")),
        ({"prompt": "a b", "completion": "c"}, ("a b c [EOS]", "c [EOS]")),
    ],
    ids=["text", "prompt and completion"],
)
def test_a_completion_alone_is_trained_and_a_text_as_a_whole_each_with_its_end(row: Any, want: Any) -> None:
    words = tokenizer(*WORDS)
    assert words_of(words, preparation("causal-lm", [row], words).features([row], words)[0]) == want


@pytest.mark.parametrize(("prompt", "separator"), [("a", "\n"), ("a ", "")])
def test_prompts_and_completions_are_joined_by_a_line_break_unless_the_rows_have_space_there(
    prompt: str, separator: str
) -> None:
    rows = [{"prompt": prompt, "completion": "b"}]
    assert preparation("causal-lm", rows, tokenizer(*WORDS)).options["separator"] == separator


def test_packing_trains_every_token_once_with_an_end_after_each_row() -> None:
    words = tokenizer(*WORDS)
    rows = [{"text": "a b c d e"}, {"text": "f"}, {"text": "g a"}]
    made = preparation("causal-lm", rows, words, packing=True, max_length=4)
    blocks = made.dataset(Dataset.from_list(rows), words)[:]
    assert max(map(len, blocks["input_ids"])) == 4
    seen = blocks["input_ids"][0][:1] + [token for block in blocks["labels"] for token in block[1:]]
    assert words.decode(seen) == "a b c d e [EOS] f [EOS] g a [EOS]"


def test_a_cut_keeps_something_to_train_on() -> None:
    words = tokenizer(*WORDS)
    rows = [{"prompt": "a b c d e f", "completion": "g"}, {"prompt": "a", "completion": "b c d e f g"}]
    made = preparation("causal-lm", rows, words, max_length=4)
    first, second = (words_of(words, feature) for feature in made.features(rows, words))
    assert first == ("e f g [EOS]", "g [EOS]")
    assert second == ("a b c d", "b c d")
    assert words.decode(made.features(rows, words, labelled=False)[0]["input_ids"]) == "c d e f"
