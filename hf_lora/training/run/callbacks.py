"""What listens to a run's Trainer: the choice of the best checkpoint, and what tells of its progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from ...errors import ConfigError

__all__ = ["BestBy", "Progresses"]


class BestBy(TrainerCallback):
    """Chooses the best checkpoint by a metric, and among equals by the loss: few rows have few different accuracies.

    results: the metric of each result, by name, as `Metrics.names` knows them once something is measured. A metric's
    last result chooses: rouge's rougeL, seqeval's overall_f1.
    """

    def __init__(self, name: str, results: Mapping[str, str]) -> None:
        self.name, self.results = name, results

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Name the result in the Trainer's arguments. Raises ConfigError where there is none."""
        metrics = kwargs["metrics"]
        names = [key.removeprefix("eval_") for key in metrics]
        found = [n for n in names if n == self.name] or [n for n in names if self.results.get(n) == self.name]
        if not found:
            raise ConfigError(f"--metric {self.name}: what is measured has no such result, but {', '.join(names)}.")
        args.metric_for_best_model = f"eval_{found[-1]}"
        value, loss = metrics[args.metric_for_best_model], metrics.get("eval_loss", math.inf)
        if value == state.best_metric and loss < self._loss_of(state):
            # The Trainer takes what is better than this: the same value is, by the last bit.
            state.best_metric = math.nextafter(value, -math.inf if args.greater_is_better else math.inf)

    @staticmethod
    def _loss_of(state: Any) -> float:
        """Return the loss of the best evaluation so far."""
        logs = (log for log in state.log_history if log.get("step") == state.best_global_step and "eval_loss" in log)
        return next((log["eval_loss"] for log in logs), -math.inf)


class Progresses(TrainerCallback):
    """Tells how far a training is. step: gets the steps done, all of them, and the last loss; say: a line of words."""

    def __init__(self, step: Callable[[int, int, float | None], None], say: Callable[[str], None]) -> None:
        self.step, self.say, self.loss = step, say, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell where it begins: a resumed training does so in the middle."""
        self.step(state.global_step, state.max_steps, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of a step."""
        self.step(state.global_step, state.max_steps, self.loss)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell what an evaluation between the steps measured."""
        logs = kwargs["logs"]
        self.loss = logs.get("loss", self.loss)
        if "eval_runtime" in logs:
            skipped = ("runtime", "per_second", "preparation_time")
            named = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_")}
            told = ", ".join(f"{k} {v:.4g}" for k, v in named.items() if not k.endswith(skipped))
            self.say(f"step {state.global_step} of {state.max_steps}, epoch {logs.get('epoch', 0):.3g}: {told}")
