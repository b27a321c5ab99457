"""The stock Trainer searches adapters with Optuna: what is drawn is what trains, and a table says how it went."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from hf_lora import LoRAConfig, LoRAModel, LoRASearch
from hf_lora.errors import ConfigError, LoRAError, MissingExtraError, ModelError

from .peek import Range, default_space
from .tiny import tiny
from .trainings import DEFAULTS, Rows

optuna = pytest.importorskip("optuna")

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

SPACE = {
    "r": (2, 3, 4),
    "scaling": (1, 2),
    "target_modules": ("auto", "all-linear", ["key"]),
    "learning_rate": Range(1e-3, 1e-1, log=True),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("bert", "BertModel").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def search_of(base: Any, **changes: Any) -> LoRASearch:
    return LoRASearch(base, LoRAConfig(task_type="SEQ_CLS"), **{"space": SPACE, "num_labels": 2, **changes})


def trainer(search: LoRASearch, out: Path, cls: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(str(out), **{**DEFAULTS, **settings, **changes})
    return cls(model_init=search.model_init, args=args, train_dataset=Rows(), eval_dataset=Rows(8))


def run(search: LoRASearch, out: Path, n_trials: int = 4, cls: type[Trainer] = Trainer, **changes: Any) -> Any:
    """Search; changes go to the Trainer's arguments where these have such a name, else to the search."""
    fields = {name: changes.pop(name) for name in set(changes) & TrainingArguments.__dataclass_fields__.keys()}
    sampler = optuna.samplers.RandomSampler(seed=0)
    given = {"hp_space": search.hp_space, "direction": "minimize", "sampler": sampler, **changes}
    return trainer(search, out, cls, **fields).hyperparameter_search(backend="optuna", n_trials=n_trials, **given)


class Watched(Trainer):
    """A Trainer that notes what each trial's training had."""

    trained: list[tuple[Any, ...]]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)
        config = self.model.peft_config["default"]
        rows = [line.split()[0].split(".")[-1] for line in self.model.targets_report().splitlines() if ", r=" in line]
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.__class__.trained.append((config.r, config.lora_alpha, sorted(rows), self.args.learning_rate, count))
        return result


def test_every_trial_trains_what_it_drew_and_the_table_says_so(base: Path, tmp_path: Path) -> None:
    Watched.trained, search = [], search_of(base)
    best = run(search, tmp_path, cls=Watched)
    targets = {
        "auto": ["query", "value"], "['key']": ["key"],
        "all-linear": ["dense"] * 3 + ["key", "query", "value"],
    }  # fmt: skip
    lines = search.table().splitlines()
    assert lines[0].split() == ["trial", "r", "scaling", "lora_alpha", "target_modules", "learning_rate", "value", "state", "parameters"]  # fmt: skip
    assert len(lines) == 5
    assert len({line.split()[1] for line in lines[1:]}) > 1, "one rank only, so this test proves nothing"
    for trial, line, (r, alpha, rows, rate, count) in zip(search.study.trials, lines[1:], Watched.trained, strict=True):
        drawn = trial.params
        assert (r, alpha, rate) == (drawn["r"], drawn["r"] * drawn["scaling"], drawn["learning_rate"])
        assert rows == targets[drawn["target_modules"]]
        best_too = ", best" if str(trial.number) == best.run_id else ""
        assert " ".join(line.split()) == (
            f"{trial.number} {r} {drawn['scaling']} {alpha} {drawn['target_modules']} {rate:.3g} {trial.value:.6g} "
            f"complete{best_too} {count:,d}"
        )
    assert best.objective == min(trial.value for trial in search.study.trials)


def test_a_trial_is_the_training_of_its_own_config(base: Path, tmp_path: Path) -> None:
    search = search_of(base)
    best = run(search, tmp_path / "search", n_trials=3)
    again = search_of(base)
    again.config, again.space = search.config_of(best), {"weight_decay": (0.0,)}
    alone = trainer(again, tmp_path / "alone", **search.arguments_of(best))
    alone.train()
    assert alone.evaluate()["eval_loss"] == best.objective


