"""Searching an adapter's rank, scaling, targets and learning rate with the stock Trainer and Optuna."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import BestRun

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError, ConfigError, MissingExtraError, ModelError
from ..model.lora_model import LoRAModel
from ..model.report import aligned, trainable_counts
from .space import LORA_NAMES, Range, Space, checked_space, config_with, default_space, labels

__all__ = ["LoRASearch", "Range"]

_TRAINED = "trained_parameters"  # a trial's user attribute


class LoRASearch:
    """What `Trainer.hyperparameter_search` needs to try adapters: a model for each trial, and what to draw for it.

        search = LoRASearch("bert-base-uncased", LoRAConfig(task_type="SEQ_CLS"), num_labels=2)
        trainer = Trainer(model_init=search.model_init, args=args, train_dataset=..., eval_dataset=...)
        best = trainer.hyperparameter_search(hp_space=search.hp_space, backend="optuna", n_trials=20)
        print(search.table())

    base: a Hub id or directory, or a function that returns a new base at each call. Trials never share one.
    space: name -> choices (a list or tuple) or a `Range`. A name is a field of LoRAConfig, a field of
        TrainingArguments, or `scaling`, which sets lora_alpha to what makes it the factor on B A (r times as much;
        with use_rslora, sqrt(r) times). Where r is drawn alone, lora_alpha stays as given and the scaling falls with r.
        Left out, it is what `default_space` of `training/space.py` gives.
    kwargs: go to `LoRAModel.from_pretrained`: num_labels, dtype, ...

    A trial's checkpoints lie where the Trainer puts them, `<output_dir>/run-<trial>/checkpoint-<step>`, each an
    adapter that LoRAModel.from_pretrained loads; how many are kept, `save_strategy` and `save_total_limit` say.
    Raises ConfigError for a space with a value that cannot be, MissingExtraError.

    >>> search = LoRASearch("bert-base-uncased", space={"r": (4, 8), "scaling": (1, 2), "target_modules": ("auto",)})
    >>> search.config_of({"r": 4, "scaling": 2, "target_modules": "auto"}).lora_alpha
    8
    """

    def __init__(
        self,
        base: str | os.PathLike[str] | Callable[[], nn.Module],
        lora_config: LoRAConfig | None = None,
        *,
        space: Space | None = None,
        **kwargs: Any,
    ) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise MissingExtraError(
                'a search needs the package optuna, which is not here; pip install "hf-lora[search]".'
            )
        if callable(base) and kwargs:
            raise TypeError(f"{', '.join(sorted(kwargs))}: these load a base, but the given function does that.")
        self.config = lora_config or LoRAConfig()
        self.space = checked_space(default_space(self.config) if space is None else space, self.config)
        self.study: Any = None  # Optuna's, from the first trial on
        self._thread = 0
        self._base, self._kwargs = base, kwargs

    def model_init(self, trial: Any = None) -> LoRAModel:
        """Return a new model with a fresh adapter: the config as given, or with what a trial draws.

        trial: Optuna's, a mapping of names to values, or None. The Trainer seeds before it calls this.
        """
        drawn = self._drawn(trial)
        if "seed" in drawn:  # the Trainer takes it over only after this
            set_seed(drawn["seed"])
        config = config_with(self.config, {name: drawn[name] for name in drawn if name in LORA_NAMES})
        model = self._loaded(config)
        if hasattr(trial, "set_user_attr"):
            trial.set_user_attr(_TRAINED, trainable_counts(model)[0])
        return model

    def hp_space(self, trial: Any) -> dict[str, Any]:
        """Draw a trial's values, and return those that are TrainingArguments' own.

        Raises ConfigError for a trial of another backend.
        """
        if not hasattr(trial, "suggest_categorical"):
            raise ConfigError(
                f"LoRASearch draws with Optuna's trials, not with {type(trial).__name__}; call "
                'hyperparameter_search(..., backend="optuna").'
            )
        return {name: value for name, value in self._drawn(trial).items() if name not in LORA_NAMES}

    def config_of(self, best: BestRun | Mapping[str, Any]) -> LoRAConfig:
        """Return the LoRAConfig of what `hyperparameter_search` returned, or of a trial's values."""
        values = self._values(best.hyperparameters if isinstance(best, BestRun) else best)
        return config_with(self.config, {name: value for name, value in values.items() if name in LORA_NAMES})

    def arguments_of(self, best: BestRun | Mapping[str, Any]) -> dict[str, Any]:
        """Return what goes into TrainingArguments of the same; the Trainer's own hold the last trial's by then."""
        values = self._values(best.hyperparameters if isinstance(best, BestRun) else best)
        return {name: value for name, value in values.items() if name not in LORA_NAMES}

    def check_arguments(self, trial: Any, args: TrainingArguments) -> None:
        """Raise ConfigError where a Trainer's arguments do not hold what a trial drew, or hold what is the adapter's.

        The Trainer casts each value to the type of the one before: 0.1 becomes 0 where TrainingArguments had 0.
        """
        drawn = {} if trial is None else self.hp_space(trial)
        for name, value in drawn.items():
            if (kept := getattr(args, name)) != value:
                cure = "pass hp_space=search.hp_space to hyperparameter_search()"
                if type(kept) is not type(value):
                    cure = (
                        f"it casts to the type of what they held; give TrainingArguments a {type(value).__name__} there"
                    )
                raise ConfigError(f"{name}={value!r} was drawn, but the Trainer's arguments hold {kept!r}: {cure}.")
        if strays := [name for name in self.space if name in LORA_NAMES and name in vars(args)]:
            raise ConfigError(
                f"{', '.join(strays)}: set on the Trainer's arguments, these change no adapter. Train the best trial's "
                "with LoRAModel.from_pretrained(base, search.config_of(best)) in a Trainer(model=...)."
            )

    def table(self) -> str:
        """Return a table of every trial so far: what was drawn, the value reached, how it ended, what trained.

        A pruned trial's value is its last one. Of a run in several processes only the first one knows.
        Raises AdapterStateError before the first trial.
        """
        if self.study is None:
            raise AdapterStateError("no trial was drawn in this process yet; run hyperparameter_search() first.")
        trials = self.study.get_trials(deepcopy=False)
        done = [trial for trial in trials if trial.state.name == "COMPLETE"]
        best = {trial.number for trial in self.study.best_trials} if done else set()
        names = list(self.space)
        if "scaling" in self.space:
            names.insert(names.index("scaling") + 1, "lora_alpha")
        lines = [("trial", *names, "value", "state", "parameters")]
        for trial in trials:
            values = self._shown(trial.params)
            state = {"COMPLETE": "complete", "FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
            trained = trial.user_attrs.get(_TRAINED)
            cells = (str(trial.number), *(_cell(values.get(name, "-")) for name in names), _reached(trial))
            note = ", best" if trial.number in best else ""
            lines.append((*cells, state + note, "-" if trained is None else f"{trained:,d}"))
        return aligned(lines)

    def _drawn(self, trial: Any) -> dict[str, Any]:
        """Return name -> value of a trial, the same at each call; in the space's order, so that a seed fixes them."""
        if trial is None:
            return {}
        if isinstance(trial, Mapping):
            return self._values(trial)
        self._take(getattr(trial, "study", self.study))
        drawn = {}
        for name, where in self.space.items():
            if isinstance(where, Range):
                drawn[name] = where.suggest(trial, name)
            else:
                choices = labels(where)
                drawn[name] = choices[trial.suggest_categorical(name, list(choices))]
        return drawn

    def _take(self, study: Any) -> None:
        """Keep a trial's study. Raises ConfigError for trials in several threads: they share a Trainer's model."""
        thread = threading.get_ident()
        if study is not None and study is self.study and thread != self._thread:
            raise ConfigError(
                "the trials run in several threads, and one Trainer trains one model at a time: leave out n_jobs. To "
                "try several at once, start this script several times with the same storage= and study_name=, "
                "load_if_exists=True."
            )
        self.study, self._thread = study, thread

    def _values(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of this space that a trial recorded, lists in the place of their text."""
        found = {name: value for name, value in recorded.items() if name in self.space}
        for name, value in found.items():
            where = self.space[name]
            if not isinstance(where, Range) and not isinstance(value, list | dict):
                found[name] = labels(where).get(value, value)
        return found

    def _loaded(self, config: LoRAConfig) -> LoRAModel:
        if not callable(self._base):
            return LoRAModel.from_pretrained(self._base, config, **self._kwargs)
        model = self._base()
        if isinstance(model, LoRAModel):
            raise ModelError("the function that makes the base returned one with adapters; it must make a new one.")
        return LoRAModel.from_model(model, config)

    def _shown(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial recorded, and the lora_alpha that its scaling stands for."""
        if "scaling" in params and "lora_alpha" not in params:
            return {**params, "lora_alpha": self.config_of(params).lora_alpha}
        return dict(params)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _reached(trial: Any) -> str:
    """Return a trial's value, or values; of one that was stopped, the last it reported."""
    values = trial.values or ([trial.intermediate_values[s]] if (s := trial.last_step) is not None else [])
    return ", ".join(f"{value:.6g}" for value in values) or "-"
