"""Rows of the tasks on texts, in the forms that people keep them in, and what a model gets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import PreTrainedTokenizerFast

from hf_lora.errors import DataError

from .jobs import write_jsonl
from .jobs_text import bert
from .peek import TRAINING_TASKS, choose_columns, read_rows


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the jobs' BERT."""
    return PreTrainedTokenizerFast.from_pretrained(bert(tmp_path_factory.mktemp("base")))


def learned(task: str, rows: list[dict[str, Any]] | Dataset, processor: Any, **given: Any) -> tuple[Any, Dataset]:
    """Return the preparation that learned rows, and the rows."""
    found = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    row = TRAINING_TASKS[task]
    columns = choose_columns(found.to_list(), row.roles, {}, "rows")
    preparation = row.preparation(row, columns, **given)
    preparation.learn(found, processor)
    return preparation, found


def targets(
    task: str, rows: list[dict[str, Any]] | Dataset, processor: Any, name: str = "labels", **given: Any
) -> list[Any]:
    """Return what is learnt of each row."""
    preparation, found = learned(task, rows, processor, **given)
    assert [preparation.problem(row, True) for row in found] == [None] * len(found)
    return [feature[name] for feature in preparation.features(found.to_list(), processor)]


@pytest.mark.parametrize(
    "values",
    [["bad", "good"], [" bad", "good "], [0, 1], ["0", "1"], [False, True], [0.0, 1.0], ["坏", "好"], ["2", "10"]],
)
def test_labels_are_words_numbers_or_bools(values: list[Any], words: Any) -> None:
    rows = [{"text": "a film", "label": value} for value in (*values, values[0])]
    assert targets("text-classification", rows, words) == [0, 1, 0]


