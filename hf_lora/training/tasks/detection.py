"""Detection of objects: a box and a label for each object in a picture (YOLOS, DETR and what followed it)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers.utils import logging

from ...errors import ConfigError, DataError, some
from ..columns import Columns, as_objects
from ..data import boxes, media
from ..data.checking import label_remarks
from ..data.columns import Role, place_of
from .preparation import Preparation
from .texts import in_order

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

OBJECTS = Role("objects", ("objects", "annotations", "boxes", "bboxes"), boxes.is_boxes, is_label=True)
_LEAST = 0.5  # the score of a prediction, where nobody says it


class Detection(Preparation):
    """The boxes of each picture, with a label each.

    options: labels, in the order of the model's outputs; box_format, how the rows write boxes; threshold, the least
    score of what is predicted.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("labels", "box_format", "threshold")
    ADOPTED: ClassVar[Mapping[str, Any]] = {"threshold": _LEAST, "box_format": "coco"}
    processor_class: ClassVar[str] = "AutoImageProcessor"

    rows_tell: ClassVar[bool] = True

    def look(self, rows: Dataset) -> None:
        self.options["threshold"] = _LEAST if self.options.get("threshold") is None else self.options["threshold"]
        found = list(self._readable(rows))
        names = [(label, place) for objects, _, place in found for _, label in objects]
        self.remarks = label_remarks(names)
        self.options["labels"] = in_order({label for label, _ in names})
        if not self.options["labels"]:
            raise DataError(f"column {self.columns['objects']!r}: no picture has a box; there is nothing to learn.")
        if self.options.get("box_format") is None:
            declared = {row.get("format") for row in rows[self.columns["objects"]] if isinstance(row, dict)}
            named = declared.pop() if len(declared) == 1 else None
            self.options["box_format"] = named or boxes.format_of(
                (box, size) for objs, size, _ in found for box, _ in objs
            )
            if not named:
                logger.warning("The boxes are read as %s.", self.options["box_format"])

    def _readable(self, rows: Dataset) -> Iterator[tuple[list[tuple[Sequence[float], str]], tuple[int, int], str]]:
        """Yield objects, the picture's size and place of the rows that have them; `check` tells of the others."""
        for row in rows:
            try:
                yield self._objects(row), media.picture_size(row, self.value(row, "image")), place_of(row)
            except DataError:
                continue

    def _objects(self, row: Mapping[str, Any]) -> list[tuple[Sequence[float], str]]:
        value = self.value(row, "objects")
        return [] if value is None else boxes.objects_of(value)

    def model_arguments(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.options["labels"]))}

    def training_arguments(self) -> dict[str, Any]:
        return {"eval_do_concat_batches": False}  # pictures have different numbers of boxes

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if (value := self.value(row, "image")) is None:
            return f"its image (column {self.columns['image']!r}) is empty"
        try:
            size = media.picture_size(row, value)
            objects = self._objects(row) if labelled else []
        except DataError as error:
            return str(error)
        if other := [label for _, label in objects if label not in self.options["labels"]]:
            return f"its label {other[0]!r} is none of those in training, {some(self.options['labels'])}"
        if objects and (other_size := boxes.other_size(self.value(row, "objects"), size)):
            return other_size
        problems = (boxes.problem_of(box, self.options["box_format"], size) for box, _ in objects)
        wrong = next(((at, problem) for at, problem in enumerate(problems) if problem), None)
        places = boxes.places_of(self.value(row, "objects")) if wrong else ()
        return wrong and (f"{wrong[1]} ({places[wrong[0]]})" if places else wrong[1])

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        pictures = media.of_each(rows, lambda row: media.picture(row, self.value(row, "image")))
        objects = (
            [self._annotated(row, each.size) for row, each in zip(rows, pictures, strict=True)] if labelled else None
        )
        made = processor(images=pictures, annotations=objects, return_tensors="pt")
        return [
            {
                **{key: made[key][i] for key in made},
                **({"labels": dict(made["labels"][i])} if labelled else {"size": torch.tensor(each.size[::-1])}),
            }
            for i, each in enumerate(pictures)
        ]

    def _annotated(self, row: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """Return a picture's objects as COCO's annotations, which Transformers' processors take."""
        found = []
        for box, label in self._objects(row):
            left, top, right, bottom = boxes.corners(box, self.options["box_format"], size)
            sides = [left, top, right - left, bottom - top]
            number = self.options["labels"].index(label)
            found.append({"bbox": sides, "category_id": number, "area": sides[2] * sides[3], "iscrowd": 0})
        return {"image_id": 0, "annotations": found}

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        takes = inspect.signature(model.forward).parameters

        def collated(features: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = {k: torch.stack([f[k] for f in features]) for k in features[0] if k != "labels"}
            if "labels" in features[0]:
                batch["labels"] = [feature["labels"] for feature in features]
            return {key: value for key, value in batch.items() if key in takes}

        return collated

    def compute_metrics(self, names: Sequence[str], processor: Any) -> Any:
        if other := [name for name in names if name != "mean_average_precision"]:
            raise ConfigError(f"--metric {other[0]}: boxes are measured by mean_average_precision.")
        return super().compute_metrics(names, processor)

    def compared(self, rows: Dataset, processor: Any, predictions: Any, labels: Any) -> dict[str, Columns]:
        found: list[dict[str, Any]] = []
        for logits, places in predictions:
            outputs = SimpleNamespace(logits=torch.as_tensor(logits), pred_boxes=torch.as_tensor(places))
            found += processor.post_process_object_detection(outputs, threshold=0.0)
        truths = [each for batch in labels for each in batch]
        mine = [{key: value.tolist() for key, value in each.items()} for each in found]
        theirs = [
            {"labels": each["class_labels"].tolist(), "boxes": [_from_middle(box) for box in each["boxes"].tolist()]}
            for each in truths
        ]
        return {"boxes": Columns(as_objects(mine), as_objects(theirs))}

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        features = self.features(rows, processor, labelled=False)
        batch = self.collator(processor, model)(features)
        with torch.inference_mode():
            outputs = model(**{key: value.to(model.device) for key, value in batch.items()})
        sizes = torch.stack([padded_size(feature) for feature in features]).to(model.device)
        least, names = self.options["threshold"], self.options["labels"]
        return [
            {
                "labels": [names[number] for number in found["labels"].tolist()],
                "scores": found["scores"].tolist(),
                "boxes": found["boxes"].tolist(),
            }
            for found in processor.post_process_object_detection(outputs, threshold=least, target_sizes=sizes)
        ]

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        pixels, told = feature["pixel_values"], feature["labels"]
        names = [self.options["labels"][number] for number in told["class_labels"].tolist()]
        return {
            "pixel_values": f"{' x '.join(map(str, pixels.shape))}, from {pixels.min():.2f} to {pixels.max():.2f}",
            "labels": some(
                f"{n} {[round(x, 3) for x in b]}" for n, b in zip(names, told["boxes"].tolist(), strict=True)
            ),
        }


def _from_middle(box: Sequence[float]) -> list[float]:
    across, down, width, height = box
    return [across - width / 2, down - height / 2, across + width / 2, down + height / 2]


def padded_size(feature: Mapping[str, Any]) -> torch.Tensor:
    """Return the height and width, in the picture's own pixels, of what the model sees: with the padding beside it."""
    if "pixel_mask" not in feature:
        return feature["size"].float()
    mask = feature["pixel_mask"]
    shown = torch.stack([mask.any(1).sum(), mask.any(0).sum()])
    return feature["size"] * torch.tensor(mask.shape) / shown
