"""The set-up and the results of a training run, as the model card takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["TrainingFacts"]


@dataclass(frozen=True)
class TrainingFacts:
    """The set-up and the outcome of a training run.

    hyperparameters: by the names that Transformers' own cards give them. metrics: of the latest evaluation, without
    the "eval_" prefix. metric_settings: by a metric's name, the options that it was computed with. splits: the names of
    the data sets where there are several; their metrics are called "{split}_{metric}". The others are what the user
    gave to `create_model_card` or `push_to_hub`, None where nothing was: dataset_tags are ids of the Hub, dataset their
    names in words, dataset_args their configurations.
    """

    hyperparameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    metric_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    dataset: str | list[str] | None = None
    dataset_args: str | list[str] | None = None
    dataset_tags: str | list[str] | None = None
    language: str | list[str] | None = None
    license: str | None = None
    tags: str | list[str] | None = None
    model_name: str | None = None
    tasks: str | list[str] | None = None
