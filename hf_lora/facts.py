"""What a training run knows of itself, for the model card."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["TrainingFacts"]


@dataclass(frozen=True)
class TrainingFacts:
    """The set-up and the outcome of a training run.

    hyperparameters: by the names that Transformers' own cards give them. metrics: of the latest evaluation, without
    the "eval_" prefix. The others are what the user gave to `create_model_card` or `push_to_hub`, None where nothing
    was: dataset_tags are ids of the Hub, dataset their names in words, dataset_args their configurations.
    """

    hyperparameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    dataset: str | list[str] | None = None
    dataset_args: str | list[str] | None = None
    dataset_tags: str | list[str] | None = None
    language: str | list[str] | None = None
    license: str | None = None
    tags: str | list[str] | None = None
    model_name: str | None = None
    tasks: str | list[str] | None = None
