"""Classification of sounds: one label for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from transformers.utils import logging

from ...errors import DataError
from ..data import media
from ..data.columns import Role
from .classes import Classes
from .texts import split_up

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

AUDIO = Role(
    "audio",
    ("audio", "sound", "speech", "recording", "clip", "wav", "file name", "file", "filename", "path", "input values"),
    lambda value: media.is_media(value, media.SOUNDS),
)
_LONGEST = 30.0  # seconds of a sound, where neither the user nor the model says it


class SoundClasses(Classes):
    """A label for each sound. option max_seconds: what is behind so many of a sound is cut."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("labels", "ids", "max_seconds")
    processor_class: ClassVar[str] = "AutoFeatureExtractor"
    trains_labels: ClassVar[bool] = True

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        self.options["max_seconds"] = most = longest(self.options.get("max_seconds"), processor)
        cut = sum(found > most for row in rows if (found := self._seconds(row)) is not None)
        if cut:
            logger.warning("%d of %d sounds are longer than %g seconds: what is behind is cut.", cut, len(rows), most)

    def fit_model(self, model: Any, processor: Any) -> None:
        pass  # the processor pads

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        return super().problem(row, labelled) or sound_problem(row, self.value(row, "audio"))

    def inputs(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[dict[str, Any]]:
        most = int(self.options["max_seconds"] * processor.sampling_rate)
        read = (each[:most] for each in opened(rows, self.columns["audio"], processor.sampling_rate))
        return encoded(read, processor)

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        labels = {"labels": self.options["labels"][feature["labels"]]} if "labels" in feature else {}
        return {**shown_values(feature), **labels}

    def _seconds(self, row: Mapping[str, Any]) -> float | None:
        try:
            return media.seconds(row, self.value(row, "audio"))
        except DataError:
            return None  # `check` tells it


def longest(given: float | None, extractor: Any) -> float:
    """Return the seconds of a sound that are used: the given ones, at most those that a model takes."""
    return min(given or _LONGEST, limit_of(extractor) or given or _LONGEST)


def limit_of(extractor: Any) -> float | None:
    """Return the seconds of a sound that a model takes at most, None where it takes any."""
    takes = getattr(extractor, "chunk_length", None) or getattr(extractor, "max_length_s", None)
    if takes is None and hasattr(extractor, "num_mel_bins"):  # the spectrogram transformer's: ten milliseconds each
        return extractor.max_length / 100
    return takes


def sound_problem(row: Mapping[str, Any], value: Any) -> str | None:
    """Return what is wrong with a row's sound as far as its header tells."""
    try:
        media.seconds(row, value)
    except DataError as error:
        return str(error)
    return None


def opened(rows: Sequence[Mapping[str, Any]], column: str, rate: int) -> list[np.ndarray]:
    """Return the sounds of rows, mono, at a rate. Raises DataError that names the row."""
    return media.of_each(rows, lambda row: media.sound(row, row[column], rate))


def encoded(sounds: Iterable[np.ndarray], extractor: Any) -> list[dict[str, Any]]:
    """Return what a feature extractor makes of each sound, without padding."""
    return split_up(extractor(list(sounds), sampling_rate=extractor.sampling_rate))


def shown_values(feature: Mapping[str, Any]) -> dict[str, str]:
    """Return the shape and range of what a model hears, for `--dry-run`."""
    heard = {key: np.asarray(value) for key, value in feature.items() if key.startswith("input_")}
    return {k: f"{' x '.join(map(str, v.shape))}, from {v.min():.2f} to {v.max():.2f}" for k, v in heard.items()}
