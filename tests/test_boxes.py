"""Boxes as people write them: found out, checked against their pictures, measured, and given back in pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import YolosImageProcessor

from hf_lora.errors import ConfigError, DataError

from .jobs import write_jsonl
from .jobs_media import squares, yolos
from .peek import Detection, RunSettings, box_corners, box_format_of, box_padding, mean_average_precision, plan_run

SIZE = (200, 100)
WRITTEN = {
    "coco": [120, 30, 40, 60],
    "pascal_voc": [120, 30, 160, 90],
    "albumentations": [0.6, 0.3, 0.8, 0.9],
    "yolo": [0.7, 0.6, 0.2, 0.6],
}


@pytest.mark.parametrize("written", WRITTEN)
def test_the_format_of_boxes_is_found_out_and_all_mean_the_same(written: str) -> None:
    box = WRITTEN[written]
    assert box_corners(box, written, SIZE) == pytest.approx((120, 30, 160, 90))
    other = [0.1, 0.6, 0.15, 0.7] if written in ("albumentations", "yolo") else box
    # Of shares one box alone may be read both ways; a thin one near the edge tells.
    edge = {"albumentations": [0.9, 0.05, 0.95, 0.1], "yolo": [0.05, 0.95, 0.1, 0.1]}.get(written, other)
    assert box_format_of([(box, SIZE), (edge, SIZE)]) == written


def test_boxes_that_could_be_either_are_asked_about() -> None:
    with pytest.raises(ConfigError, match="coco or pascal_voc: all are inside .* Say --box-format"):
        box_format_of([([10, 10, 40, 40], SIZE)])


def _plan(tmp_path: Path, rows: Path, **settings: Any) -> Any:
    base, scratch = tmp_path / "base", tmp_path / f"scratch{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    if not base.exists():
        yolos(base)
    return plan_run(RunSettings(model=str(base), task="object-detection", train=str(rows), **settings), scratch)


def _rows(tmp_path: Path, objects: list[Any]) -> Path:
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    return write_jsonl(tmp_path / "rows.jsonl", [{"image": "a.png", "objects": each} for each in objects])


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ({"bbox": [[120, 30, 40, 80]], "category": ["a"]}, r"read as coco, is not inside its picture of 200 x 100"),
        ({"bbox": [[120, 30, 0, 60]], "category": ["a"]}, "read as coco, is empty"),
        ({"bbox": [[120, 30, 40]], "category": ["a"]}, "is no list of four numbers"),
        ({"bbox": [[120, 30, 40, 60]], "category": []}, "are no boxes; write"),
    ],
)
def test_boxes_that_cannot_be_are_told_with_their_row(tmp_path: Path, objects: Any, told: str) -> None:
    good = {"bbox": [WRITTEN["coco"]], "category": ["a"]}
    rows = _rows(tmp_path, [good] * 20)
    with rows.open("a") as file:
        file.write(json.dumps({"image": "a.png", "objects": objects}) + "\n")
    with pytest.raises(DataError, match=f"line 21: .*{told}"):
        _plan(tmp_path, rows, column={"objects": "objects"})


def test_cocos_json_is_read_with_its_pictures_and_without_its_crowds(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "annotations").mkdir()
    for number in range(12):
        Image.new("RGB", SIZE).save(tmp_path / "photos" / f"{number}.png")
    pictures = [{"id": 5 + n, "file_name": f"{n}.png", "width": 200, "height": 100} for n in range(12)]
    found = [
        {"id": n, "image_id": 5 + n, "category_id": 9, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": n % 2}
        for n in range(12)
    ]
    whole = {"images": pictures, "annotations": found, "categories": [{"id": 9, "name": "cat"}]}
    path = tmp_path / "annotations" / "train.json"
    path.write_text(json.dumps(whole))
    plan = _plan(tmp_path, path)
    assert (plan.preparation.options["labels"], plan.preparation.options["box_format"]) == (["cat"], "coco")
    rows = [row for part in plan.rows.values() for row in part]
    labels = [each["labels"]["boxes"].tolist() for each in plan.preparation.features(rows, plan.processor)]
    assert sorted(map(len, labels)) == [0] * 6 + [1] * 6
    assert max(labels)[0] == pytest.approx([0.15, 0.3, 0.2, 0.4])
    path.write_text(json.dumps({**whole, "annotations": [{**found[0], "image_id": 99}]}))
    with pytest.raises(DataError, match=r"train\.json, annotation 0: there is no picture 99"):
        _plan(tmp_path, path)


def test_boxes_of_padded_pictures_are_in_the_pictures_own_pixels(tmp_path: Path) -> None:
    """One that fills the lower right quarter of what is not padding is the picture's lower right quarter."""
    processor = YolosImageProcessor(size={"shortest_edge": 16, "longest_edge": 64})
    wide, high = ({"image": _saved(tmp_path, size)} for size in ((40, 20), (10, 30)))
    maker = Detection(None, {"image": "image"}, labels=["a"])
    features = maker.features([wide, high], processor, labelled=False)
    assert features[0]["pixel_values"].shape == features[1]["pixel_values"].shape
    for feature, (width, height) in zip(features, ((40, 20), (10, 30)), strict=True):
        down, across = feature["pixel_mask"].nonzero().amax(0) + 1
        rows, columns = feature["pixel_mask"].shape
        quarter = torch.tensor([across / 2 / columns, down / 2 / rows, across / columns, down / rows])
        tall, broad = box_padding(feature)
        found = quarter * torch.stack([broad, tall, broad, tall])
        assert found.tolist() == pytest.approx([width / 2, height / 2, width, height])


def _saved(folder: Path, size: tuple[int, int]) -> str:
    path = folder / f"{size[0]}.png"
    Image.new("RGB", size).save(path)
    return str(path)


def test_mean_average_precision_is_cocos() -> None:
    truth = [{"labels": [0, 1], "boxes": [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.3, 0.9]]}, {"labels": [], "boxes": []}]
    said = [{**each, "scores": [0.9] * len(each["labels"])} for each in truth]
    assert mean_average_precision(truth, said)["mean_average_precision"] == pytest.approx(1)
    half = [
        {"labels": [0], "boxes": [[0.1, 0.1, 0.5, 0.4]], "scores": [0.9]},
        said[1],
    ]  # overlap 0.75, the other missed
    found = mean_average_precision(truth, half)
    assert found["mean_average_precision_50"] == pytest.approx(0.5)
    assert found["mean_average_precision"] == pytest.approx(
        0.3
    )  # 0.50, 0.55, ... 0.75: six of ten, of one class in two
    nothing = [{"labels": [], "boxes": [], "scores": []}] * 2
    assert mean_average_precision(truth, nothing)["mean_average_precision"] == 0


def test_pictures_of_the_job_are_read_as_coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _plan(tmp_path, squares(tmp_path))
    assert "The boxes are read as coco." in caplog.text
