"""Boxes in pictures, in the layouts and formats in which people keep them.

    {"bbox": [[...], ...], "category": ["cat", ...]}   a dict of lists, as in data sets of the Hub
    [{"bbox": [...], "label": "cat"}, ...]             a list of dicts; either may be JSON in a text

The formats have the names that albumentations gives them:

    coco            left, top, width, height in pixels
    pascal_voc      left, top, right, bottom in pixels
    albumentations  left, top, right, bottom as shares of the picture's width and height
    yolo            middle (across, down), width, height as such shares
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import ConfigError, DataError

Box = tuple[float, float, float, float]
FORMATS = ("coco", "pascal_voc", "albumentations", "yolo")
_IN_PIXELS = FORMATS[:2]
_BOXES = ("bbox", "bboxes", "boxes", "box")
_LABELS = ("category", "categories", "label", "labels", "class", "classes", "name", "names", "category_id")
_OUTSIDE = 1.0  # pixels by which a box may stand out of its picture: programs round and count differently


def is_boxes(value: Any) -> bool:
    """Return whether a cell can be the boxes of a picture."""
    try:
        objects_of(value)
    except DataError:
        return False
    return True


def objects_of(value: Any) -> list[tuple[Sequence[float], str]]:
    """Return each box of a cell, four numbers as they stand there, with its label. Raises DataError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"{value[:60]!r} are no boxes in JSON") from None
    if isinstance(value, Mapping):
        boxes, labels = _of(value, _BOXES), _of(value, _LABELS)
    elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        boxes, labels = [_of(each, _BOXES) for each in value], [_of(each, _LABELS) for each in value]
    else:
        boxes = labels = None
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise DataError(f'{str(value)[:60]!r} are no boxes; write {{"bbox": [[...]], "category": [...]}}, a label each')
    for box in boxes:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) for number in box):
            raise DataError(f"the box {box!r} is no list of four numbers")
    return [(box, str(label).strip()) for box, label in zip(boxes, labels, strict=True)]


def places_of(value: Any) -> Sequence[str]:
    """Return where each box of a cell stands, if the file that it was read from is not the row's; else nothing."""
    return value.get("places") or () if isinstance(value, Mapping) else ()


def other_size(value: Any, size: tuple[int, int]) -> str | None:
    """Return what is wrong where a cell's boxes are for a picture of another size than it has; None where they fit."""
    told = list(value.get("size") or ()) if isinstance(value, Mapping) else []
    if len(told) < 2 or not all(told) or told == list(size):
        return None
    return (
        f"its boxes are for a picture of {told[0]} x {told[1]} pixels, and is shown with {size[0]} x {size[1]}; take "
        "the picture that they were drawn on, or mend the size"
    )


def _of(held: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((held[name] for name in names if held.get(name) is not None), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def corners(box: Sequence[float], written: str, size: tuple[int, int]) -> Box:
    """Return a box's left, top, right and bottom in pixels. size: the picture's width and height."""
    a, b, c, d = box
    if written not in _IN_PIXELS:
        (a, c), (b, d) = (a * size[0], c * size[0]), (b * size[1], d * size[1])
    if written == "yolo":
        a, b = a - c / 2, b - d / 2
    return (a, b, a + c, b + d) if written in ("coco", "yolo") else (a, b, c, d)


def problem_of(box: Sequence[float], written: str, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a box of a picture; None where it is right."""
    left, top, right, bottom = corners(box, written, size)
    what = f"its box {list(box)}, read as {written},"
    if not (left < right and top < bottom):
        return f"{what} is empty"
    if min(left, top) < -_OUTSIDE or right > size[0] + _OUTSIDE or bottom > size[1] + _OUTSIDE:
        return f"{what} is not inside its picture of {size[0]} x {size[1]} pixels"
    return None


def format_of(boxes: Iterable[tuple[Sequence[float], tuple[int, int]]]) -> str:
    """Return the format in which all boxes are inside their pictures; the one with the fewest faults where none is.

    boxes: each with the size of its picture. Raises ConfigError where two formats are possible.
    """
    every = list(boxes)
    are_shares = all(max(map(abs, box)) <= 1 for box, _ in every)
    possible = FORMATS[2:] if are_shares else _IN_PIXELS
    faults = {name: sum(problem_of(box, name, size) is not None for box, size in every) for name in possible}
    least = [name for name in possible if faults[name] == min(faults.values())]
    if len(least) > 1:
        raise ConfigError(
            f"the boxes could be {' or '.join(least)}: all are inside their pictures either way, or as many are not. "
            f"Say --box-format {' or '.join(least)}."
        )
    return least[0]
