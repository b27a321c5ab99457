"""A finished run's adapter, used as it was trained: loaded with its processor and its way to prepare rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import transformers

from ...model.lora_model import LoRAModel
from ..tasks.preparation import Preparation
from .record import load_preparation

__all__ = ["TrainedRun", "load_run"]


@dataclass(frozen=True)
class TrainedRun:
    """An adapter that predicts: the model in eval mode, its processor, and how rows are prepared."""

    model: Any
    processor: Any
    preparation: Preparation

    def predict(self, rows: Iterable[Mapping[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield what the model says of each row, in their order, a batch at a time. Raises DataError."""
        waiting = iter(rows)
        while batch := list(islice(waiting, batch_size)):
            self.preparation.check(batch, labelled=False)
            yield from self.preparation.predictions(self.model, self.processor, batch)


def load_run(name: str | os.PathLike[str]) -> TrainedRun:
    """Load a run's adapter onto its base. Raises AdapterFileError, and what LoRAModel.from_pretrained raises."""
    folder = Path(name)
    preparation = load_preparation(folder)
    model = LoRAModel.from_pretrained(str(folder)).eval()
    processor = getattr(transformers, preparation.processor_class).from_pretrained(folder)
    preparation.fit_model(model, processor)
    return TrainedRun(model, processor, preparation)