def test_numbers_of_a_class_label_are_its_names(words: Any) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["up", "down", "aside"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    preparation, _ = learned("text-classification", rows, words)
    assert preparation.options["labels"] == ["up", "down", "aside"]
    assert targets("text-classification", rows, words) == [1, 0, 1]
    again = type(preparation)(preparation.task, preparation.columns, **preparation.options)
    assert [again.problem({"text": "x", "label": value}, True) is None for value in ("down", 2, 3, -1)] == [
        True,
        True,
        False,
        False,
    ]


NO_LABELS = ["N/A", "nan", "null", "-", "", " ", "NA", None]


def test_words_for_a_missing_label_are_no_classes(words: Any) -> None:
    cells = ["good", "bad", *NO_LABELS]
    preparation, rows = learned("text-classification", [{"text": "a film", "label": cell} for cell in cells], words)
    assert preparation.options["labels"] == ["bad", "good"]
    problems = [preparation.problem(row, True) for row in rows]
    assert problems[:2] == [None, None]
    assert all(str(each).startswith("its label (column 'label') is empty") for each in problems[2:])
    assert problems[2] == "its label (column 'label') is empty: it says 'N/A'"
    assert targets("text-classification", [{"text": "a", "label": cell} for cell in "+-+"], words) == [0, 1, 0]
    rows = [{"text": "a film", "labels": cell} for cell in ("a;b", *NO_LABELS)]
    assert targets("multi-label", rows, words) == [[1.0, 1.0], *[[0.0, 0.0]] * len(NO_LABELS)]


def test_labels_that_differ_in_capitals_and_those_of_one_row_are_told(words: Any) -> None:
    cells = ["Pos", "pos ", "Pos", "very  bad", "Very bad", "Very bad", "odd", "x", "x"]
    rows = [{"text": "a film", "label": cell, "__place__": f"line {n}"} for n, cell in enumerate(cells)]
    told = [
        "the labels 'Pos' (2 rows) and 'pos' (1: line 1) are 2 classes; write them alike if they are one.",
        "the labels 'Very bad' (2 rows) and 'very  bad' (1: line 3) are 2 classes; write them alike if they are one.",
        "one row alone has the label 'pos' (line 1) or 'very  bad' (line 3) or 'odd' (line 6): too little to learn and "
        "to measure it.",
    ]
    assert learned("text-classification", rows, words)[0].remarks == told
    several = [{**row, "label": [row["label"]]} for row in rows]
    assert learned("multi-label", several, words)[0].remarks == told
    tagged = [{"words": ["a"], "tags": [row["label"].strip()], "__place__": row["__place__"]} for row in rows]
    assert learned("token-classification", tagged, words)[0].remarks == told


def test_labels_that_are_no_classes_are_refused(words: Any) -> None:
    rows = [{"text": "a film", "label": f"label {n}"} for n in range(30)]
    with pytest.raises(DataError, match="30 labels in 30 rows.*are no classes"):
        learned("text-classification", rows, words)


@pytest.mark.parametrize(
    "cells",
    [
        [["b", "a"], ["c"], []],
        ["b; a", "c", ""],
        ["a|b", "c", None],
        ["a, b", "c", " "],
        ['["a", "b"]', "['c']", "[]"],
        ["a\nb;", "c;", ""],
    ],
)
def test_several_labels_stand_in_lists_or_in_a_text(cells: list[Any], words: Any) -> None:
    rows = [{"text": "a film", "labels": cell} for cell in cells]
    assert targets("multi-label", rows, words) == [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_several_labels_have_a_column_of_marks_each(words: Any) -> None:
    marks = [("0", 1, True, "yes"), ("1", 0, False, ""), ("", 1, True, "no")]
    rows = [{"text": "a film", "id": f"x{n}", "a": a, "b": b, "c": c, "d": d} for n, (a, b, c, d) in enumerate(marks)]
    assert targets("multi-label", rows, words) == [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    preparation, _ = learned("multi-label", rows, words)
    assert preparation.problem({**rows[0], "b": 2}, True) == "its 'b' is 2, neither 1 nor 0"
    with pytest.raises(DataError, match="--column label=NAME"):
        learned("multi-label", [{"text": "a film", "id": "x"}], words)


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        ([1, 2.5, -1], [1.0, 2.5, -1.0]),
        (["1", " 2.5", "-1e0"], [1.0, 2.5, -1.0]),
        (["0,5", "1,25", "-1"], [0.5, 1.25, -1.0]),
        (["0,125", "0,250"], [0.125, 0.25]),
        (["1.234,5", "2,5"], [1234.5, 2.5]),
        (["1,234.5", "2.5"], [1234.5, 2.5]),
        (["1,234,567", "8"], [1234567.0, 8.0]),
        (["1.234.567", "8"], [1234567.0, 8.0]),
        (["1.234", "2,5"], [1234.0, 2.5]),
        (["7,50 €", "1.037,00 €", "12"], [7.5, 1037.0, 12.0]),
        (["$1,200.50", "-$3", "USD 1"], [1200.5, -3.0, 1.0]),
        (["85 %", "7.5%"], [85.0, 7.5]),
        (["1 200,50", "1\u202f000 €", "\u22123"], [1200.5, 1000.0, -3.0]),
        (["1'200.50", "CHF 3"], [1200.5, 3.0]),
        (["N/A", "3,5", "-", "nan", "4"], [None, 3.5, None, None, 4.0]),
        (["1.037", "1200"], [1.037, 1200.0]),
    ],
)
def test_numbers_stand_in_texts_as_people_write_them(cells: list[Any], numbers: list[Any], words: Any) -> None:
    preparation, rows = learned("regression", [{"text": "a film", "score": cell} for cell in map(str, cells)], words)
    missing = [number is None for number in numbers]
    rows, numbers = rows.select(np.flatnonzero(np.logical_not(missing))), [n for n in numbers if n is not None]
    assert [preparation.problem({"text": "a", "score": cell}, True) is not None for cell in map(str, cells)] == missing
    assert [preparation.number(row["score"]) for row in rows] == numbers
    scaled = np.array([preparation.target(row) for row in rows])
    np.testing.assert_allclose(scaled * preparation.options["std"] + preparation.options["mean"], numbers)
    said, truth = preparation.compared(rows, words, scaled[:, None].astype(np.float32), scaled)["numbers"][:2]
    np.testing.assert_allclose(said, truth, rtol=1e-5)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["1,234", "5,678"], "'1,234' may be 1234 or 1.234"),
        (["1,5", "2.5"], "a row: its label '1,5' and a row: its label '2.5': some numbers have a decimal comma"),
        (["1.037", "998", "2.100"], "a row: its label '1.037' may be 1037 or 1.037"),
        (["85 %", "0.85"], "its label '85 %' and a row: its label '0.85' are in two units"),
        (["5 €", "$3", "4"], "its label '5 €' and a row: its label '.3' are in two units"),
        (["3", "3"], "nothing to learn"),
    ],
)
def test_numbers_that_could_be_two_are_refused(cells: list[str], told: str, words: Any) -> None:
    with pytest.raises(DataError, match=told):
        learned("regression", [{"text": "a film", "score": cell} for cell in cells], words)


