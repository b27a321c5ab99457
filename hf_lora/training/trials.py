"""The trials of a LoRASearch as runs of `train_together`: a few drawn at a time, trained in one pass over the base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import BestRun, default_compute_objective

from ..config.rules import is_int
from ..errors import ArgumentError
from .runs import Row, Run
from .together import train_together

TRAINED = "trained_parameters"  # a trial's user attribute: how many, as text
Objective = Callable[[dict[str, float]], Any]


class _Reports(TrainerCallback):
    """Reports a trial's objective to Optuna after each evaluation, and ends its run where Optuna would prune it."""

    def __init__(self, trial: Any, objective: Objective) -> None:
        self.trial, self.objective = trial, objective
        self.reached: Any = None
        self.is_pruned = False

    def __deepcopy__(self, memo: Any) -> _Reports:
        return self  # one run's alone, and its trial belongs to a study

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Report."""
        self.reached = self.objective(dict(metrics))
        if len(self.trial.study.directions) == 1:
            self.trial.report(self.reached, state.global_step)
            self.is_pruned = self.trial.should_prune()
            control.should_training_stop |= self.is_pruned

    def end(self, row: Row) -> None:
        """Tell the study what became of the trial. row: its run's, measured at the end where it was not before."""
        if self.reached is None:
            self.reached = self.objective({key: value for key, value in row.items() if key.startswith("eval_")})
        if self.is_pruned:
            self.trial.study.tell(self.trial, state=_state("PRUNED"))
        else:
            self.trial.study.tell(self.trial, self.reached)


def _state(name: str) -> Any:
    import optuna  # an extra

    return optuna.trial.TrialState[name]


def try_together(
    search: Any,
    study: Any,
    args: TrainingArguments,
    n_trials: int,
    at_once: int,
    objective: Objective | None,
    trainer: dict[str, Any],
) -> Any:
    """Train n_trials of a LoRASearch, at_once of them in one pass, and return the best one (or all that are)."""
    _check(study, {"n_trials": n_trials, "at_once": at_once}, trainer)
    set_seed(args.seed)
    model = search.model_init().unload()
    callbacks = tuple(trainer.pop("callbacks", None) or ())
    for begun in range(0, n_trials, at_once):
        told = [
            _Reports(study.ask(), objective or default_compute_objective) for _ in range(min(at_once, n_trials - begun))
        ]
        try:
            runs = {
                f"run-{each.trial.number}": Run(
                    search.config_of(each.trial), callbacks=[*callbacks, each], **search.arguments_of(each.trial)
                )
                for each in told
            }
            rows = train_together(model, runs, args, **trainer)
        except BaseException:
            for each in told:
                study.tell(each.trial, state=_state("FAIL"))
            raise
        for each, row in zip(told, rows, strict=True):
            count = sum(tensor.numel() for tensor in model.get_adapter_state_dict(row["name"]).values())
            each.trial.set_user_attr(TRAINED, f"{count:,d}")
            each.end(row)
        model = model.unload()
    return _best(study)


def _check(study: Any, numbers: dict[str, Any], trainer: dict[str, Any]) -> None:
    """Raise ArgumentError where trials cannot begin, or could not be compared."""
    if not hasattr(study, "ask"):
        raise ArgumentError(
            f"study: a {type(study).__name__} is given; what is wanted is a study of Optuna's, behind the arguments: "
            "train_together(args, optuna.create_study(), ...)."
        )
    if wrong := [f"{name}={n!r}" for name, n in numbers.items() if not is_int(n)]:
        raise ArgumentError(f"{', '.join(wrong)}: a number of trials is a positive integer.")
    if trainer.get("eval_dataset") is None:
        raise ArgumentError("no eval_dataset is given, by which trials are compared; eval_dataset= is for all of them.")


def _best(study: Any) -> Any:
    """Return what `Trainer.hyperparameter_search` returns."""
    if len(study.directions) > 1:
        return [BestRun(str(best.number), best.values, best.params) for best in study.best_trials]
    best = study.best_trial
    return BestRun(str(best.number), best.value, best.params)
