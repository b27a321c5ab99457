"""Boxes beside pictures, read to a row a picture: tables with one box a row, Pascal VOC's XML, YOLO's text files.

photos/labels.csv, photos/1.jpg                        image, xmin, ymin, xmax, ymax, label (or x, y, w, h)
voc/Annotations/1.xml, voc/JPEGImages/1.jpg            or both in one folder; ImageSets/Main/train.txt, val.txt: splits
yolo/data.yaml, yolo/images/train/1.jpg, yolo/labels/train/1.txt
yolo/classes.txt, yolo/1.jpg, yolo/1.txt               or obj.names
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from xml.etree import ElementTree

from transformers.utils import logging

from ...errors import DataError, some
from .columns import PLACE, is_empty, place_of, plain_name
from .folders import media_below, split_of, write_media
from .media import PICTURES, is_media
from .opening import encoding_of, open_text
from .written import Found, Wanted

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

# The columns of a box in a table, and what the four numbers are; x and y are what COCO means by them, in pixels.
_SIDES = {
    ("xmin", "ymin", "xmax", "ymax"): "corners",
    ("x1", "y1", "x2", "y2"): "corners",
    ("left", "top", "right", "bottom"): "corners",
    ("xcenter", "ycenter", "width", "height"): "middle",
    ("xmin", "ymin", "width", "height"): "sizes",
    ("left", "top", "width", "height"): "sizes",
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"): "x and y",
    ("x", "y", "width", "height"): "x and y",
    ("x", "y", "w", "h"): "x and y",
}
_LABELS = ("label", "class", "classname", "category", "categoryname", "labelname", "name", "object", "species")
_SIZE = ("width", "height")
_CLASSES = ("classes.txt", "obj.names", "_darknet.labels")
_LOOKED_AT = 100  # rows that tell whether a column names pictures
_Value = TypeVar("_Value")
_Object = tuple[list[float], str, str]  # the four numbers, the label, where it stands


def boxes_a_row(rows: Dataset) -> tuple[str, dict[str, str]] | None:
    """Return the column of the picture and those of a box (by their plain names, "label" too); None for other rows."""
    columns = {plain_name(name).replace(" ", ""): name for name in rows.column_names}
    sides = next((names for names in _SIDES if columns.keys() >= set(names)), None)
    first = rows.select(range(min(_LOOKED_AT, len(rows)))).to_list() if sides else []
    image = next((c for c in rows.column_names if first and all(_is_path(row[c]) for row in first)), None)
    label = next((columns[name] for name in _LABELS if columns.get(name, image) != image), None)
    if image is None or label is None:
        return None
    return image, {**{name: columns[name] for name in sides or ()}, "label": label}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and is_media(value, PICTURES)


def gather_boxes(found: Found, table: Path, wanted: Wanted) -> Found:
    """Return a row for each picture of a table with one box a row, written to `table`; other rows as they are.

    A row without any number is a picture without boxes. Raises DataError for a box that is no four numbers.
    """
    if (told := boxes_a_row(found.rows)) is None:
        return found
    image, columns = told
    sides = tuple(name for name in columns if name != "label")
    pictures: dict[str, tuple[str, list[_Object], list[Any]]] = {}
    given = [name for name in found.rows.column_names if plain_name(name) in _SIZE and name not in columns.values()]
    given.sort(key=plain_name, reverse=True)  # width, height
    left_out = list(found.left_out)
    for row in found.rows:
        numbers = [row[columns[name]] for name in sides]
        objects = pictures.setdefault(str(row[image]), (place_of(row), [], [row[name] for name in given]))[1]
        if all(map(is_empty, numbers)):
            continue
        try:
            objects.append(_object(numbers, row[columns["label"]], place_of(row)))
        except DataError as error:
            if not wanted.skip_bad_rows:
                raise
            left_out.append(str(error))
    in_shares = all(max(map(abs, box)) <= 1 for _, objects, _ in pictures.values() for box, *_ in objects)
    kind = next(kind for names, kind in _SIDES.items() if names == sides)
    if kind == "x and y":
        logger.warning("Boxes are read as left, top, width and height, from %s.", ", ".join(columns.values()))
        if in_shares:
            raise DataError(
                f"{place_of(found.rows[0])}: a box's x and y, in shares of the picture, could be its corner or its "
                "middle; call the columns xmin, ymin, width, height or x_center, y_center, width, height."
            )
    written = "albumentations" if in_shares else "pascal_voc"
    rows = (
        _row(name, [(_corners(box, kind), label, at) for box, label, at in objects], written, place, size)
        for name, (place, objects, size) in pictures.items()
    )
    about = {**found.about, "layout": f"a box a row ({', '.join(columns.values())})"}
    return Found(write_media(rows, table, ("file", "objects", PLACE), wanted), about, left_out)


def _corners(box: list[float], kind: str) -> list[float]:
    a, b, c, d = box
    if kind == "middle":
        return [a - c / 2, b - d / 2, a + c / 2, b + d / 2]
    return box if kind == "corners" else [a, b, a + c, b + d]


def _object(numbers: Iterable[Any], label: Any, place: str) -> _Object:
    given = list(numbers)
    try:
        box = [float(number) for number in given]
    except (TypeError, ValueError):
        raise DataError(f"{place}: its box {given} is no four numbers; mend it, or take the row out.") from None
    if is_empty(label):
        raise DataError(f"{place}: its box {box} has no label; write one, or take the row out.")
    return box, str(label).strip(), place


def _row(
    picture: str, objects: Sequence[_Object], written: str, place: str, size: Sequence[Any] = ()
) -> dict[str, Any]:
    """Return a picture's row. size: its width and height, as the boxes' file says them."""
    boxes, labels, places = ([each[part] for each in objects] for part in range(3))
    told = [int(float(side)) for side in size if str(side).replace(".", "", 1).isdecimal()]
    held = {"bbox": boxes, "category": labels, "format": written, "places": places, "size": told}
    return {"file": picture, "objects": held, PLACE: place}


def read_annotated(path: Path, scratch: Path, wanted: Wanted) -> dict[str, Found] | None:
    """Return what a folder of Pascal VOC or YOLO holds, by split; None for another folder. Raises DataError."""
    yaml = next((each for each in sorted(path.glob("*.y*ml")) if "names" in _yaml(each)), None)
    names = next((path / name for name in _CLASSES if (path / name).is_file()), None)
    rows: Mapping[str, Iterable[dict[str, Any]]]
    if yaml is not None or names is not None:
        rows, kind = _yolo(path, yaml, names), "YOLO"
    elif any(_is_voc(each) for each in islice(sorted(path.rglob("*.xml")), 1)):
        rows, kind = _voc(path), "Pascal VOC"
    else:
        return None
    found = {}
    for split, parts in rows.items():
        table = scratch / f"{len(list(scratch.iterdir()))}.arrow"
        found[split] = Found(write_media(parts, table, ("file", "objects", PLACE), wanted), {"format": kind})
    return found


def _is_voc(path: Path) -> bool:
    return _root(path).tag == "annotation"


def _root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise DataError(f"{path}: it cannot be read as XML: {error}.") from error


def _voc(path: Path) -> dict[str, list[dict[str, Any]]]:
    pictures = {name: each for each in media_below(path) for name in (each.stem, each.name)}
    rows = {each: _voc_row(each, pictures) for each in sorted(path.rglob("*.xml"))}
    if left := len(media_below(path)) - len({row["file"] for row in rows.values()}):
        logger.warning("%s: %d pictures have no XML and are left out.", path, left)
    lists = {file.stem: file for file in sorted((path / "ImageSets" / "Main").glob("*.txt")) if split_of(file.stem)}
    if "train" not in lists:
        return _by_folder(path, rows)
    by_stem = {each.stem: row for each, row in rows.items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("train", "val", "test"):
        if name in lists:
            stems = [line.split()[0] for line in _text(lists[name]).splitlines() if line.strip()]
            if missing := [stem for stem in stems if stem not in by_stem]:
                raise DataError(f"{lists[name]}: there is no XML of {some(missing)}.")
            found[str(split_of(name))] = [by_stem[stem] for stem in stems]
    return found


def _by_folder(path: Path, files: Mapping[Path, _Value]) -> dict[str, list[_Value]]:
    """Return what belongs to files below a folder by the split that the folders between tell; else to train on."""
    found: dict[str, list[_Value]] = {}
    for file, value in files.items():
        inner = file.relative_to(path).parts[:-1]
        found.setdefault(next(filter(None, map(split_of, inner)), "train"), []).append(value)
    return found if "train" in found else {"train": list(files.values())}


def _voc_row(path: Path, pictures: Mapping[str, Path]) -> dict[str, Any]:
    root = _root(path)
    named = Path((root.findtext("filename") or "").replace("\\", "/")).name
    beside = path.with_name(named or path.stem)
    picture = beside if beside.is_file() else pictures.get(named) or pictures.get(path.stem)
    if picture is None:
        raise DataError(f"{path}: its picture {named or path.stem!r} is not in the folder.")
    objects = []
    for number, each in enumerate(root.iter("object"), start=1):
        sides = [each.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        objects.append(_object(sides, each.findtext("name"), f"{path}, object {number}"))
    size = [root.findtext(f"size/{side}") for side in _SIZE]
    return _row(str(picture.absolute()), objects, "pascal_voc", str(path), size)


def _yolo(path: Path, yaml: Path | None, classes: Path | None) -> dict[str, Iterable[dict[str, Any]]]:
    told = _yaml(yaml) if yaml is not None else {}
    names = told.get("names") or (classes and _text(classes).split("\n"))
    numbers = names if isinstance(names, dict) else dict(enumerate(names)) if isinstance(names, list) else {"": names}
    if odd := [number for number in numbers if not str(number).isdecimal()]:
        raise DataError(
            f"{yaml}: its names are {str(names)[:60]!r}, where {odd[0]!r} is no number of a class; write a list, "
            "[cat, dog], or numbers with their names, {0: cat, 1: dog}."
        )
    labels = {int(number): str(name).strip() for number, name in numbers.items() if str(name).strip()}
    places = {split: told[split] for split in ("train", "val", "test") if told.get(split)}
    parts: dict[str, list[Path]] = {}
    for split, given in places.items():
        for each in given if isinstance(given, list) else [given]:
            parts.setdefault(str(split_of(split)), []).extend(media_below(_folder(path, told, str(each), yaml)))
    if not places:
        parts = _by_folder(path, {each: each for each in media_below(path)})
    if not any(parts.values()):
        raise DataError(f"{yaml or classes}: there are no pictures in {some(map(str, places.values())) or path}.")
    return {split: (_yolo_row(each, labels, yaml or classes) for each in found) for split, found in parts.items()}


def _folder(path: Path, told: Mapping[str, Any], given: str, yaml: Path | None) -> Path:
    """Return the folder that a data.yaml means, from itself, its "path", or as Roboflow writes it ("../train")."""
    tried = [
        base / part
        for part in (given, given.removeprefix("../"))
        for base in (path / str(told.get("path") or ""), path)
    ]
    if (found := next((each for each in tried if each.is_dir()), None)) is None:
        raise DataError(f"{yaml}: there is no folder {given!r}; put the file beside the folders that it names.")
    return found


def _yolo_row(picture: Path, labels: Mapping[int, str], source: Path | None) -> dict[str, Any]:
    """Return a picture's row; one without a text file has no boxes."""
    parts = list(picture.with_suffix(".txt").absolute().parts)
    if "images" in parts and not Path(*parts).is_file():
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    file, objects = Path(*parts), []
    for line, text in enumerate(_text(file).splitlines() if file.is_file() else (), start=1):
        place, words = f"{file}, line {line}", text.split()
        if not words:
            continue
        if len(words) != 5:
            raise DataError(f"{place}: it has {len(words)} numbers, and a box a class and four; {text[:60]!r}.")
        number = int(words[0]) if words[0].isdecimal() else -1
        if number not in labels:
            raise DataError(f"{place}: its class {words[0]!r} is none of {source}, which has {some(labels.values())}.")
        objects.append(_object(words[1:], labels[number], place))
    return _row(str(picture.absolute()), objects, "yolo", str(file if objects else picture))


def _text(path: Path) -> str:
    with open_text(path, encoding_of(path)) as file:
        return file.read()


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path}: it cannot be read as YAML: {' '.join(str(error).split())}.") from error
    return found if isinstance(found, dict) else {}