@pytest.mark.parametrize(
    ("learnt", "read"),
    [
        (
            "1.5",
            {"2.5": 2.5, "1,037.5": 1037.5, "12,34,567.5": 1234567.5, "1037,5": None, "0,500": None, "1.037,5": None},
        ),
        ("1,5", {"2,5": 2.5, "1.037,5": 1037.5, "1037.5": None, "1,037.5": None, "-0.500": None}),
    ],
)
def test_a_number_of_another_file_with_the_other_decimal_mark_is_refused(
    learnt: str, read: dict[str, float | None], words: Any
) -> None:
    made, _ = learned("regression", [{"text": "a film", "label": each} for each in (learnt, "2", "0")], words)
    for cell, number in read.items():
        row = {"text": "a film", "label": cell}
        problem = made.problem(row, labelled=True)
        assert (problem is None) == (number is not None), cell
        assert made.number(cell) == number if problem is None else f"{cell!r} is no number with a decimal" in problem


def test_a_second_text_that_was_there_in_training_is_missed(words: Any) -> None:
    """Of a pair's first text alone, predictions would be of something else. An empty cell says that there is none."""
    rows = [{"premise": "a film", "hypothesis": "a story", "label": "xy"[n % 2]} for n in range(4)]
    made, _ = learned("text-classification", rows, words)
    assert made.problem({"premise": "a film", "hypothesis": None}, labelled=False) is None
    assert "no column 'hypothesis' (text_pair)" in made.problem({"premise": "a film"}, labelled=False)
    alone, _ = learned("text-classification", [{"text": "a film", "label": "xy"[n % 2]} for n in range(4)], words)
    assert alone.problem({"text": "a film"}, labelled=False) is None


def test_a_label_that_is_no_number_is_told_with_its_row(words: Any) -> None:
    preparation, _ = learned("regression", [{"text": "a", "score": "1"}, {"text": "a", "score": "2"}], words)
    told = {
        "1.2.3": "its label '1.2.3' is no number with a decimal point, as in training",
        "5 apples": "its label '5 apples' is no number",
        "85 %": "its label '85 %' is in another unit than those in training ('')",
        "N/A": "its label (column 'score') is empty: it says 'N/A'",
    }
    assert {cell: preparation.problem({"text": "a", "score": cell}, True) for cell in told} == told


def test_three_decimals_that_could_be_thousands_are_told(words: Any) -> None:
    preparation, _ = learned("regression", [{"text": "a", "score": cell} for cell in ("1.037", "2.100")], words)
    assert preparation.remarks == ["a row: its label '1.037' is read as 1.037, and not as 1037."]


# --- entities -----------------------------------------------------------------------------------------------------------


def test_the_first_token_of_a_word_has_its_tag(words: Any) -> None:
    rows = [{"tokens": ["Ann", "Rome", "now"], "ner_tags": ["B-PER", "B-LOC", "O"]}]
    preparation, _ = learned("token-classification", rows, words)
    (feature,) = preparation.features(rows, words)
    tags = [preparation.options["labels"][label] if label >= 0 else None for label in feature["labels"]]
    assert list(zip(words.convert_ids_to_tokens(feature["input_ids"]), tags, strict=True)) == [
        ("[CLS]", None), ("Ann", "B-PER"), ("R", "B-LOC"), ("##ome", None), ("now", "O"), ("[SEP]", None),
    ]  # fmt: skip
    as_texts = [{"tokens": "Ann Rome now", "ner_tags": "B-PER B-LOC O"}]
    assert targets("token-classification", as_texts, words) == [feature["labels"]]
    features = Features(
        {"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-LOC", "B-PER"]))}
    )
    ids = Dataset.from_dict({"tokens": [rows[0]["tokens"]], "ner_tags": [[2, 1, 0]]}, features=features)
    assert targets("token-classification", ids, words) == [feature["labels"]]


