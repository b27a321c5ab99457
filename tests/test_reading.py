"""People's rows as they come: every format, delimiter, encoding and script is read to the same rows."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from hf_lora.errors import DataError

from .peek import read_rows, read_splits, rows_wanted

ROWS = [
    {"text": "قهوة رائعة", "label": "جيد"}, {"text": "קפה נורא", "label": "רע"},
    {"text": "非常好,「很」喜欢", "label": "好"}, {"text": "とても面白い。\n二行目", "label": "良い"},
    {"text": 'He said: "it; was, good"\t🎬👍🏽', "label": "👍"}, {"text": "Zoë's naïve résumé", "label": "bon"},
]  # fmt: skip
# What a file of a name holds, as bytes.
Written = Callable[[list[dict[str, Any]]], bytes]


def _csv(encoding: str = "utf-8", before: str = "", **dialect: Any) -> Written:
    def write(rows: list[dict[str, Any]]) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), **dialect)
        writer.writeheader()
        writer.writerows(rows)
        return (before + text.getvalue()).encode(encoding)

    return write


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows).encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FILES: list[tuple[str, Written]] = [
    ("comma.csv", _csv()),
    ("semicolon.CSV", _csv(delimiter=";")),
    ("tab.tsv", _csv(delimiter="\t")),
    ("bar.csv", _csv(delimiter="|", lineterminator="\n")),
    ("quoted.csv", _csv(quoting=csv.QUOTE_ALL)),
    ("excel.csv", _csv("utf-8-sig", delimiter=";")),
    ("said.csv", _csv(before="sep=|\n", delimiter="|")),
    ("utf16.csv", _csv("utf-16", delimiter="\t")),
    ("packed.csv.gz", lambda rows: gzip.compress(_csv()(rows))),
    ("lines.jsonl", _lines),
    ("lines.json", _lines),
    ("marked.jsonl", lambda rows: codecs.BOM_UTF8 + _lines(rows)),
    ("list.json", lambda rows: json.dumps(rows, indent=1).encode()),
    ("inside.json", lambda rows: json.dumps({"version": 1, "data": rows}, indent=1).encode()),
    ("rows.parquet", _parquet),
]


def _rows(source: Path | str, scratch: Path, **how: Any) -> list[dict[str, Any]]:
    scratch.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = read_rows(str(source), scratch, **how).to_list()
    return rows


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "__place__"} for row in rows]


@pytest.mark.parametrize(("name", "write"), FILES, ids=[name for name, _ in FILES])
def test_every_kind_of_file_gives_the_same_rows(name: str, write: Written, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(write(ROWS))
    assert _plain(_rows(tmp_path / name, tmp_path / "scratch")) == ROWS
    assert _plain(_rows(tmp_path / name, tmp_path / "scratch", limit=2)) == ROWS[:2]


def test_a_row_knows_the_line_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",a\n\nthree,b\n')
    (tmp_path / "a.json").write_text('[\n{"text": "one"},\n\n{"text":\n"two"},\n{"text": "three"}]')
    places = [row["__place__"].rpartition(", ")[2] for row in _rows(tmp_path / "a.csv", tmp_path / "scratch")]
    assert places == ["line 2", "line 5"]
    places = [row["__place__"].rpartition(", ")[2] for row in _rows(tmp_path / "a.json", tmp_path / "scratch")]
    assert places == ["line 2", "line 4", "line 6"]


@pytest.mark.parametrize("encoding", ["cp1252", "gb18030", "cp932", "cp1251", "cp949"])
def test_another_encoding_is_refused_with_its_name_and_read_when_it_is_said(encoding: str, tmp_path: Path) -> None:
    said = {
        "cp1252": "très déçu",
        "gb18030": "非常好",
        "cp932": "とても面白い",
        "cp1251": "очень хорошо",
        "cp949": "정말 재미있어요",
    }
    path = tmp_path / "a.csv"
    path.write_bytes(f"text,label\nfine,a\n{said[encoding]},b\n".encode(encoding))
    with pytest.raises(DataError) as caught:
        _rows(path, tmp_path / "scratch")
    assert f"{path}, line 3: it is not UTF-8" in str(caught.value)
    assert f"{encoding} {said[encoding] + ',b'!r}" in str(caught.value)
    assert _rows(path, tmp_path / "scratch", encoding=encoding)[1]["text"] == said[encoding]


def test_a_link_to_nothing_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("gone.csv")
    with pytest.raises(DataError, match=r"a\.csv: it is a link to gone\.csv, where nothing is; link it anew"):
        read_rows(str(tmp_path / "a.csv"), tmp_path)


def test_decimal_commas_become_points_where_a_column_holds_only_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;score;mixed\n1,5;-0,125;1,5\nb;3;x\nc;;\n")
    rows = _plain(_rows(tmp_path / "a.csv", tmp_path / "scratch"))
    assert [row["score"] for row in rows] == ["-0.125", "3", ""]
    assert [row["mixed"] for row in rows] == ["1,5", "x", ""]
    assert rows[0]["text"] == "1,5"
    (tmp_path / "c.csv").write_text("text;price;score;name\na;1.037;2,5;1.037\nb;12;1.250,75;1.x\n")
    rows = _plain(_rows(tmp_path / "c.csv", tmp_path / "scratch"))
    assert [(row["price"], row["score"], row["name"]) for row in rows] == [
        ("1037", "2.5", "1.037"),
        ("12", "1250.75", "1.x"),
    ]
    (tmp_path / "d.csv").write_text("text;price\na;1,037\nb;2,500\n")  # may be thousands: whoever reads numbers asks
    assert _plain(_rows(tmp_path / "d.csv", tmp_path / "scratch"))[0]["price"] == "1,037"
    (tmp_path / "b.csv").write_text('text,score\na,"1,500"\n')
    assert _plain(_rows(tmp_path / "b.csv", tmp_path / "scratch"))[0]["score"] == "1,500"


def test_what_a_spreadsheet_leaves_around_the_rows_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;label;;\nfine;good;;\nbad;poor\n;;;\n\n")
    rows = _plain(_rows(tmp_path / "a.csv", tmp_path / "scratch", skip_bad_rows=True))
    assert rows == [{"text": "fine", "label": "good", "column 3": "", "column 4": ""}]
    (tmp_path / "b.csv").write_text("text;label\nfine;good;;\nbad;poor\n")
    assert len(_rows(tmp_path / "b.csv", tmp_path / "scratch")) == 2


def test_columns_and_types_of_json_may_come_later(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "turns": []}] * 10_001
    rows += [{"a": 2.5, "turns": [{"role": "user"}], "late": {"x": "y"}}]
    (tmp_path / "a.jsonl").write_bytes(_lines(rows))
    found = _plain(_rows(tmp_path / "a.jsonl", tmp_path / "scratch"))
    assert found[0] == {"a": 1.0, "turns": [], "late": None}
    assert found[-1] == rows[-1]


def test_a_list_of_json_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"text": "é" * 3000, "n": number} for number in range(1000)]  # three times what is read at once
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert _plain(_rows(tmp_path / "a.json", tmp_path / "scratch")) == rows


def test_questions_of_squad_are_a_row_each(tmp_path: Path) -> None:
    asked = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    found = {"data": [{"title": "A", "paragraphs": [{"context": "Ann is.", "qas": [asked, {**asked, "id": "2"}]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(found))
    rows = _plain(_rows(tmp_path / "a.json", tmp_path / "scratch"))
    assert rows == [{"context": "Ann is.", **asked}, {"context": "Ann is.", **asked, "id": "2"}]


def test_files_with_commas_between_and_patterns_are_read_behind_each_other(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"part-{number}.csv").write_bytes(_csv()(ROWS))
    both = f"{tmp_path / 'part-1.csv'},{tmp_path / 'part-2.csv'}"
    for source in (both, f"{tmp_path}/part-*.csv", str(tmp_path)):
        assert _plain(_rows(source, tmp_path / "scratch")) == [*ROWS, *ROWS]
    assert len(_rows(both, tmp_path / "scratch", limit=7)) == 7


def _splits(source: Path | str, scratch: Path, **given: str) -> dict[str, list[dict[str, Any]]]:
    scratch.mkdir(exist_ok=True)
    sources = {"train": str(source), "eval": None, "test": None} | given
    return {name: _plain(each.rows.to_list()) for name, each in read_splits(sources, scratch, rows_wanted()).items()}


def test_a_folder_tells_the_splits_by_the_names_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train-0", ROWS[:2]), ("train-1", ROWS[2:4]), ("valid", ROWS[4:5]), ("my_test", ROWS[5:])):
        (folder / f"{name}.csv").write_bytes(_csv()(rows))
    (folder / "README.txt").write_text("About")
    found = _splits(folder, tmp_path / "scratch")
    assert found == {"train": ROWS[:4], "eval": ROWS[4:5], "test": ROWS[5:]}
    found = _splits(folder, tmp_path / "scratch", test=str(folder / "valid.csv"))
    assert found == {"train": ROWS[:4], "eval": ROWS[4:5], "test": ROWS[4:5]}


def _labelled(names: list[str], labels: list[int]) -> datasets.Dataset:
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    rows = {"text": [f"row {number}" for number in range(len(labels))], "label": labels}
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


def test_a_data_set_of_the_hub_has_its_splits_and_the_names_of_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["bad", "good"]
    splits = {
        "train": _labelled(names, [1, 0]), "validation_matched": _labelled(names, [0]), "test": _labelled(names, [-1, -1])
    }  # fmt: skip
    asked = []

    def load(*given: Any) -> datasets.DatasetDict:
        asked.append(given)
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)
    good, bad = {"text": "row 0", "label": "good"}, {"text": "row 1", "label": "bad"}
    assert _splits("me/reviews", tmp_path / "s") == {"train": [good, bad], "eval": [{"text": "row 0", "label": "bad"}]}
    assert _splits("me/reviews:en:train", tmp_path / "s") == {"train": [good, bad]}
    assert asked == [("me/reviews", None), ("me/reviews", "en")]
    with pytest.raises(DataError, match="no split 'dev', but train, validation_matched, test"):
        read_rows("me/reviews::dev", tmp_path / "s")


def test_class_labels_in_parquet_and_in_saved_folders_are_their_names(tmp_path: Path) -> None:
    rows = _labelled(["bad", "good"], [1, 0, -1])
    rows.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    for source in ("a.parquet", "saved"):
        assert [row["label"] for row in _rows(tmp_path / source, tmp_path / "scratch")] == ["good", "bad", None]
    tags = datasets.Features({"tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B"]))})
    datasets.Dataset.from_dict({"tags": [[0, 1], []]}, tags).to_parquet(tmp_path / "tags.parquet")
    assert _plain(_rows(tmp_path / "tags.parquet", tmp_path / "scratch")) == [{"tags": ["O", "B"]}, {"tags": []}]


def test_quotes_behind_a_space_are_no_part_of_a_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text, label\n"fine, very", "good"\nso so, "bad, or ""worse"""\n')
    found = read_rows(str(tmp_path / "a.csv"), tmp_path).to_list()
    assert [(row["text"], row["label"]) for row in found] == [("fine, very", "good"), ("so so", 'bad, or "worse"')]
