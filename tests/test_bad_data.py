"""Forty bad inputs: each is an error that names the file, the row and the cure, with status 2, and nothing is written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import processors
from transformers import BertConfig, GPT2Config

from .peek import cli
from .trainings import tokenizer

GOOD = "text,label\nlovely film,good\nawful film,bad\na fine story,good\na dull story,bad\n"
TURNS = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}

ASKED = {"question": "what", "context": "a film", "answers": {"text": ["film"], "answer_start": [2]}}
CHOSEN = {"question": "what", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "A"}


def _json(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


# What is wrong -> the files with what they hold, the flags behind `train --model base`, and what the error says: the
# file, where it has one the row, and the cure.
BAD: dict[str, tuple[dict[str, str | bytes], str, tuple[str, ...]]] = {
    "no such file": ({"ratings.csv": GOOD}, "--train rating.csv", ("rating.csv: there is no such", "Did you mean ratings.csv?")),
    "no such folder": ({}, "--train data/ratings.csv", ("data/ratings.csv: there is no such file", "no folder data")),
    "an empty file": ({"a.csv": ""}, "--train a.csv", ("a.csv: it is empty", "Name a file with rows")),
    "blank lines": ({"a.csv": "\n\n \n"}, "--train a.csv", ("a.csv", "names the columns")),
    "a header alone": ({"a.csv": "text,label\n"}, "--train a.csv", ("a.csv: it has no rows", "give it at least one")),
    "no header": ({"a.csv": "lovely,1\nawful,0\nfine,1\n"}, "--train a.csv", ("a.csv, line 1: '1' looks like data", "text,label: add one")),
    "no header, in words": ({"a.csv": "ok,good\nno,bad\nhm,good\n"}, "--train a.csv", ("a.csv: the first line says 'good'", "Add a first line")),
    "a repeated header": ({"a.csv": GOOD + GOOD}, "--train a.csv", ("a.csv, line 6: it repeats the header", "Remove it")),
    "columns of one name": ({"a.csv": "text,text\na,b\n"}, "--train a.csv", ("a.csv, line 1: several columns are called 'text'", "rename")),
    "a cell too many": ({"a.csv": GOOD + "oh, no,bad\n"}, "--train a.csv", ("a.csv, line 6: it has 3 cells, and the header 2", "Quote cells")),
    "a cell too few": ({"a.csv": GOOD + "fine\n"}, "--train a.csv", ("a.csv, line 6: it has 1 cells", "--skip-bad-rows")),
    "a column given twice": ({"a.csv": GOOD}, "--train a.csv --column text=text --column text=label", ("--column text=...: it is given twice", "leave one out")),
    "a column for two": ({"a.csv": GOOD}, "--train a.csv --task text-classification --column text=label --column label=label", ("a.csv: the column 'label' is taken for 'text' and for 'label'", "--column text=NAME")),
    "an open quote": ({"a.csv": GOOD + '"fine,good\n'}, "--train a.csv", ("a.csv, line 6: a quote that opens here is never closed", 'write ""')),
    "a quote in a quote": ({"a.csv": GOOD + '"a "fine" film",good\n'}, "--train a.csv", ("a.csv, line 6", 'write ""')),
    "another encoding": ({"a.csv": GOOD.encode() + "très déçu,bad\n".encode("cp1252")}, "--train a.csv", ("a.csv, line 6: it is not UTF-8", "cp1252 'très déçu,bad'", "--encoding")),
    "half a letter": ({"a.csv": GOOD.encode() + "fin é".encode()[:-1]}, "--train a.csv", ("a.csv, line 6: it is not UTF-8", "--encoding")),
    "an unknown encoding": ({"a.csv": GOOD}, "--train a.csv --encoding latin-99", ("--encoding latin-99", "cp1252")),
    "the wrong encoding": ({"a.csv": "text,label\nfine,ä\n"}, "--train a.csv --encoding ascii", ("a.csv, line 2: it is not ascii", "--encoding")),
    "an encoding with a mark that is not there": ({"a.csv": GOOD}, "--train a.csv --encoding utf-16", ("a.csv, line 1: it is not utf-16", "--encoding")),
    "zero bytes": ({"a.csv": GOOD + "a\0b,good\n"}, "--train a.csv", ("a.csv, line 6: it holds a zero byte", "another format")),
    "a setting of another task": ({"a.csv": GOOD}, "--train a.csv --packing --beta 0.3", ("--packing, --beta: text-classification has no such option", "leave it out")),
    "an Excel workbook": ({"a.xlsx": b"PK\3\4"}, "--train a.xlsx", ("a.xlsx", "save the sheet as CSV")),
    "a workbook called CSV": ({"a.csv": b"PK\3\4more"}, "--train a.csv", ("a.csv: it is a zip archive or an Excel workbook", "save it as CSV")),
    "an unknown ending": ({"a.dat": GOOD}, "--train a.dat", ("a.dat: rows are read from .csv", "save it as one of these")),
    "a broken archive": ({"a.csv.gz": gzip.compress(GOOD.encode())[:-9]}, "--train a.csv.gz", ("a.csv.gz: it cannot be unpacked", "Pack it again")),
    "a broken Parquet file": ({"a.parquet": b"PAR1 and nothing more"}, "--train a.parquet", ("a.parquet: it cannot be read as Parquet",)),
    "broken JSON": ({"a.jsonl": '{"text": "a", "label": "b"}\n{"text": "a"\n'}, "--train a.jsonl", ("a.jsonl, line 2: it is no JSON", "--skip-bad-rows")),
    "a list that is open": ({"a.json": '[{"text": "a"},\n{"text": "b"}'}, "--train a.json", ("a.json, line 2", "not closed")),
    "rows that are no objects": ({"a.jsonl": '{"text": "a"}\n"b"\n'}, "--train a.jsonl", ("a.jsonl, line 2: it is a text, and has to be an object", '{"text"')),
    "columns in an object": ({"a.json": '{"text": {"0": "a"}, "label": {"0": 1}}'}, "--train a.json", ("a.json: it holds one object", 'to_json(orient="records"')),
    "mixed types": ({"a.jsonl": _json({"text": "a", "label": 1}, {"text": "b", "label": "x"})}, "--train a.jsonl", ("a.jsonl, line 2: 'label' is a text, 'x'", "write it alike")),
    "no column for the text": ({"a.csv": "n,m\n1,2\n3,4\n"}, "--train a.csv --task text-classification --column label=n --column text=review", ("--column text=review: a.csv has no such column, but 'n', 'm'",)),
    "a column misspelt": ({"a.csv": GOOD}, "--train a.csv --task text-classification --column label=lable", ("a.csv has no such column", "Did you mean 'label'?")),
    "an unknown role": ({"a.csv": GOOD}, "--train a.csv --task text-classification --column verdict=label", ("this task has no 'verdict', but text",)),
    "several labels": ({"a.csv": "text,x,y\n" + "a film,1,2\n" * 4}, "--train a.csv --task text-classification", ("a.csv: no column for 'label'", "'x', 'y' could each be it", "--column label=NAME")),
    "a task of other bases": ({"a.csv": GOOD}, "--train a.csv --task image-classification", ("it is a bert, for text-classification (text and label)", "needs a base for AutoModelForImageClassification")),
    "pictures for a base of texts": ({f"d/{c}/{n}.png": b"x" for c in "ab" for n in "12"}, "--train d", ("d: it has the columns 'file', 'label', which are for image-classification", "Take a base for AutoModelForImageClassification, or rows")),
    "paths of pictures for texts": ({f"d/{c}/{n}.png": b"x" for c in "ab" for n in "12"}, "--train d --task text-classification", ("d: 'file' holds pictures or sounds", "--column text=NAME")),
    "no label": ({"a.csv": "text\nfine\nawful\n"}, "--train a.csv --task text-classification", ("a.csv: no column for 'label'", "--column label=NAME")),
    "columns that fit no task": ({"a.csv": "n,m\n1,2\n3,4\n5,6\n"}, "--train a.csv", ("a.csv: it has the columns 'n', 'm', which fit no task", "--column text=NAME", "--task (")),
    "an unknown task": ({"a.csv": GOOD}, "--train a.csv --task text-classificaton", ("did you mean text-classification?",)),
    "a single row": ({"a.jsonl": _json({"prompt": "so", "completion": "fine"})}, "--train a.jsonl --task chat --chat-template simple", ("a.jsonl: 1 row(s), too few", "with --eval, and say --test-share 0")),
    "texts for labels": ({"a.csv": "text,label\n" + "".join(f"{n} a,b {n}\n" for n in range(99))}, "--train a.csv --task text-classification", ("a.csv: column 'label': 99 labels in 99 rows", "--column label=NAME.")),
    "numbers for labels": ({"a.csv": "text,label\n" + "".join(f"{n} a,{n}\n" for n in range(99))}, "--train a.csv --task text-classification", ("--column label=NAME, or learn numbers with --task regression.",)),
    "one class only": ({"a.csv": "text,label\nfine,good\nlovely,good\n"}, "--train a.csv --task text-classification", ("a.csv: column 'label': every row has the label 'good'",)),
    "a row without text": ({"a.csv": GOOD + ",good\n"}, "--train a.csv", ("a.csv, line 6: its text (column 'text') is empty", "--skip-bad-rows")),
    "a row without label": ({"a.csv": GOOD + "fine,\n"}, "--train a.csv", ("a.csv, line 6: its label (column 'label') is empty", "--skip-bad-rows")),
    "no row with a text": ({"a.csv": "text,label\n,good\n,bad\n"}, "--train a.csv --task text-classification --skip-bad-rows", ("a.csv: none of its 2 rows can be used", "a.csv, line 2")),
    "another label to test on": ({"a.csv": GOOD, "b.csv": GOOD + "fine,great\n"}, "--train a.csv --test b.csv", ("b.csv, line 6: its label 'great' is none of those in training", "good")),
    "other columns to test on": ({"a.csv": GOOD, "b.csv": "Text,label\nfine,good\n"}, "--train a.csv --test b.csv", ("b.csv: it has no column 'text', which a.csv has, but 'Text', 'label'", "alike")),
    "files of other columns": ({"a.csv": GOOD, "b.csv": "Text,label\nfine,good\n"}, "--train a.csv,b.csv", ("b.csv: it has the columns Text, label, and a.csv has text, label",)),
    "a folder of unnamed splits": ({"d/test.csv": GOOD, "d/more.csv": GOOD}, "--train d", ("d: which of more.csv, test.csv are to train on?", "Call them train")),
    "a folder without rows to train on": ({"d/test.csv": GOOD, "d/dev.csv": GOOD}, "--train d", ("d: which of dev.csv, test.csv are to train on?", "Call them train")),
    "a folder without rows": ({"d/notes.md": "x"}, "--train d", ("d: the folder has no", ".csv")),
    "a split that is not there": ({}, "--train me/reviews::dev", ("me/reviews::dev: it has no split 'dev', but train, test",)),
    "a data set that is not there": ({}, "--train you/reviews", ("you/reviews: there is no such file or folder", "owner/name")),
    "a limit of zero": ({"a.csv": GOOD}, "--train a.csv --limit 0", ("limit=0", "above 0")),
    "rows that are all cut away": ({"a.csv": GOOD}, "--train a.csv --max-length 2", ("a.csv: with max_length=2", "cut away in all rows", "--max-length 5")),
    "half an emoji": ({"a.jsonl": _json(*[{"text": "a film \ud83d", "label": "b"}] * 2)}, "--train a.jsonl", ("a.jsonl, line 1: it has half a letter", "mend or remove it")),
    "lists in lists without end": ({"a.jsonl": _json({"text": "a", "label": "b"}) + "[" * 100_000}, "--train a.jsonl", ("a.jsonl, line 2: it is no JSON", "--skip-bad-rows")),
    "a name that is taken": ({"a.jsonl": _json({"text": "a", "__place__": "b"})}, "--train a.jsonl", ("a.jsonl, line 1: the name __place__ is taken",)),
    "one label in two ways": ({"a.csv": "text,label\nfine,1\nlovely,0\nawful,1.0\n"}, "--train a.csv --task text-classification", ("a.csv: column 'label': the labels '1' and '1.0' are one", "write it alike")),
    "one letter in two ways": ({"a.csv": "text,label\nfine,caf\u00e9\nlovely,tea\nawful,cafe\u0301\n"}, "--train a.csv --task text-classification", ("are one, written in two ways", "cafe\\u0301", "write it alike")),
    "labels that are lists": ({"a.jsonl": _json(*[{"text": "a", "label": ["b"]}] * 4)}, "--train a.jsonl --task text-classification --column label=label", ("--column label=label: a.jsonl has \"['b']\" there", "no label of this task")),
    "answers without their starts": ({"a.jsonl": _json(ASKED, ASKED, {**ASKED, "answers": {"text": ["film"], "answer_start": [2, 3]}})}, "--train a.jsonl --task question-answering", ("a.jsonl, line 3: it has 1 answers, and their starts are [2, 3]", "--skip-bad-rows")),
    "a start that is no number": ({"a.csv": "question,context,answer\n" + 'what,a film,"[{""text"": ""film"", ""answer_start"": ""x""}]"\n' * 4}, "--train a.csv --task question-answering", ("no question has an answer",)),
    "choices without their keys": ({"a.jsonl": _json(CHOSEN, CHOSEN, {**CHOSEN, "choices": {"text": ["a", "b"], "label": ["A"]}})}, "--train a.jsonl --task multiple-choice", ("a.jsonl, line 3: it has 2 choices, and the labels ['A'] for them", "--skip-bad-rows")),
    "no choices": ({"a.jsonl": _json(CHOSEN, CHOSEN, {**CHOSEN, "choices": None})}, "--train a.jsonl --task multiple-choice", ("a.jsonl, line 3: it has fewer than two choices",)),
    "a number for choices": ({"a.csv": "question,choices,answer\n" + "what,a;b,a\n" * 3 + "what,5,a\n"}, "--train a.csv --task multiple-choice", ("a.csv, line 5: it has fewer than two choices",)),
    "a cell without end": ({"a.csv": "question,choices,answer\n" + "what,a;b,a\n" * 3 + f"what,{'[' * 20_000},a\n"}, "--train a.csv --task multiple-choice", ("a.csv, line 5: it has fewer than two choices",)),
    "a setting that is no YAML": ({"a.csv": GOOD}, "--train a.csv --lora x=[1", ("--lora x=[1: it is no YAML: while parsing",)),
    "a column that is a number": ({"a.csv": GOOD, "y.yaml": "column: {text: 1}"}, "--train a.csv --config y.yaml", ("column 'text': 1 is no text", "write quotes")),
    "threads beyond number": ({"a.csv": GOOD}, "--train a.csv --threads 100000", ("threads=100000: it has to be above 0 and at most 1,024",)),
    "a chat of nobody": ({"a.jsonl": _json(TURNS, {"messages": [{"role": "alien", "content": "x"}]})}, "--train a.jsonl --task chat --chat-template simple", ("a.jsonl, line 2: its chat (column 'messages'), turn 1 has the unknown role 'alien'", "assistant")),
    "a chat without an answer": ({"a.jsonl": _json(TURNS, {"messages": TURNS["messages"][:1]})}, "--train a.jsonl --task chat --chat-template simple", ("a.jsonl, line 2: its chat has no turn of the assistant", "--skip-bad-rows")),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a base without weights: a config, and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("base")
    words = tokenizer("lovely", "awful", "fine", "dull", "film", "story", "a", "User", "Assistant", ":")
    ends = processors.TemplateProcessing(single="[EOS] $A [EOS]", special_tokens=[("[EOS]", 2)])
    words.backend_tokenizer.post_processor = ends
    for name, config in (("bert", BertConfig(vocab_size=len(words))), ("gpt2", GPT2Config(vocab_size=len(words)))):
        config.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder


def _load(name: str, _: str | None) -> Any:
    if name != "me/reviews":
        raise FileNotFoundError(f"Couldn't find {name} on the Hub")
    return datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": ["a"]}) for split in ("train", "test")})


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_an_error_that_names_file_row_and_cure(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, flags, said = BAD[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", _load)
    for file, held in files.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(held if isinstance(held, bytes) else held.encode())
    before = sorted(tmp_path.rglob("*"))
    model = base / ("gpt2" if "chat" in flags else "bert")
    assert cli.main(["train", "--model", str(model), *flags.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert [each for each in said if each not in told.err] == [], told.err
    assert sorted(tmp_path.rglob("*")) == before


def test_there_are_forty_of_them() -> None:
    assert len(BAD) >= 40