SPANS: list[Any] = [
    [{"start": 0, "end": 3, "label": "PER"}, {"start": 13, "end": 17, "label": "LOC"}],
    [[13, 17, "LOC"], [0, 3, "PER"]],
    '[{"start": 0, "end": 3, "label": "PER"}, {"start": 13, "end": 17, "label": "LOC"}]',
    [
        {"start_offset": 0, "end_offset": 3, "entity_group": "PER"},
        {"start_offset": 13, "end_offset": 17, "entity_group": "LOC"},
    ],
]


@pytest.mark.parametrize("entities", SPANS)
def test_tokens_in_an_entity_have_its_tag(entities: Any, words: Any) -> None:
    mixed = isinstance(entities, list) and isinstance(
        entities[0], list
    )  # numbers and words, which Arrow has no list of
    rows = [{"text": "Ann lives in Rome.", "entities": str(entities) if mixed else entities}]
    preparation, found = learned("token-classification", rows, words)
    assert preparation.options["labels"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    (labels,) = targets("token-classification", found, words)
    tags = [preparation.options["labels"][label] if label >= 0 else None for label in labels]
    assert tags == [None, "B-PER", "O", "O", "B-LOC", "I-LOC", "O", None]


def test_an_entity_outside_its_text_and_a_tag_too_few_are_told(words: Any) -> None:
    rows = [{"text": "Ann", "entities": [{"start": 0, "end": 3, "label": "PER"}]}]
    preparation, _ = learned("token-classification", rows, words)
    wrong = {"text": "Ann", "entities": [{"start": 1, "end": 9, "label": "PER"}]}
    assert "(1, 9, 'PER') is not within the text, of 3 characters" in preparation.problem(wrong, True)
    assert "no start, end and label" in preparation.problem({"text": "Ann", "entities": [{"from": 1}]}, True)
    preparation, _ = learned("token-classification", [{"tokens": ["a", "b"], "tags": ["X", "O"]}], words)
    assert preparation.problem({"tokens": ["a", "b"], "tags": ["X"]}, True) == "it has 2 words and 1 tags"
    assert "its tag 'Y' is none of those" in preparation.problem({"tokens": ["a"], "tags": ["Y"]}, True)


def test_long_rows_keep_every_tag_in_windows(words: Any) -> None:
    tags = ["B-X" if n % 3 else "O" for n in range(50)]
    rows = [{"tokens": ["Rome"] * 50, "tags": tags}, {"tokens": ["Ann"], "tags": ["O"]}]
    preparation, found = learned("token-classification", rows, words, max_length=16)
    data = preparation.dataset(found, words)
    assert len(data) == len(preparation.features(rows, words)) > 5
    kept = [
        preparation.options["labels"][label] for i in range(len(data) - 1) for label in data[i]["labels"] if label >= 0
    ]
    assert kept == tags
    assert data.__getitems__([len(data) - 1, 0]) == [data[len(data) - 1], data[0]]


def test_conll_files_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("\ufeff-DOCSTART- O\n\nAnn NNP B-PER\nsat VBD O\n\n\nRome\tB-LOC", encoding="utf-8")
    (tmp_path / "scratch").mkdir()
    rows = read_rows(str(path), tmp_path / "scratch")
    assert rows["tokens"] == [["Ann", "sat"], ["Rome"]]
    assert rows["tags"] == [["B-PER", "O"], ["B-LOC"]]
    path.rename(tmp_path / "a.txt")
    assert read_rows(str(tmp_path / "a.txt"), tmp_path / "scratch")["tags"] == rows["tags"]
    (tmp_path / "a.txt").write_text("Room B-12\nI passed with an O\nthat is all\n")
    assert read_rows(str(tmp_path / "a.txt"), tmp_path / "scratch").column_names[0] == "text"
    path.write_text("Ann B-PER\nsat\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.conll, line 2: 'sat' has no tag"):
        read_rows(str(path), tmp_path / "scratch")


# --- answers ------------------------------------------------------------------------------------------------------------

CONTEXT = "Rome and Rome . Ann lives in Rome ."


@pytest.mark.parametrize(
    ("answers", "start", "begins"),
    [
        ({"text": ["Rome"], "answer_start": [29]}, None, 29),
        ({"text": ["Rome"], "answer_start": [28]}, None, 29),
        ([{"text": "Rome", "answer_start": 9}], None, 9),
        ('{"text": ["Rome"], "answer_start": [9]}', None, 9),
        ("Rome", None, 0),
        ("Rome", "29", 29),
        (["Rome"], None, 0),
        ({"text": [], "answer_start": []}, None, None),
    ],
)
def test_an_answer_is_where_it_is_said_or_found(answers: Any, start: Any, begins: int | None, words: Any) -> None:
    one = {"question": "where ?", "context": CONTEXT, "answers": answers, **({"answer_start": start} if start else {})}
    other = {**one, "answers": answers if begins is not None else {"text": ["Ann"], "answer_start": [16]}}
    preparation, rows = learned("question-answering", [one, other], words)
    (window, *_), _ = preparation.windows(rows.to_list(), words)
    encoded = words("where ?", CONTEXT, return_offsets_mapping=True)
    place = window["start_positions"]
    if begins is None:
        assert (place, window["end_positions"]) == (0, 0)
        assert preparation.metrics() == ("squad_v2",)
    else:
        assert encoded["offset_mapping"][place][0] == begins
        assert encoded["offset_mapping"][window["end_positions"]][1] == begins + 4
        assert preparation.metrics() == ("squad",)


def test_an_answer_is_found_over_all_windows(words: Any) -> None:
    rows = [
        {"question": "where ?", "context": "quiet . " * 30 + "Cairo now . " + "slow . " * 9, "answers": ["Cairo now"]}
    ]
    preparation, found = learned("question-answering", rows, words, max_length=32)
    data = preparation.dataset(found, words)
    assert len(data) > 3
    starts, ends = np.full((2, len(data), 32), -1.0)
    for number in range(len(data)):
        window = data[number]
        starts[number, window["start_positions"]] = ends[number, window["end_positions"]] = 5.0
        starts[number, window["end_positions"] + 1] = 9.0  # where it would begin behind its end
    compared = preparation.compared(found, words, (starts, ends), None)["answers"]
    assert compared.predictions.tolist() == ["Cairo now"]
    assert compared.references.tolist() == [["Cairo now"]]


def test_an_answer_that_does_not_stand_in_its_context_is_told(words: Any) -> None:
    rows = [{"question": "where ?", "context": CONTEXT, "answers": "Rome"}]
    preparation, _ = learned("question-answering", rows, words)
    assert (
        preparation.problem({**rows[0], "answers": "Oslo"}, True) == "its answer 'Oslo' does not stand in its context"
    )
    assert "has no answer" in preparation.problem({**rows[0], "answers": ""}, True)
    long = {**rows[0], "question": "who " * 500}
    assert max(len(window["input_ids"]) for window in preparation.features([long], words)) <= 64


# --- choices ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        (["slow", "loud", "fast"], [0, 2]),
        (["slow", "loud", "fast"], ["1", "3"]),
        (["slow", "loud", "fast"], ["A", "c"]),
        (["slow", "loud", "fast"], ["slow", "fast"]),
        ("slow | loud | fast", ["slow", "fast"]),
        ('["slow", "loud", "fast"]', [0, 2]),
        ({"text": ["slow", "loud", "fast"], "label": ["A", "B", "C"]}, ["A", "C"]),
        ({"text": ["slow", "loud", "fast"], "label": ["1", "2", "3"]}, ["1", "3"]),
        (["3", "5", "7"], ["3", "7"]),
    ],
)
def test_the_right_choice_is_a_number_a_letter_a_key_or_a_text(choices: Any, labels: list[Any], words: Any) -> None:
    rows = [{"question": "the film was", "choices": choices, "answer": label} for label in labels]
    assert targets("multiple-choice", rows, words) == [0, 2]


