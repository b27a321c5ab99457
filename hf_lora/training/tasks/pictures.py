"""Classification of pictures: one label for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...errors import DataError
from ..data import media
from ..data.columns import Role
from .classes import Classes

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


IMAGE = Role(
    "image",
    ("image", "picture", "img", "photo", "file name", "file", "filename", "path", "pixel values", "bild"),
    lambda value: media.is_media(value, media.PICTURES),
)


class PictureClasses(Classes):
    """A label for each picture. option augment: pictures to train on are cut and mirrored at random."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("labels", "ids", "augment")
    processor_class: ClassVar[str] = "AutoImageProcessor"
    trains_labels: ClassVar[bool] = True

    def fit_model(self, model: Any, processor: Any) -> None:
        pass  # nothing is padded

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if found := super().problem(row, labelled):
            return found
        try:
            media.picture_size(row, self.value(row, "image"))
        except DataError as error:
            return str(error)
        return None

    def inputs(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[dict[str, Any]]:
        return self._encoded(self._opened(rows), processor)

    def _opened(self, rows: Sequence[Mapping[str, Any]]) -> list[Image]:
        return media.of_each(rows, lambda row: media.picture(row, self.value(row, "image")))

    def _encoded(self, pictures: list[Image], processor: Any) -> list[dict[str, Any]]:
        values = processor(images=pictures, return_tensors="pt")["pixel_values"]
        return [{"pixel_values": each} for each in values]

    def training_dataset(self, rows: Dataset, processor: Any) -> Any:
        varies = _Varied(self.task, self.columns, **self.options) if self.options.get("augment") else self
        return varies.dataset(rows, processor)

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        from transformers import default_data_collator

        return default_data_collator

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        pixels = feature["pixel_values"]
        return {
            "pixel_values": f"{' x '.join(map(str, pixels.shape))}, from {pixels.min():.2f} to {pixels.max():.2f}",
            "labels": self.options["labels"][feature["labels"]],
        }


class _Varied(PictureClasses):
    """The same with pictures cut to 80% of their sides or more, and every second one mirrored.

    The random numbers are torch's, which a run's seed sets and its checkpoints hold.
    """

    def inputs(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> list[dict[str, Any]]:
        return self._encoded([_varied(each) for each in self._opened(rows)], processor)


def _varied(given: Image) -> Image:
    from PIL import ImageOps

    share, across, down, mirrors = torch.rand(4).tolist()
    width, height = (max(round(side * (0.8 + 0.2 * share)), 1) for side in given.size)
    left, top = round(across * (given.width - width)), round(down * (given.height - height))
    cut = given.crop((left, top, left + width, top + height))
    return ImageOps.mirror(cut) if mirrors < 0.5 else cut
