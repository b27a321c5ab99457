"""People's pictures and sounds: every mode, size, rate and layout is read; what is broken is told with its row."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from hf_lora.errors import DataError

from .jobs import write_csv, write_jsonl
from .jobs_media import SIZES, colours, vit
from .peek import PLACE, RunSettings, media, plan_run

RED = (200, 40, 40)


def _saved(folder: Path, name: str, picture: Image.Image, **how: object) -> dict[str, str]:
    picture.save(folder / name, **how)
    return {"image": name, PLACE: f"{folder / 'table.csv'}, line 2"}


def _opened(row: dict[str, str]) -> np.ndarray:
    found = media.picture(row, row["image"])
    assert found.mode == "RGB"
    assert found.size == media.picture_size(row, row["image"])
    return np.asarray(found)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "P", "RGBA"])
def test_a_picture_of_any_mode_is_the_same_in_rgb(mode: str, tmp_path: Path) -> None:
    name = {"CMYK": "a.tif", "YCbCr": "a.tif"}.get(mode, "a.png")
    row = _saved(tmp_path, name, Image.new("RGB", (5, 3), RED).convert(mode, palette=Image.Palette.ADAPTIVE))
    assert np.abs(_opened(row).astype(int) - RED).max() <= 2


def test_grey_pictures_of_1_8_and_16_bits_keep_their_shade(tmp_path: Path) -> None:
    half = Image.fromarray(np.full((3, 5), 128 * 257, np.uint16))
    assert half.mode == "I;16"
    assert (_opened(_saved(tmp_path, "half.png", half)) == 128).all()
    assert (_opened(_saved(tmp_path, "half.tif", half)) == 128).all()
    assert (_opened(_saved(tmp_path, "eight.png", Image.new("L", (5, 3), 77))) == 77).all()
    assert (_opened(_saved(tmp_path, "one.png", Image.new("1", (5, 3), 1))) == 255).all()


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.paste((*RED, 255), (0, 0, 2, 4))
    palette = clear.quantize(4, method=Image.Quantize.FASTOCTREE)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert palette.mode == "P"
    for name, picture in (("a.png", clear), ("p.png", palette), ("a.webp", clear), ("g.png", grey)):
        how = {"lossless": True} if name.endswith("webp") else {}
        assert (_opened(_saved(tmp_path, name, picture, **how))[:, 3] == 255).all(), name
    assert np.abs(_opened(_saved(tmp_path, "p.png", palette))[0, 0].astype(int) - RED).max() <= 8


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    shown = Image.new("RGB", (6, 4))
    shown.paste((255, 255, 255), (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    row = _saved(tmp_path, "a.png", shown.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert media.picture_size(row, "a.png") == (6, 4)
    assert (_opened(row)[:, :3] == 255).all()


def test_the_first_picture_of_an_animation_counts(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), (0, 0, 255))
    for name in ("a.gif", "a.webp"):
        row = _saved(tmp_path, name, first, save_all=True, append_images=[second])
        assert np.abs(_opened(row).astype(int) - RED).max() <= 4


def test_numbers_without_a_white_are_refused(tmp_path: Path) -> None:
    row = _saved(tmp_path, "a.tif", Image.new("F", (4, 4), 0.5))
    with pytest.raises(DataError, match="which number is white"):
        media.picture(row, "a.tif")


def _plan(tmp_path: Path, rows: Path, **settings: object) -> object:
    base, scratch = tmp_path / "base", tmp_path / f"scratch{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    if not base.exists():
        vit(base)
    return plan_run(RunSettings(model=str(base), task="image-classification", train=str(rows), **settings), scratch)


def test_the_layouts_of_pictures_give_the_same_rows(tmp_path: Path) -> None:
    photos = colours(tmp_path)
    files = sorted(photos.rglob("*.*"))
    table = [[str(file.relative_to(photos)), file.parent.name] for file in files]
    write_csv(tmp_path / "photos.csv", ["photo", "colour"], [[f"photos/{name}", label] for name, label in table])

    parquet = tmp_path / "photos.parquet"
    bits = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": file.parent.name} for file in files]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_list(bits, features).to_parquet(parquet)

    def seen(source: Path) -> list[tuple[float, int]]:
        plan = _plan(tmp_path, source)
        features = plan.preparation.features([row for part in plan.rows.values() for row in part], plan.processor)
        return sorted((each["pixel_values"].sum().item(), each["labels"]) for each in features)

    expected = seen(photos)
    assert len(expected) == 32
    assert seen(tmp_path / "photos.csv") == expected
    assert seen(parquet) == expected
    write_csv(photos / "metadata.csv", ["file_name", "label"], table)
    assert seen(photos) == expected
    (photos / "metadata.csv").unlink()
    write_jsonl(photos / "metadata.jsonl", [{"file_name": name, "label": label} for name, label in table])
    assert seen(photos) == expected


def test_a_folder_with_splits_is_split_so(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / "all" / split).mkdir(parents=True)
        colours(tmp_path / "all" / split).rename(tmp_path / "all" / split / "x")
        for label in ("red", "blue"):
            (tmp_path / "all" / split / "x" / label).rename(tmp_path / "all" / split / label)
        (tmp_path / "all" / split / "x").rmdir()
    plan = _plan(tmp_path, tmp_path / "all")
    assert [len(plan.rows[name]) for name in ("train", "eval", "test")] == [32, 32, 32]


def test_broken_and_missing_pictures_are_told_before_training(tmp_path: Path) -> None:
    photos = colours(tmp_path)
    names = sorted(str(each.relative_to(tmp_path)) for each in photos.rglob("*.*"))
    (tmp_path / names[3]).write_bytes(b"no picture")
    table = write_csv(
        tmp_path / "t.csv", ["file", "label"], [[n, n.split("/")[1]] for n in [*names, "photos/red/x.png"]]
    )
    with pytest.raises(DataError) as caught:
        _plan(tmp_path, table)
    assert f"{table}, line 5: {names[3]} cannot be read as a picture" in str(caught.value)
    assert f"{table}, line 34: there is no file {tmp_path / 'photos/red/x.png'}" in str(caught.value)


def test_a_picture_that_breaks_off_is_told_with_its_row(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    (tmp_path / "a.png").write_bytes(whole.getvalue()[:2000])
    row = {"image": "a.png", PLACE: f"{tmp_path / 'table.csv'}, line 2"}
    assert media.picture_size(row, "a.png") == (64, 64)
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
        media.picture(row, "a.png")


def test_augmented_pictures_differ_in_training_alone_and_come_again_with_the_seed(tmp_path: Path) -> None:
    photos = colours(tmp_path)
    import torch

    def drawn(name: str) -> list[torch.Tensor]:
        torch.manual_seed(3)
        made = plan.preparation.training_dataset if name == "train" else plan.preparation.dataset
        rows = made(plan.rows[name], plan.processor)
        return [rows[0]["pixel_values"] for _ in range(3)]

    plan = _plan(tmp_path, photos, augment=True, seed=1)
    one, again, held = drawn("train"), drawn("train"), drawn("eval")
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], one[1])
    assert torch.equal(held[0], held[1])


@pytest.mark.parametrize("labels", [2, 5])
def test_a_head_for_other_labels_is_trained_whole_or_gives_way(labels: int, tmp_path: Path) -> None:
    config = ViTConfig(image_size=16, patch_size=8, num_labels=labels, **SIZES)
    vit(tmp_path / "base")
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    plan = _plan(tmp_path, colours(tmp_path))
    assert plan.model.peft_config["default"].modules_to_save == ["classifier"]
    assert plan.model.config.id2label == {0: "blue", 1: "red"}
    assert plan.model.classifier.out_features == 2