@pytest.mark.parametrize(
    ("rows", "places", "meaning"),
    [
        ([(["2", "4", "1"], "1"), (["3", "2", "1"], "2")], [2, 1], "the choice"),
        ([(["2", "4", "1"], "1"), (["5", "6", "7"], "2")], [1, 2], "the number of a choice, from 0 on"),
        ([(["4", "2", "6"], "2"), (["5", "6", "7"], "3")], [1, 2], None),  # both readings are one
        ([(["2", "4", "8"], 2), (["8", "2", "9"], 9)], [0, 2], None),
    ],
)
def test_a_label_that_is_a_choice_and_the_number_of_another_is_read_alike_in_all_rows(
    rows: list[tuple[list[str], Any]], places: list[int], meaning: str | None, words: Any
) -> None:
    named = [{"question": "a", "choices": choices, "answer": answer} for choices, answer in rows]
    assert targets("multiple-choice", named, words) == places
    told = f"a row: its label '1' is a choice, and the number of another one; in all rows labels are read as {meaning}."
    assert learned("multiple-choice", named, words)[0].remarks == ([told] if meaning else [])


def test_a_choice_without_a_label_changes_no_other(words: Any) -> None:
    rows = [{"question": "a", "choices": ["slow", "loud"], "answer": answer} for answer in ("1", "0", "N/A", "")]
    preparation, found = learned("multiple-choice", rows, words)
    assert [preparation.problem(row, True) is None for row in found] == [True, True, False, False]


