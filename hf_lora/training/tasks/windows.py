"""Rows that may be longer than a model reads: each becomes one window or several, and none loses its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import ModelError
from .preparation import Preparation, PreparedRows
from .texts import pad

if TYPE_CHECKING:
    from datasets import Dataset

_AT_ONCE = 256  # rows whose windows are counted at a time


class Windowed(Preparation):
    """A task whose rows are cut into windows: `windows` says how."""

    cuts: ClassVar[bool] = False

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        if not processor.is_fast:
            raise ModelError(
                f"{type(processor).__name__} does not say where in a text its tokens stand, which --task "
                f"{self.task.name} needs: take a base with a fast tokenizer (tokenizer.json)."
            )

    def windows(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[list[dict[str, Any]]]:
        """Return the features of each row's windows, at least one."""
        raise NotImplementedError

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        return [window for windows in self.windows(rows, processor, labelled) for window in windows]

    def dataset(self, rows: Dataset, processor: Any, labelled: bool = True) -> WindowedRows:
        starts = range(0, len(rows), _AT_ONCE)
        batches = (rows.select(range(start, min(start + _AT_ONCE, len(rows)))).to_list() for start in starts)
        counts = [len(windows) for batch in batches for windows in self.windows(batch, processor, labelled)]
        return WindowedRows(
            rows,
            lambda some: self.windows(some, processor, labelled),
            lambda predictions, labels: self.compared(rows, processor, predictions, labels),
            counts,
        )

    def outputs(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Return the logits of each of the rows' windows, (tokens, ...), in float32 on the CPU; of each output a list.

        As many windows run at once as there are rows. The model is in eval mode.
        """
        import torch

        features, most = self.features(rows, processor, labelled=False), len(rows)
        collate = self.collator(processor, model)
        found: list[Any] = []
        for start in range(0, len(features), most):
            batch = collate(features[start : start + most])
            with torch.inference_mode():
                made = model(**{key: value.to(model.device) for key, value in batch.items()})
            heads = [made[name].float().cpu() for name in ("logits", "start_logits", "end_logits") if name in made]
            found += zip(*heads, strict=True)
        return found

    def fit_model(self, model: Any, processor: Any) -> None:
        pad(model, processor)
        processor.padding_side = "right"  # a window's token stands where it stands in its batch


class WindowedRows(PreparedRows):
    """A torch Dataset (map-style) of the windows of rows. counts: how many windows each row has."""

    def __init__(self, rows: Dataset, windows: Any, compared: Any, counts: Sequence[int]) -> None:
        super().__init__(rows, windows, compared)
        self.row = np.repeat(np.arange(len(rows)), counts)
        self._part = np.arange(len(self.row)) - np.repeat(np.cumsum(counts) - counts, counts)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        wanted = list(dict.fromkeys(self.row[indices].tolist()))
        made = dict(zip(wanted, self._prepare(self._rows.select(wanted).to_list()), strict=True))
        return [made[self.row[i]][self._part[i]] for i in indices]


def cut_up(encoded: Any, rows: int) -> list[list[int]]:
    """Return the numbers of each row's windows in what a tokenizer returned with return_overflowing_tokens=True."""
    found: list[list[int]] = [[] for _ in range(rows)]
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        found[row].append(window)
    return found


def model_inputs(encoded: Any, window: int, processor: Any) -> dict[str, Any]:
    """Return what a model reads of a window."""
    return {key: encoded[key][window] for key in processor.model_input_names if key in encoded}
