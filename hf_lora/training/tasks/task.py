"""A task of `hf-lora train`: what its row in the table says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config.tasks import TASKS as MODEL_TASKS
from ...config.tasks import Task
from ..data.columns import Role

__all__ = ["TrainingTask"]


@dataclass(frozen=True)
class TrainingTask:
    """A task of the command line.

    models: the Auto classes whose models it trains (rows of `config.tasks`, which know heads, tag and task type).
    roles: the columns it needs. collator: the dotted name of a class that is made with the processor. metrics: what is
    measured, the first chooses the best checkpoint; names beginning with "-" are better when lower. rate, epochs,
    batch_size: the defaults; the rate is that of its models unless given. says: one line for the help. preparation: the
    Preparation that does it.
    """

    name: str
    models: tuple[str, ...]
    roles: tuple[Role, ...]
    collator: str
    metrics: tuple[str, ...]
    says: str
    preparation: type[Any]
    rate: float | None = None
    epochs: float = 3.0
    batch_size: int = 16

    @property
    def learning_rate(self) -> float:
        """The peak learning rate of plain LoRA."""
        return self.model_tasks[0].learning_rate if self.rate is None else self.rate

    @property
    def model_tasks(self) -> list[Task]:
        """The rows of the table of models."""
        return [task for task in MODEL_TASKS if task.auto_class in self.models]

    def described(self) -> dict[str, Any]:
        """Return what people are told of the task, as JSON types. optional: the columns that may be missing."""
        return {
            "task": self.name,
            "says": self.says,
            "columns": [role.name for role in self.roles if role.is_required],
            "optional": [role.name for role in self.roles if not role.is_required],
            "metrics": list(self.metrics),
            "models": list(self.models),
        }

    def model_task(self, config: Any) -> Task | None:
        """Return the first row of the table of models that the task trains and a base's config is of.

        An encoder sees the words behind, too, so it is none for AutoModelForCausalLM, although there are such classes.
        """
        return next((row for row in self.model_tasks if row.auto_class not in _others(config)), None)


def _others(config: Any) -> set[str]:
    """Return the Auto classes that a config is not for."""
    import transformers

    known = {
        task.auto_class for task in MODEL_TASKS if type(config) in getattr(transformers, task.auto_class)._model_mapping
    }
    sees_all = known & {"AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"} and not getattr(config, "is_decoder", False)
    return {task.auto_class for task in MODEL_TASKS} - known | ({"AutoModelForCausalLM"} if sees_all else set())