@pytest.mark.parametrize(
    "names",
    [
        "ABC",
        ["ending0", "ending1", "ending2"],
        ["choice_1", "choice_2", "choice_3"],
        ["Option A", "Option B", "Option C"],
    ],
)
def test_each_choice_may_have_a_column(names: Any, words: Any) -> None:
    rows = [
        {
            "id": "x",
            "question": "the film was",
            **dict(zip(names, ("slow", "loud", "fast"), strict=True)),
            "label": label,
        }
        for label in ("0", "2")
    ]
    preparation, _ = learned("multiple-choice", rows, words)
    assert preparation.options["choice_columns"] == list(names)
    assert targets("multiple-choice", rows, words) == [0, 2]
    assert "none of its choices, A, B, C" in preparation.problem({**rows[0], "label": "7"}, True)


def test_rows_with_fewer_choices_are_filled_up_with_wrong_ones(words: Any) -> None:
    rows = [
        {"question": "a", "choices": ["slow", "loud"], "answer": "A"},
        {"question": "a", "choices": ["slow", "loud", "fast"], "answer": "C"},
    ]
    preparation, found = learned("multiple-choice", rows, words)
    batch = preparation.collator(words, None)(preparation.features(rows, words))
    assert batch["input_ids"].shape[:2] == (2, 3)
    assert batch["labels"].tolist() == [0, 2]
    assert torch.equal(batch["input_ids"][0, 2], batch["input_ids"][0, 1])
    columns = preparation.compared(found, words, np.array([[1.0, 0.0, 9.0], [0.0, 1.0, 2.0]]), np.array([0, 2]))[
        "classes"
    ]
    assert columns.predictions.tolist() == [0, 2]


# --- hidden words -------------------------------------------------------------------------------------------------------


class _Model:
    def __init__(self, training: bool) -> None:
        self.training = training


def test_hidden_words_are_the_same_again_and_others_in_another_batch(words: Any) -> None:
    texts = ["the film was slow and the story was loud . who lives in Cairo ? Ann lives in Rome now ."] * 2
    texts += ["very quiet story ."] * 2
    rows = [{"text": text} for text in texts]
    preparation, _ = learned("masked-lm", rows, words)
    features = preparation.features(rows, words)
    trains, measures = (preparation.collator(words, _Model(training)) for training in (True, False))

    def hidden(collate: Any, some: list[Any]) -> Any:
        return collate(some)["labels"][0][: len(features[0]["input_ids"])].tolist()

    assert hidden(trains, features) == hidden(trains, features)
    assert hidden(trains, features) != hidden(trains, features[:3])
    assert hidden(measures, features) == hidden(measures, features[:1])
    batch = trains(features)
    chosen = batch["labels"] != -100
    assert chosen.sum(1).tolist() == [max(1, round(0.15 * (len(f["input_ids"]) - 2))) for f in features]
    whole = words(texts, padding=True, return_tensors="pt")["input_ids"]
    assert torch.equal(batch["labels"][chosen], whole[chosen])
    assert torch.equal(batch["input_ids"][~chosen], whole[~chosen])
    many = preparation.collator(words, _Model(False))(
        preparation.features([{"text": " ".join(["film slow"] * n)} for n in range(20, 31)], words)
    )
    shares = (many["input_ids"][many["labels"] != -100] == words.mask_token_id).float().mean()
    assert 0.6 < shares < 0.95


