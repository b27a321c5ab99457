"""Searching an adapter's rank, scaling, targets and learning rate with the stock Trainer and Optuna."""

import importlib.util
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import BestRun

from ..config.lora_config import LoRAConfig
from ..errors import AdapterStateError, ConfigError, LoRAError, MissingExtraError, ModelError
from ..layers.layer import base_modules
from ..model.arguments import as_config
from ..model.lora_model import LoRAModel
from ..model.report import aligned, trainable_counts
from ..targets.names import settle_layers
from ..targets.plan import plan
from ..variants.table import scaling_of
from .space import ADAPTERS, Range, Space, checked, default_space, meant, suggested
from .trials import TRAINED, Objective, try_together

_COMBINATIONS = 10_000  # of choices that are tried as a LoRAConfig each, at about 10 microseconds
_PLANS = 100  # of targets that are looked for in the first model
_NUMBERS = {"r", "lora_alpha", "scaling", "lora_dropout"}  # of a config, which say nothing about its targets


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
        Left out, it is `default_space(lora_config)`.
    kwargs: go to `LoRAModel.from_pretrained`: num_labels, dtype, ...

    A trial's checkpoints lie in `<output_dir>/run-<trial>/checkpoint-<step>`, each an adapter that
    LoRAModel.from_pretrained loads. Raises ConfigError for a space with a value that cannot be, MissingExtraError.

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
                'a search needs the package optuna, which is not here; run pip install ".[search]" in a checkout.'
            )
        if callable(base) and kwargs:
            raise TypeError(f"{', '.join(sorted(kwargs))}: these load a base, but the given function does that.")
        self.config = as_config(lora_config)
        self.space = checked(default_space(self.config) if space is None else space)
        self.study: Any = None  # Optuna's, from the first trial on
        self._base, self._kwargs, self._thread = base, kwargs, 0
        self._configs = self._try_combinations()

    def model_init(self, trial: Any = None) -> LoRAModel:
        """Return a new model with a fresh adapter: the config as given, or with what a trial draws.

        trial: Optuna's, a mapping of names to values, or None. The Trainer seeds before it calls this.
        """
        values = self._values(trial)
        if "seed" in values:  # the Trainer takes it over only after this
            set_seed(values["seed"])
        model = self._new(self._config_with(values))
        self._try_targets(model)
        if hasattr(trial, "set_user_attr"):
            trial.set_user_attr(TRAINED, f"{trainable_counts(model)[0]:,d}")
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
        return self.arguments_of(trial)

    def train_together(
        self,
        args: TrainingArguments,
        study: Any,
        *,
        n_trials: int = 20,
        at_once: int = 8,
        compute_objective: Objective | None = None,
        **trainer: Any,
    ) -> Any:
        """Try n_trials, at_once of them in one pass over one base (`train_together`), and return the best.

            best = search.train_together(args, optuna.create_study(), n_trials=16, train_dataset=..., eval_dataset=...)

        study: Optuna's, with its sampler, pruner and direction; a trial that is pruned leaves the batch. All trials
        begin with one head. compute_objective: as in `hyperparameter_search`, which tries one after the other.
        trainer: what every trial's Trainer is given.
        """
        return try_together(self, study, args, n_trials, at_once, compute_objective, trainer)

    def config_of(self, best: BestRun | Mapping[str, Any]) -> LoRAConfig:
        """Return the LoRAConfig of what `hyperparameter_search` returned, or of a trial's values."""
        return self._config_with(self._values(best))

    def arguments_of(self, best: BestRun | Mapping[str, Any]) -> dict[str, Any]:
        """Return what goes into TrainingArguments of the same; the Trainer's own hold the last trial's by then."""
        return {name: value for name, value in self._values(best).items() if name not in ADAPTERS}

    def check_arguments(self, trial: Any, args: TrainingArguments) -> None:
        """Raise ConfigError where a Trainer's arguments do not hold what a trial drew, or hold what is the adapter's.

        The Trainer casts each value to the type of the one before: 0.1 becomes 0 where TrainingArguments had 0.
        """
        for name, value in self.arguments_of(trial).items():
            if (kept := getattr(args, name)) != value:
                raise ConfigError(
                    f"{name}={value!r} was drawn, but the Trainer's arguments hold {kept!r}: pass "
                    "hp_space=search.hp_space to hyperparameter_search(), and give TrainingArguments a "
                    f"{type(value).__name__} there, because each value is cast to the type of what they held."
                )
        if strays := [name for name in self.space if name in ADAPTERS and name in vars(args)]:
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
        complete = any(trial.state.name == "COMPLETE" for trial in trials)
        ties = self.study.best_trials if complete else []
        best = {trial.number for trial in (ties if len(self.study.directions) > 1 else ties[:1])}
        names = [each for name in self.space for each in ((name, "lora_alpha") if name == "scaling" else (name,))]
        rows = [self._row(trial, names, trial.number in best) for trial in trials]
        return aligned([("trial", *names, "value", "state", "parameters"), *rows])

    def _row(self, trial: Any, names: Sequence[str], is_best: bool) -> tuple[str, ...]:
        drawn = {"lora_alpha": self.config_of(trial.params).lora_alpha, **trial.params}
        cells = (f"{drawn[n]:.3g}" if isinstance(drawn.get(n), float) else str(drawn.get(n, "-")) for n in names)
        last = [] if trial.last_step is None else [trial.intermediate_values[trial.last_step]]
        reached = ", ".join(f"{value:.6g}" for value in trial.values or last)
        state = "failed" if trial.state.name == "FAIL" else trial.state.name.lower()
        state += ", best" if is_best else ""
        return str(trial.number), *cells, reached or "-", state, trial.user_attrs.get(TRAINED, "-")

    def _new(self, config: LoRAConfig) -> LoRAModel:
        if not callable(self._base):
            return LoRAModel.from_pretrained(self._base, config, **self._kwargs)
        base = self._base()
        if isinstance(base, LoRAModel):
            raise ModelError("the function that makes the base returned one with adapters; it must make a new one.")
        return LoRAModel.from_model(base, config)

    def _values(self, trial: Any) -> dict[str, Any]:
        """Return name -> value of an Optuna trial (the same at each call), of recorded values, or of a best run."""
        values = trial.hyperparameters if isinstance(trial, BestRun) else trial or {}
        if not isinstance(values, Mapping):
            self._take(trial)
            values = {name: suggested(trial, name, where) for name, where in self.space.items()}
        return {name: meant(values[name], where) for name, where in self.space.items() if name in values}

    def _take(self, trial: Any) -> None:
        """Keep a trial's study. Raises ConfigError for trials in several threads, which would share one model."""
        study, thread = getattr(trial, "study", self.study), threading.get_ident()
        if study is self.study is not None and thread != self._thread:
            raise ConfigError(
                "the trials run in several threads, and one Trainer trains one model at a time: leave out n_jobs. To "
                "try several at once, start this script several times with the same storage= and study_name=, "
                "load_if_exists=True."
            )
        self.study, self._thread = study, thread

    def _config_with(self, values: Mapping[str, Any]) -> LoRAConfig:
        """Return the config with some fields changed; `scaling` sets the lora_alpha that gives it."""
        fields = {name: value for name, value in values.items() if name in ADAPTERS and name != "scaling"}
        config = self.config.copy(**fields)
        if "scaling" not in values:
            return config
        alpha = values["scaling"] / scaling_of(config).of(1.0, config.r)
        return config.copy(lora_alpha=int(alpha) if float(alpha).is_integer() else alpha)

    def _try_combinations(self) -> list[LoRAConfig]:
        """Return the configs that trials can have, each set of targets once; of a range the ends are tried."""
        wheres = {name: where for name, where in self.space.items() if name in ADAPTERS}
        tried = [(w.low, w.high) if isinstance(w, Range) else w for w in wheres.values()]
        found: dict[str, LoRAConfig] = {}
        for values in itertools.islice(itertools.product(*tried), _COMBINATIONS):
            drawn = dict(zip(wheres, values, strict=True))
            try:
                config = self._config_with(drawn)
            except (ConfigError, TypeError) as error:
                raise ConfigError(f"the search space has {drawn}, which cannot be: {error}") from error
            found.setdefault(repr({name: value for name, value in drawn.items() if name not in _NUMBERS}), config)
        return list(found.values())

    def _try_targets(self, model: LoRAModel) -> None:
        """Raise ConfigError where the first model has no place for what another trial would adapt."""
        configs, self._configs = self._configs[:_PLANS], []
        for config in configs:
            try:
                plan(model, settle_layers(model, config, dict(base_modules(model))))
            except LoRAError as error:
                raise ConfigError(
                    f"the search space has target_modules={config.target_modules!r} and more that a trial would "
                    f"adapt, which cannot be: {error}"
                ) from error
