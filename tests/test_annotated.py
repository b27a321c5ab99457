"""Boxes in the files that people have: tables with one a row, Pascal VOC's XML, YOLO's text files; the same rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_lora.errors import DataError

from .jobs import write_csv
from .jobs_media import yolos
from .peek import RunSettings, box_corners, plan_run, read_splits, rows_wanted

SIZE = (200, 100)
# picture -> its boxes: left, top, right, bottom in pixels, and the label. The third has none.
BOXES: dict[str, list[tuple[int, int, int, int, str]]] = {
    "1.png": [(10, 20, 50, 60, "cat"), (100, 0, 200, 100, "dog")],
    "2.png": [(0, 0, 20, 10, "dog")],
    "3.png": [],
}
XML = "<annotation><folder>x</folder><filename>{}</filename>{}</annotation>"
OBJECT = "<object><name>{4}</name><bndbox><ymax>{3}</ymax><xmin>{0}</xmin><xmax>{2}.0</xmax><ymin>{1}</ymin></bndbox></object>"


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in BOXES:
        Image.new("RGB", SIZE).save(folder / name)


def _table(header: list[str], box: Callable[[tuple[Any, ...]], list[Any]]) -> Callable[[Path], Path]:
    """Return what writes a table of boxes, those of one picture not one behind the other."""

    def write(at: Path) -> Path:
        _pictures(at)
        rows = [[name, 200, *box(each), each[4]] for name, found in BOXES.items() for each in found]
        rows = [*rows[1:], rows[0], ["3.png", 200, "", "", "", "", ""]]
        return write_csv(at / "boxes.csv", ["filename", "img_size", *header, "class"], rows)

    return write


def _xml(folder: Path, pictures: str) -> None:
    for name, found in BOXES.items():
        text = XML.format(f"C:\\x\\{name}", "".join(OBJECT.format(*each) for each in found))
        (folder / f"{Path(name).stem}.xml").write_text(text)


def voc(at: Path) -> Path:
    _pictures(at / "JPEGImages")
    (at / "Annotations").mkdir()
    _xml(at / "Annotations", "JPEGImages")
    return at


def voc_in_one_folder(at: Path) -> Path:
    _pictures(at)
    _xml(at, ".")
    return at


def _lines(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in BOXES.items():
        middles = [((a + c) / 400, (b + d) / 200, (c - a) / 200, (d - b) / 100, label) for a, b, c, d, label in found]
        text = "".join(f"{['cat', 'dog'].index(label)} {a} {b} {c} {d}\n" for a, b, c, d, label in middles)
        if text:  # a picture without file has no boxes
            (folder / f"{Path(name).stem}.txt").write_text(text)


def yolo(at: Path) -> Path:
    _pictures(at / "train" / "images")
    _lines(at / "train" / "labels")
    (at / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: ['cat', 'dog']\n")
    return at


def yolo_by_its_yaml(at: Path) -> Path:
    _pictures(at / "images")
    _lines(at / "labels")
    (at / "pets.yaml").write_text("path: ../datasets/pets\ntrain: images\nnames:\n  0: cat\n  1: dog\n")
    return at / "pets.yaml"


def darknet(at: Path) -> Path:
    _pictures(at)
    _lines(at)
    (at / "classes.txt").write_text("cat\ndog\n")
    return at


def _middle(box: tuple[Any, ...]) -> list[Any]:
    a, b, c, d, _ = box
    return [(a + c) / 400, (b + d) / 200, (c - a) / 200, (d - b) / 100]


LAYOUTS = {
    "corners": _table(["xmin", "ymin", "xmax", "ymax"], lambda box: list(box[:4])),
    "corners, shares": _table(["x_min", "y_min", "x_max", "y_max"], lambda b: [b[0] / 200, b[1] / 100, b[2] / 200, b[3] / 100]),
    "sizes": _table(["x", "y", "w", "h"], lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]),
    "middle": _table(["x_center", "y_center", "width", "height"], _middle),
    "voc": voc, "voc in one folder": voc_in_one_folder, "yolo": yolo, "yolo by its yaml": yolo_by_its_yaml,
    "darknet": darknet,
}  # fmt: skip


def _read(source: Path, scratch: Path, **how: Any) -> dict[str, Any]:
    scratch.mkdir(exist_ok=True)
    return read_splits({"train": str(source)}, scratch, rows_wanted(**how))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_a_row_a_picture_with_the_same_boxes(layout: str, tmp_path: Path) -> None:
    source = LAYOUTS[layout](tmp_path / "data")
    found = _read(source, tmp_path / "scratch")
    rows = {Path(row["file"]).name: row["objects"] for row in found["train"].rows}
    assert rows.keys() == BOXES.keys()
    for name, wanted in BOXES.items():
        said = zip(rows[name]["bbox"], rows[name]["category"], strict=True)
        read = [(*box_corners(box, rows[name]["format"], SIZE), label) for box, label in said]
        assert sorted(read) == [(*map(pytest.approx, each[:4]), each[4]) for each in sorted(wanted)]


def test_splits_are_those_of_the_lists_or_folders(tmp_path: Path) -> None:
    voc(tmp_path / "voc")
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, stems in {"train": "1\n2\n", "val": "3\n", "trainval": "1\n2\n3\n", "cat_train": "1 1\n2 -1\n"}.items():
        (lists / f"{name}.txt").write_text(stems)
    found = _read(tmp_path / "voc", tmp_path / "scratch")
    assert {split: len(each.rows) for split, each in found.items()} == {"train": 2, "eval": 1}
    for kind, write in {"xml": _xml, "txt": lambda folder, _: _lines(folder)}.items():
        for split in ("train", "valid"):
            _pictures(tmp_path / kind / split)
            write(tmp_path / kind / split, "")
    (tmp_path / "txt" / "classes.txt").write_text("cat\ndog")
    for kind in ("xml", "txt"):
        found = _read(tmp_path / kind, tmp_path / "scratch")
        assert {split: len(each.rows) for split, each in found.items()} == {"train": 3, "eval": 3}
        assert {Path(row["file"]).parent.name for row in found["eval"].rows} == {"valid"}


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("layout", "file", "old", "new", "told"),
    [
        ("corners", "boxes.csv", ",100,0,200", ",100,zero,200", r"boxes\.csv, line 2: its box .*'zero'.* is no four numbers"),
        ("corners", "boxes.csv", "200,100,dog", "200,100,", r"boxes\.csv, line 2: its box .* has no label"),
        ("corners", "boxes.csv", "0,0,20,10", "0,0,20,101.5", r"is not inside .* \(.*boxes\.csv, line 3\)"),
        ("voc", "Annotations/1.xml", "<xmin>100</xmin>", "<xmin>200</xmin>", r"is empty \(.*1\.xml, object 2\)"),
        ("voc", "Annotations/1.xml", "<xmin>100</xmin>", "", r"1\.xml, object 2: its box \[None, .* is no four numbers"),
        ("voc", "Annotations/1.xml", "</annotation>", "", r"1\.xml: it cannot be read as XML"),
        ("voc", "Annotations/1.xml", "1.png", "9.png", None),  # the picture beside is called after the XML
        ("yolo", "train/labels/1.txt", "1 0.75", "2 0.75", r"1\.txt, line 2: its class '2' is none of .*data\.yaml"),
        ("yolo", "train/labels/1.txt", "1 0.75", "1 0.1 0.1 0.75", r"1\.txt, line 2: it has 7 numbers"),
        ("yolo", "train/labels/1.txt", "1 0.75", "1 0.95", r"is not inside .* \(.*1\.txt, line 2\)"),
        ("voc", "Annotations/1.xml", "<object>", "<size><width>400</width><height>200</height></size><object>",
         r"1\.xml: its boxes are for a picture of 400 x 200 pixels, and is shown with 200 x 100"),
        ("voc", "Annotations/1.xml", "<object>", "<size><width>0</width><height>0</height></size><object>", None),
        ("yolo", "data.yaml", "['cat', 'dog']", "2", r"data\.yaml: its names are '2'.* write a list"),
        ("yolo", "data.yaml", "['cat', 'dog']", "{cat: 0, dog: 1}", r"data\.yaml: its names .*'cat' is no number"),
        ("yolo", "data.yaml", "../train", "../fold", r"data\.yaml: there is no folder '\.\./fold/images'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_file_and_row(
    layout: str, file: str, old: str, new: str, told: str | None, tmp_path: Path
) -> None:
    source = LAYOUTS[layout](tmp_path / "data")
    _change(tmp_path / "data" / file, old, new)
    (tmp_path / "scratch").mkdir()
    settings = RunSettings(model=str(yolos(tmp_path / "base")), train=str(source), output=str(tmp_path / "run"))
    if told is None:
        assert plan_run(settings, tmp_path / "scratch").preparation.options["labels"] == ["cat", "dog"]
    else:
        with pytest.raises(DataError, match=told):
            plan_run(settings, tmp_path / "scratch")


def test_a_table_may_say_how_large_its_pictures_are(tmp_path: Path) -> None:
    """As TensorFlow's tables do: boxes of pictures that were made smaller since are no boxes of these."""
    settings = RunSettings(model=str(yolos(tmp_path / "base")), output=str(tmp_path / "run"), test_share=0)
    for height in (100, 50):
        _pictures(tmp_path)
        rows = [[name, 200, height, label, *box] for name, found in BOXES.items() for *box, label in found]
        table = write_csv(tmp_path / f"{height}.csv", "filename width height class xmin ymin xmax ymax".split(), rows)
        (tmp_path / f"scratch{height}").mkdir()
        with (
            nullcontext() if height == 100 else pytest.raises(DataError, match=r"line 2: its boxes .* 200 x 50 pixels")
        ):
            plan_run(replace(settings, train=str(table), eval=str(table)), tmp_path / f"scratch{height}")


def test_a_file_of_boxes_that_is_no_text_is_named(tmp_path: Path) -> None:
    source = LAYOUTS["yolo"](tmp_path / "data")
    (source / "train" / "labels" / "2.txt").write_bytes(b"0 0.5 0.5\n\xe9")
    with pytest.raises(DataError, match=r"2\.txt, line 2: it is not UTF-8"):
        _read(source, tmp_path / "scratch")


def test_x_and_y_in_shares_could_be_a_corner_or_the_middle(tmp_path: Path) -> None:
    source = _table(["x", "y", "width", "height"], _middle)(tmp_path / "data")
    with pytest.raises(DataError, match="could be its corner or its middle; call the columns"):
        _read(source, tmp_path / "scratch")


def test_bad_boxes_can_be_left_out_of_a_table(tmp_path: Path) -> None:
    source = LAYOUTS["corners"](tmp_path / "data")
    _change(source, ",100,0,200", ",100,zero,200")
    found = _read(source, tmp_path / "scratch", skip_bad_rows=True)["train"]
    assert sum(len(row["objects"]["bbox"]) for row in found.rows) == 2
    assert "line 2" in found.left_out[0]
