"""A folder of pictures or sounds as rows: a folder for each class; and COCO's JSON of boxes beside pictures.

photos/cat/1.png, photos/dog/2.jpg           the folder's name is the label
photos/metadata.csv, photos/1.png            a table like any other: its paths begin in its folder
photos/_annotations.coco.json, photos/1.png  boxes
photos/train/..., photos/validation/...      each of these
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ...errors import DataError, some
from .columns import PLACE
from .media import PICTURES, SOUNDS
from .written import BATCH, Found, Wanted, write_batches

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

_SPLITS = {
    "train": ("train", "training"), "eval": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}  # fmt: skip


def media_below(path: Path) -> list[Path]:
    """Return the pictures and sounds in a folder and in those below it, in the order of their names."""
    return [each for each in _below(path) if is_media(each)]


def read_media(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return a row for each picture or sound below a folder, written to `table`: "file", and in class folders "label".

    What else lies there is left out, and told.
    """
    media = media_below(path)
    if other := [str(each.relative_to(path)) for each in _below(path) if not is_media(each)]:
        logger.warning("%s: left out, as they are no pictures or sounds: %s.", path, some(other))
    columns = ("file", "label", PLACE) if any(each.parent != path for each in media) else ("file", PLACE)
    rows = ({"file": str(each.absolute()), "label": _class_of(each, path), PLACE: str(each)} for each in media)
    return Found(write_media(rows, table, columns, wanted), {"format": "folder of pictures or sounds"})


def _below(path: Path) -> list[Path]:
    inside = [each for each in sorted(path.rglob("*")) if each.is_file()]
    return [each for each in inside if not any(map(_is_hidden, each.relative_to(path).parts))]


def is_media(path: Path) -> bool:
    """Return whether a file is a picture or a sound by its name."""
    return path.suffix.lower() in PICTURES | SOUNDS


def _class_of(file: Path, root: Path) -> str | None:
    inner = file.relative_to(root).parts
    return inner[0] if len(inner) > 1 else None


def is_coco(path: Path) -> bool:
    """Return whether a JSON file is COCO's: an object with images, annotations and categories."""
    return {"images", "annotations", "categories"} <= _json(path).keys()


def read_coco(path: Path, table: Path, wanted: Wanted) -> Found:
    """Return a row for each picture of COCO's JSON, written to `table`: "file" and "objects" (their boxes are COCO's).

    Boxes of crowds (iscrowd=1) are left out, as they are in COCO's own training. Raises DataError.
    """
    found = _json(path)
    try:
        names = {each["id"]: str(each["name"]) for each in found["categories"]}
        boxes: dict[Any, list[tuple[list[float], str]]] = {each["id"]: [] for each in found["images"]}
        for number, each in enumerate(found["annotations"]):
            if each["image_id"] not in boxes or each["category_id"] not in names:
                raise DataError(
                    f"{path}, annotation {number}: there is no picture {each['image_id']!r}, or no category "
                    f"{each['category_id']!r}."
                )
            if not each.get("iscrowd"):
                boxes[each["image_id"]].append(([float(n) for n in each["bbox"]], names[each["category_id"]]))
        folder = _folder_of_pictures(path, [each["file_name"] for each in found["images"][:1]])
        rows = (
            {
                "file": str(folder / each["file_name"]),
                "objects": {
                    "bbox": [box for box, _ in boxes[each["id"]]],
                    "category": [name for _, name in boxes[each["id"]]],
                    "format": "coco",
                    "size": [int(each[side]) for side in ("width", "height") if each.get(side)],
                },
                PLACE: f"{path}, image {each['id']}",
            }
            for each in found["images"]
        )
        return Found(write_media(rows, table, ("file", "objects", PLACE), wanted), {"format": "COCO JSON"})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: it is no JSON as COCO has it: {type(error).__name__}: {error}.") from error


def _folder_of_pictures(path: Path, first: list[str]) -> Path:
    """Return the folder that COCO's file names begin in: the JSON's, or one below it, beside it or above it."""
    above = path.absolute().parent
    places = [above, *_folders(above), *_folders(above.parent)]
    for place in places if first else []:
        if (place / first[0]).is_file():
            return place
    raise DataError(
        f"{path}: its first picture, {some(first) or 'none'}, is in none of {some(map(str, places))}; put the file "
        "into the pictures' folder."
    )


def _folders(path: Path) -> list[Path]:
    return [each for each in sorted(path.iterdir()) if each.is_dir() and not _is_hidden(each.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def _json(path: Path) -> dict[str, Any]:
    """Return the one object that a JSON file holds; an empty one where it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:  # no UTF-8, or no JSON: the reader of rows says what is wrong
        return {}
    return found if isinstance(found, dict) else {}


def write_media(rows: Iterable[dict[str, Any]], table: Path, columns: Iterable[str], wanted: Wanted) -> Dataset:
    """Write rows of pictures or sounds, of "objects" their boxes, and return them."""
    import pyarrow as pa

    boxes = [("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))]
    boxes += [("format", pa.string()), ("places", pa.list_(pa.string())), ("size", pa.list_(pa.int64()))]
    kinds = {"objects": pa.struct(boxes)}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    waiting = iter(rows)
    parts = iter(lambda: list(islice(waiting, BATCH)), [])
    return write_batches((pa.RecordBatch.from_pylist(part, schema) for part in parts), schema, table, wanted.limit)


def split_of(name: str) -> str | None:
    """Return the split that a name tells: of train-00000-of-00002.parquet, "train"."""
    words = "".join(letter if letter.isalpha() else " " for letter in name.lower()).split()
    return next((split for word in words for split, names in _SPLITS.items() if word in names), None)