def test_a_row_without_a_mask_cannot_be_filled(words: Any) -> None:
    preparation, _ = learned("masked-lm", [{"text": "a film"}], words)

    class Model(torch.nn.Module):
        device = "cpu"

        def forward(self, input_ids: Any, **others: Any) -> dict[str, Any]:
            return {"logits": torch.nn.functional.one_hot(torch.full_like(input_ids, 9), len(words)).float()}

    with pytest.raises(DataError, match=r"no \[MASK\] to fill"):
        preparation.predictions(Model(), words, [{"text": "a film"}])
    (found,) = preparation.predictions(Model(), words, [{"text": "a [MASK] film [MASK]"}])
    assert [mask[0]["word"] for mask in found["masks"]] == [words.decode([9])] * 2


def test_samples_are_shown_in_words(words: Any) -> None:
    rows = {
        "masked-lm": {"text": "very quiet story"},
        "question-answering": {"question": "where ?", "context": "now in Rome", "answers": "Rome"},
        "multiple-choice": {"question": "a film", "choices": ["slow", "loud"], "answer": "B"},
        "token-classification": {"tokens": ["Ann", "Rome"], "tags": ["B-PER", "O"]},
    }
    shown = {}
    for task, row in rows.items():
        preparation, _ = learned(task, [row], words)
        shown[task] = preparation.shown(preparation.features([row], words)[0], words)
    assert shown["masked-lm"]["input_ids"].count("[MASK]") == len(shown["masked-lm"]["hidden"].split()) == 1
    assert shown["question-answering"]["answer"] == "Rome"
    assert shown["multiple-choice"]["choice 1"] == "[CLS] a film [SEP] loud [SEP]"
    assert shown["token-classification"]["tags"] == "B-PER O"


# --- recommendation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 1], ["no", "yes"], [False, True], ["skip", "click"]])
def test_clicks_are_yes_or_no(labels: list[Any], words: Any) -> None:
    rows = [{"history": ["slow film"], "item": "loud story", "clicked": label} for label in labels]
    assert targets("recommendation", rows, words) == [[0.0], [1.0]]
    preparation, _ = learned("recommendation", rows, words)
    assert preparation.metrics() == ("roc_auc", "ndcg")
    assert preparation.model_arguments() == {"num_labels": 1, "problem_type": "multi_label_classification"}


def test_lists_to_rank_are_the_rows_of_a_user_and_the_oldest_items_are_cut(words: Any) -> None:
    rows = [
        {"user": user, "history": ["slow"] * 99 + ["loud"], "item": "film", "rating": rating}
        for user, rating in ((1, 5), (2, 1), (1, 2))
    ]
    preparation, found = learned("recommendation", rows, words)
    tokens = words.convert_ids_to_tokens(preparation.features(rows, words)[0]["input_ids"])
    assert len(tokens) == 64
    assert tokens[-4:] == ["loud", "[SEP]", "film", "[SEP]"]
    scaled = np.array([preparation.target(row) for row in found])
    lists = preparation.compared(found, words, np.array([[3.0], [2.0], [1.0]]), scaled)["lists"]
    assert lists.predictions.tolist() == [[3.0, 1.0], [2.0]]
    assert preparation.metrics() == ("mse", "mae", "ndcg")


def test_doccano_s_and_spacy_s_entities_are_read_from_json(words: Any, tmp_path: Path) -> None:
    spans = [[0, 3, "PER"], [13, 17, "LOC"]]
    for cells in ((spans, []), ({"entities": spans}, {"entities": []})):
        rows = [{"text": "Ann lives in Rome.", "label": cell} for cell in cells]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        scratch = tmp_path / f"{len(str(cells))}"
        scratch.mkdir()
        found = targets("token-classification", read_rows(str(path), scratch), words)
        assert [[label for label in row if label > 0] for row in found] == [[3, 1, 2], []]
