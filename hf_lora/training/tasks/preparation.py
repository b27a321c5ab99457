"""What a task does with rows: how it reads them, what the model gets, what is measured, and what a prediction says.

A family of tasks is a subclass. The same code prepares rows for training, evaluation and prediction, so that a reloaded
adapter sees what it was trained on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError
from ..data.checking import stream_rows
from ..data.columns import is_empty, is_replaced, place_of
from .task import TrainingTask

if TYPE_CHECKING:
    from datasets import Dataset

    from ..columns import Columns

__all__ = ["Preparation", "PreparedRows"]

LONGEST = 512  # tokens of a row, where nobody says it and the model allows more


class Preparation:
    """What one training, or one saved adapter, does with rows. Subclasses fill in the methods that raise.

    task: the row of the table. columns: the column of each role. options: what the user set that a family reads
    (`OPTIONS`), None for what is to be found out by `learn`. `record()` gives all of it as JSON, and
    `Preparation(**record)` is the same again. remarks: what is odd about the rows to train on, a sentence each.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_length",)
    cuts: ClassVar[bool] = True  # whether rows lose what is behind max_length
    smooths: ClassVar[bool] = False  # whether the Trainer's label_smoothing_factor does to its labels what it says
    # The options of an adapter that others trained, beside its labels; None where `learn` finds them without rows.
    ADOPTED: ClassVar[Mapping[str, Any] | None] = None
    processor_class: ClassVar[str] = "AutoTokenizer"  # of Transformers
    trainer_class: ClassVar[str] = "transformers.Trainer"
    arguments_class: ClassVar[str] = "transformers.TrainingArguments"
    rows_tell: ClassVar[bool] = False  # whether `look` finds out all that `problem` needs
    trains_labels: ClassVar[bool] = False  # the layer of the labels in full, where no task type of PEFT's says so

    def __init__(self, task: TrainingTask, columns: Mapping[str, str], **options: Any) -> None:
        self.task, self.columns, self.options = task, dict(columns), options
        self.remarks: list[str] = []

    @classmethod
    def fits(cls, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Return whether the first rows of a file look like this task's, where nobody says for which one it is."""
        return True

    def record(self) -> dict[str, Any]:
        """Return what makes the same preparation again, as JSON takes it."""
        return {"task": self.task.name, "columns": self.columns, **self.options}

    def know_base(self, config: Any) -> None:
        """Set `options` by a base's config, before its weights are there."""

    def look(self, rows: Dataset) -> None:
        """Find out what all the rows to train on tell by themselves: classes. Sets `options` and `remarks`.

        Raises DataError.
        """

    def labels_of(self, row: Mapping[str, Any]) -> list[str]:
        """Return a row's labels as they are counted."""
        value = self.value(row, "label")
        return [] if value is None or isinstance(value, list | dict) else [str(value).strip()]

    def load_processor(self, load: Callable[[str], Any], rows: Dataset) -> Any:
        """Return the base's processor. load: returns what an Auto class loads for the base, or raises ModelError."""
        return load(self.processor_class)

    def learn(self, rows: Dataset, processor: Any) -> None:
        """Find out what only all the rows to train on tell: classes, lengths. Sets `options`. Raises DataError."""
        if len(rows):
            self.look(rows)
        if "max_length" in self.OPTIONS and self.options.get("max_length") is None:
            self.options["max_length"] = min(LONGEST, processor.model_max_length)

    @classmethod
    def suits(cls, config: Any) -> bool:
        """Return whether a model of the task's classes may have learnt this task, by its config."""
        return True

    def adopt(self, model: Any, processor: Any) -> None:
        """Set `options` by what a model says, whose training nobody wrote down."""
        if "labels" in self.OPTIONS:
            names = model.config.id2label
            self.options["labels"] = [names[number] for number in range(len(names))]
        if self.ADOPTED is None:
            self.learn((), processor)
        else:
            self.options |= {k: v for k, v in self.ADOPTED.items() if self.options.get(k) is None}
            Preparation.learn(self, (), processor)
        self.fit_model(model, processor)

    def model_arguments(self) -> dict[str, Any]:
        """Return what the base is loaded with, such as its labels."""
        return {}

    def training_arguments(self) -> dict[str, Any]:
        """Return the arguments of the Trainer's that this task sets by itself."""
        return {}

    def fit_model(self, model: Any, processor: Any) -> None:
        """Set on a loaded model, before it trains, what the task needs beside the arguments (a pad token)."""

    def value(self, row: Mapping[str, Any], role: str) -> Any:
        """Return what a row has for a role; None where it is empty, or where it has no such column."""
        found = row.get(self.columns.get(role, ""))
        return None if is_empty(found) else found

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        """Return what is wrong with a row, and what to do; None where it can be used."""
        if absent := [name for name in self._learnt_with() if self.columns[name] not in row]:
            return (
                f"it has no column {self.columns[absent[0]]!r} ({absent[0]}), which was there in training: say "
                f"--column {absent[0]}=NAME, or add one, empty where a row has none"
            )
        empty = next((name for name in self.needed(labelled) if self.value(row, name) is None), None)
        return empty and self.missing(row, empty)

    def _learnt_with(self) -> list[str]:
        """Return the roles that the task does without, but the model did not, as the second of two texts."""
        roles = self.task.roles
        instead = {name for role in roles for name in role.unless}
        optional = [r.name for r in roles if not (r.is_required or r.is_label or r.name in instead)]
        return [name for name in optional if name in self.columns]

    def missing(self, row: Mapping[str, Any], role: str) -> str:
        """Say that a row has nothing for a role."""
        column = self.columns.get(role, role)
        said = "" if is_empty(row.get(column)) else f": it says {row[column]!r}"
        return f"its {role} (column {column!r}) is empty{said}"

    def needed(self, labelled: bool) -> Sequence[str]:
        """Return the roles that every row has to have something for."""
        roles = [role for role in self.task.roles if role.is_required and (labelled or not role.is_label)]
        return [role.name for role in roles if not is_replaced(role, self.task.roles, self.columns)]

    def check(self, rows: Iterable[Mapping[str, Any]], labelled: bool = True) -> None:
        """Raise DataError where rows cannot be used; it names the first of them."""
        wrong = ((row, problem) for row in stream_rows(rows) if (problem := self.problem(row, labelled)))
        if found := [f"{place_of(row)}: {problem}" for row, problem in islice(wrong, 4)]:
            raise DataError(f"{'; '.join(found)}. Mend these rows, or take them out of the file.")

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        """Return what the collator takes, one a row. labelled: with what is to be learnt."""
        raise NotImplementedError

    def dataset(self, rows: Dataset, processor: Any, labelled: bool = True) -> Any:
        """Return the rows as the Trainer reads them: prepared when they are asked for, never all at once."""
        return PreparedRows(
            rows,
            lambda some: self.features(some, processor, labelled),
            lambda predictions, labels: self.compared(rows, processor, predictions, labels),
        )

    def compared(self, rows: Dataset, processor: Any, predictions: Any, labels: Any) -> dict[str, Columns]:
        """Return what metrics compare where only the rows tell it, by its kind (`readers.READERS`).

        predictions, labels: what a Trainer gathered of the model for these rows, in their order.
        """
        return {}

    def training_dataset(self, rows: Dataset, processor: Any) -> Any:
        """Return the rows to train on as the Trainer reads them; a family may vary them at random."""
        return self.dataset(rows, processor)

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return what makes a batch of features."""
        module, _, name = self.task.collator.rpartition(".")
        return getattr(importlib.import_module(module), name)(processor)

    def compute_metrics(self, names: Sequence[str], processor: Any) -> Any:
        """Return the Trainer's compute_metrics for these metrics."""
        from ..metrics import metrics

        return metrics(*names, options={k: v for k, v in self.metric_options().items() if k in names})

    def metrics(self) -> tuple[str, ...]:
        """Return what is measured where nobody says it."""
        return self.task.metrics

    def metric_options(self) -> dict[str, dict[str, Any]]:
        """Return the options of metrics by their names."""
        return {}

    def positive(self) -> str | None:
        """Return the label that f1, precision and recall are of, where there are two; None where they are averages."""
        is_one = self.metric_options().get("f1", {}).get("average") == "binary"
        return str(self.options["labels"][1]) if is_one and len(self.options["labels"]) == 2 else None

    def outputs(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Return a model's outputs for a batch of rows without labels. The model is in eval mode."""
        import torch

        batch = self.collator(processor, model)(self.features(rows, processor, labelled=False))
        with torch.inference_mode():
            return model(**{key: value.to(model.device) for key, value in batch.items()})

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return what the model says of each row of a batch, as JSON takes it. The rows need no labels."""
        raise NotImplementedError

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        """Return what a model sees of a feature, in words, for `--dry-run`."""
        return {key: _short(processor.decode(value) if key == "input_ids" else value) for key, value in feature.items()}


def _short(value: Any, most: int = 200) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


class PreparedRows:
    """A torch Dataset (map-style) of rows that are prepared a batch at a time."""

    def __init__(
        self,
        rows: Dataset,
        prepare: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
        compared: Callable[[Any, Any], dict[str, Columns]],
    ) -> None:
        self._rows, self._prepare, self.compared = rows, prepare, compared

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._prepare([self._rows[index]])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return self._prepare(self._rows.select(indices).to_list())