def test_the_best_trials_adapter_lies_in_its_checkpoint_and_nothing_is_warned_of(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []  # of settings that TrainingArguments do not have
    monkeypatch.setattr(logging.getLogger("transformers.trainer"), "warning", lambda text, *args: told.append(text))
    search = search_of(base)
    best = run(search, tmp_path, n_trials=2, save_strategy="steps", save_steps=3)
    loaded = LoRAModel.from_pretrained(tmp_path / f"run-{best.run_id}" / "checkpoint-3").peft_config["default"]
    config = search.config_of(best)
    assert (loaded.r, loaded.lora_alpha) == (config.r, config.lora_alpha)
    assert told == []


def test_pruned_and_failed_trials_are_in_the_table(base: Path, tmp_path: Path) -> None:
    class Pruner(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.number == 1

    class Failing(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self._trial.number == 2:
                raise ZeroDivisionError
            return super().training_step(*args, **kwargs)

    search = search_of(base)
    run(search, tmp_path, cls=Failing, pruner=Pruner(), catch=(ZeroDivisionError,))
    rows = [line.split() for line in search.table().splitlines()[1:]]
    states = ["complete", "pruned", "failed", "complete"]
    assert [next(cell.strip(",") for cell in row if cell.strip(",") in states) for row in rows] == states
    assert rows[1][-3] == f"{search.study.trials[1].intermediate_values[1]:.6g}"
    assert rows[2][-3] == "-"
    assert all(row[-1] != "-" for row in rows)


def test_several_objectives_are_all_in_the_table(base: Path, tmp_path: Path) -> None:
    search = search_of(base)
    goals = {"direction": ["minimize"] * 2, "compute_objective": lambda metrics: (metrics["eval_loss"], 1.0)}
    best = run(search, tmp_path, 2, **goals)
    assert f"{best[0].objective[0]:.6g}, 1" in search.table()


def test_without_a_trial_the_config_is_as_given_and_seeds_are_the_trainers(base: Path, tmp_path: Path) -> None:
    search = search_of(base)
    models = [trainer(search, tmp_path, seed=seed).model for seed in (1, 1, 2)]
    assert {model.peft_config["default"].r for model in models} == {8}
    states = [{k: v for k, v in model.state_dict().items() if "adapters" in k} for model in models]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_a_trial_may_be_a_mapping(base: Path) -> None:
    search = search_of(base)
    config = search.model_init({"r": 3, "scaling": 2, "target_modules": "['key']"}).peft_config["default"]
    assert (config.r, config.lora_alpha, config.target_modules) == (3, 6, ["key"])
    assert search.config_of({"target_modules": ["key"]}).target_modules == ["key"]


def test_a_searched_seed_is_the_one_that_the_adapter_starts_from(base: Path, tmp_path: Path) -> None:
    class Starts(Trainer):
        seen: dict[int, torch.Tensor] = {}

        def call_model_init(self, trial: Any = None) -> Any:
            model = super().call_model_init(trial)
            if trial is not None:
                starts = [p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n]
                self.seen.setdefault(trial.params["seed"], starts[0])
                assert torch.equal(self.seen[trial.params["seed"]], starts[0])
            return model

    run(search_of(base, space={"seed": (1, 2)}), tmp_path, n_trials=5, cls=Starts, max_steps=1)
    assert not torch.equal(Starts.seen[1], Starts.seen[2])


def test_the_base_may_be_made_by_a_function_that_makes_a_new_one(tmp_path: Path) -> None:
    search = LoRASearch(lambda: tiny("bert"), LoRAConfig(task_type="SEQ_CLS"), space=SPACE)
    run(search, tmp_path, n_trials=2)
    same = tiny("bert")
    search = LoRASearch(lambda: same, LoRAConfig(task_type="SEQ_CLS"), space=SPACE)
    search.model_init()
    with pytest.raises(ModelError, match="function"):
        search.model_init()
    with pytest.raises(TypeError, match="num_labels"):
        LoRASearch(lambda: same, num_labels=2)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lora_alfa": (1,), "r": ()}, r"lora_alpha.*r=\(\)"),
        ({"learning_rat": (1e-3,)}, "learning_rate"),
        ({"task_type": ("SEQ_CLS",)}, "task_type"),
        ({}, "empty"),
        ({"r": 4}, "r=4"),
        ({"target_modules": "auto"}, "target_modules='auto'"),
        ({"r": (4, 0)}, "r=0"),
        ({"r": Range(4.0, 8.0)}, r"r=4\.0"),
        ({"lora_dropout": Range(0.0, 1.0)}, r"lora_dropout=1\.0"),
        ({"scaling": (1, "2r")}, "'scaling': '2r'"),
        ({"scaling": (0,)}, "lora_alpha=0"),
        ({"scaling": (1,), "lora_alpha": (8,)}, "scaling.*lora_alpha"),
        ({"use_dora": (True, False), "lora_bias": (False, True)}, "lora_bias.*use_dora"),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_the_first_trial(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRASearch("nowhere", space=space)


def test_the_default_space_can_be_searched_and_leaves_chosen_targets_alone() -> None:
    assert default_space(LoRAConfig()).keys() >= {"r", "scaling", "target_modules", "learning_rate"}
    assert "target_modules" not in default_space(LoRAConfig(target_modules=["key"]))
    search = LoRASearch("nowhere", LoRAConfig(use_rslora=True))
    assert search.config_of({"r": 16, "scaling": 2, "target_modules": "auto"}).scaling_of("x") == 2


def test_a_value_that_the_trainer_would_cast_away_is_an_error(base: Path, tmp_path: Path) -> None:
    search = search_of(base, space={"weight_decay": (0.1, 0.2)})
    with pytest.raises(ConfigError, match="weight_decay=0.*float"):
        run(search, tmp_path, n_trials=1, weight_decay=0)
    assert "failed" in search.table()


def test_a_search_that_draws_for_the_adapter_only_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate.*search\.hp_space"):
        run(search_of(base), tmp_path, n_trials=1, hp_space=lambda trial: {})


def test_setting_the_best_values_on_the_arguments_is_an_error_that_says_what_to_do(base: Path, tmp_path: Path) -> None:
    again = trainer(search_of(base), tmp_path)
    for name, value in {"r": 2, "learning_rate": 0.01}.items():  # as Transformers' guide does with a best run
        setattr(again.args, name, value)
    with pytest.raises(ConfigError, match=r"search\.config_of"):
        again.train()


def test_what_is_asked_too_early_or_of_another_backend_is_an_error(base: Path) -> None:
    search = search_of(base)
    with pytest.raises(LoRAError, match="hyperparameter_search"):
        search.table()
    with pytest.raises(ConfigError, match='backend="optuna"'):
        search.hp_space(None)


def test_trials_in_several_threads_are_an_error_before_they_share_a_model(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_jobs"):
        run(search_of(base), tmp_path, max_steps=20, n_jobs=2)


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'"\.\[search\]"'):
        LoRASearch("nowhere")


class Second(optuna.pruners.BasePruner):
    """Prunes the second trial at its second evaluation."""

    def prune(self, study: Any, trial: Any) -> bool:
        return bool(trial.number == 1 and trial.last_step == 2)


def test_trials_of_one_pass_reach_what_they_reach_alone_and_pruned_ones_leave_it(tmp_path: Path) -> None:
    def base() -> Any:
        return tiny("bert", num_labels=2).double()

    search = LoRASearch(base, LoRAConfig(task_type="SEQ_CLS"), space=SPACE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=Second())
    settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(str(tmp_path), **{**DEFAULTS, **settings})
    given = {"train_dataset": Rows(), "eval_dataset": Rows(8)}
    best = search.train_together(args, study, n_trials=5, at_once=3, **given)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", *["COMPLETE"] * 3]
    assert best.objective == study.best_value == min(t.value for t in study.trials if t.value is not None)
    assert [max(t.intermediate_values) for t in study.trials] == [4, 2, 4, 4, 4]
    assert "pruned" in search.table()
    for trial in study.trials[:3]:
        set_seed(args.seed)
        model = LoRAModel.from_model(base(), search.config_of(trial.params))
        assert trial.user_attrs["trained_parameters"] == f"{model.get_nb_trainable_parameters()[0]:,d}"
        own = TrainingArguments(str(tmp_path / "x"), **{**DEFAULTS, **settings, **search.arguments_of(trial.params)})
        alone = Trainer(model, own, **given)
        alone.train()
        reached = [row["eval_loss"] for row in alone.state.log_history if "eval_loss" in row]
        want = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        assert reached[: len(want)] == pytest.approx(want, rel=1e-9)
    trials = len(study.trials)
    for others, told in (
        ({"study": None}, "study: a NoneType .*study of Optuna"),
        ({"n_trials": "2", "at_once": 0}, "n_trials='2', at_once=0"),
        ({"eval_dataset": None}, "eval_dataset"),
    ):
        with pytest.raises(LoRAError, match=told):
            search.train_together(args, **{"study": study, **given, **others})
    assert len(study.trials) == trials
