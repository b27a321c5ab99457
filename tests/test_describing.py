"""`hf-lora data`: what is understood of a file, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .peek import cli
from .runs import write_base, write_rows

CSV = "id;Rezension;Klasse\n1;schöner Film 🎬;gut\n2;öde;schlecht\n3;öde;gut\n4;أفضل فيلم;gut\n5;;schlecht\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with reviews as a German Excel saves them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("reviews.csv").write_text(CSV, encoding="utf-8-sig")
    return tmp_path


def _told(arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["data", *arguments.split(), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_file_is_described_without_a_base(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = _told("reviews.csv", capsys)
    about = {"rows": 5, "format": "CSV", "encoding": "utf-8-sig", "delimiter": "semicolon", "left_out": 0}
    assert told["splits"] == {"train": about}
    assert [(each["name"], each["role"], each["empty"]) for each in told["columns"]] == [
        ("id", None, 0), ("Rezension", "text", 1), ("Klasse", "label", 0)
    ]  # fmt: skip
    assert (told["task"], told["why"]) == ("text-classification", "'Rezension' is the text, 'Klasse' is the label")
    assert told["classes"] == {"gut": {"train": 3}, "schlecht": {"train": 2}}
    assert told["odd"] == {"repeated": 1, "repeated_with_another_label": 1}
    assert told["problems"] == {"count": 1, "first": ["reviews.csv, line 6: its text (column 'Rezension') is empty"]}
    assert (told["lengths"]["unit"], told["lengths"]["longest"]) == ("characters", 14)
    assert [sample["place"] for sample in told["samples"]] == [f"reviews.csv, line {n}" for n in (2, 3, 5)]


def test_with_a_base_lengths_are_its_tokens_and_what_is_cut_is_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_base(place / "base")
    write_rows(place / "rows.csv", 20)
    write_rows(place / "test.csv", 10)
    told = _told("rows.csv --model base --test test.csv --max-length 5", capsys)
    lengths = told["lengths"]
    assert (lengths["unit"], lengths["shortest"], lengths["longest"], lengths["limit"]) == ("tokens", 5, 7, 5)
    assert 0.3 < lengths["cut"] < 0.9
    assert told["odd"]["shared_with_test"] == 10
    assert told["seen"][0]["input_ids"].startswith("[CLS] ")
    assert told["problems"]["count"] == 0


def test_tables_are_as_wide_as_a_terminal_and_remarks_go_to_stderr(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "reviews.csv"]) == 0
    told = capsys.readouterr()
    for word in ("semicolon", "Task: text-classification", "Klasse", "schöner Film 🎬", "schlecht", "أفضل فيلم"):
        assert word in told.out
    assert max(map(len, told.out.splitlines())) <= 80
    assert told.err.splitlines() == [
        "hf-lora: 1 rows are repeated.",
        "hf-lora: 1 rows are repeated with another label.",
        "hf-lora: 1 rows cannot be used: reviews.csv, line 6: its text (column 'Rezension') is empty.",
    ]


def test_rows_whose_task_is_not_told_are_shown_all_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl").write_text('{"a": [1, 2], "b": {"c": true}}\n' * 3)
    told = _told("a.jsonl", capsys)
    assert (told["task"], [each["type"] for each in told["columns"]]) == (None, ["list", "object"])
    assert "--task" in told["why"]
    assert cli.main(["data", "nowhere.csv"]) == 2


def test_labels_are_counted_shown_of_each_kind_and_told_where_they_are_odd(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"a film {n};{'bad' if n else 'Good'}" for n in range(9)] + ["a story;good", "fine;good", "so;N/A"]
    Path("a.csv").write_text("\n".join(["text;label", *lines]))
    told = _told("a.csv", capsys)
    assert told["classes"] == {"bad": {"train": 8}, "good": {"train": 2}, "Good": {"train": 1}}
    assert told["problems"]["first"] == ["a.csv, line 13: its label (column 'label') is empty: it says 'N/A'"]
    assert [sample["label"] for sample in told["samples"]] == ["Good", "bad", "good"]
    assert "'good' (2 rows) and 'Good' (1: a.csv, line 2) are 2 classes" in told["remarks"][0]
    assert cli.main(["data", "a.csv"]) == 0
    assert "'Good' (1: a.csv, line 2) are 2 classes" in capsys.readouterr().err
    write_base(place / "base")
    Path("b.csv").write_text("\n".join(["text;label", *lines[:-1]]))
    assert _told("b.csv --model base", capsys)["remarks"] == [
        each.replace("a.csv", "b.csv") for each in told["remarks"]
    ]
    flags = ["--model", "base", "--train", "b.csv", "--dry-run"]
    assert cli.main(["train", *flags]) == 0
    assert "are 2 classes; write them alike if they are one." in capsys.readouterr().out


def test_of_several_labels_each_is_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text("text,tags\na film,x; y\na story,x\nfine,\nso,y;x\n")
    assert _told("a.csv --task multi-label", capsys)["classes"] == {"x": {"train": 3}, "y": {"train": 2}}
    Path("b.csv").write_text("text,x,y\na film,1,0\na story,1,N/A\nfine,0,\nso,1,1\n")
    assert _told("b.csv --task multi-label", capsys)["classes"] == {"x": {"train": 3}, "y": {"train": 1}}


def test_paths_of_pictures_have_no_length_and_titles_stay_whole(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(Path("photos", name))
    told = _told("photos", capsys)
    assert (told["task"], "lengths" in told, len(told["classes"])) == ("image-classification", False, 2)
    assert cli.main(["data", "photos"]) == 0
    assert "Rows of each class\n" in capsys.readouterr().out
