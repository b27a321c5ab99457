"""Pictures and sounds of rows: checked by their headers, and opened one at a time.

A row holds a path (relative to the file that the row stands in), or the bytes, as Parquet files do.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...errors import DataError, MissingExtraError
from .columns import folder_of, place_of

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf"}
_WHITE = (255, 255, 255, 255)
_WHOLE = 65535  # white in 16 bits
_Read = TypeVar("_Read")


def is_media(value: Any, endings: set[str]) -> bool:
    """Return whether a cell can be a picture or a sound: a path with such an ending, bytes, or both in a dict."""
    if isinstance(value, Mapping):
        return bool({"bytes", "path"} & value.keys())
    return isinstance(value, bytes) or (isinstance(value, str) and Path(value).suffix.lower() in endings)


def as_stored(rows: Dataset) -> Dataset:
    """Return rows whose pictures and sounds are not opened when a row is read: {"bytes": ..., "path": ...} instead."""
    for name, feature in (rows.features or {}).items():
        if getattr(feature, "decode", False):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def picture_size(row: Mapping[str, Any], value: Any) -> tuple[int, int]:
    """Return a picture's width and height in pixels, as it is shown, from its header. Raises DataError."""

    def read(source: Any) -> tuple[int, int]:
        from PIL import Image

        with Image.open(source) as opened:
            has_exif = opened.format != "PNG" or "exif" in opened.info  # else Pillow decodes a PNG to look for it
            is_turned = has_exif and opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # by a quarter
            return (opened.height, opened.width) if is_turned else (opened.width, opened.height)

    return _opened(row, value, "picture", read)


def picture(row: Mapping[str, Any], value: Any) -> Image:
    """Return a picture in RGB, as it is shown: turned as its EXIF says, on white where it is transparent.

    Of an animation the first frame, of 16 bits the upper eight. Raises DataError.
    """

    def read(source: Any) -> Image:
        from PIL import Image, ImageOps

        with Image.open(source) as opened:
            return _in_rgb(ImageOps.exif_transpose(opened))

    return _opened(row, value, "picture", read)


def _in_rgb(given: Image) -> Image:
    from PIL import Image

    if given.mode == "F" or given.mode.startswith("I"):
        values = np.asarray(given)
        if given.mode == "F" or values.min() < 0 or values.max() > _WHOLE:
            raise ValueError(f"its mode {given.mode!r} does not say which number is white; save it in 8 or 16 bits")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if given.has_transparency_data:
        shown = given.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, _WHITE), shown).convert("RGB")
    return given.convert("RGB")


def seconds(row: Mapping[str, Any], value: Any) -> float:
    """Return how long a sound is, from its header. Raises DataError."""
    found = _opened(row, value, "sound", lambda source: _soundfile().info(source).duration)
    if not found > 0:
        raise DataError(f"{_name(row, value)} holds no sound")
    return float(found)


def sound(row: Mapping[str, Any], value: Any, rate: int) -> np.ndarray:
    """Return a sound as float32 of (samples,), at `rate` samples a second; several channels are averaged.

    Raises DataError.
    """

    def read(source: Any) -> np.ndarray:
        from scipy.signal import resample_poly

        samples, found = _soundfile().read(source, dtype="float32", always_2d=True)
        if not len(samples) or not np.isfinite(samples).all():
            raise ValueError("it holds no samples, or some that are no numbers")
        mono, shared = samples.mean(axis=1), math.gcd(found, rate)
        if found == rate:
            return mono
        return np.asarray(resample_poly(mono, rate // shared, found // shared), dtype=np.float32)

    return _opened(row, value, "sound", read)


def of_each(rows: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], _Read]) -> list[_Read]:
    """Return what `read` gives for each row. Raises its DataError with the row's place."""
    found = []
    for row in rows:
        try:
            found.append(read(row))
        except DataError as error:
            raise DataError(f"{place_of(row)}: {error}.") from error
    return found


def _opened(row: Mapping[str, Any], value: Any, kind: str, read: Callable[[Any], _Read]) -> _Read:
    """Return what `read` makes of a cell's file. Raises DataError without the row, which the caller names."""
    held = value.get("bytes") if isinstance(value, Mapping) else value
    source = io.BytesIO(held) if isinstance(held, bytes) else _path(row, value)
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"there is no file {source}")
    try:
        return read(source)
    except MissingExtraError:
        raise
    except Exception as error:  # a library for each format, each with its own
        told = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{_name(row, value)} cannot be read as a {kind}: {told}") from error


def _path(row: Mapping[str, Any], value: Any) -> Path:
    return folder_of(row) / str(value.get("path") if isinstance(value, Mapping) else value)


def _name(row: Mapping[str, Any], value: Any) -> str:
    """Return what to call a cell's file beside the place of its row."""
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str):
        return "it"
    return "it" if Path(place_of(row)).name == Path(path).name else path


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        raise MissingExtraError(f'sounds are read by soundfile: pip install ".[train]" brings it. {error}') from error
    return soundfile
