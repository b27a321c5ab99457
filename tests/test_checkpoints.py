"""A Trainer's checkpoints of a LoRAModel: there whole or not at all, and only whole ones are resumed from."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_lora.errors import AdapterFileError

from .peek import disk
from .trainings import BEST, StopsAt, bert, gpt2, ran, same, trainer, two, weights

ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
STATE = {"training_args.bin", "trainer_state.json"}
RESUMING = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
MARK = "_COMPLETE"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())


@pytest.mark.parametrize(
    ("make", "folders"),
    [(bert, [""]), (lambda: bert("x", modules_to_save=["classifier"]), [""]), (lambda: two(["a", "b"]), ["a", "b"])],
    ids=["one adapter", "a saved head", "two adapters"],
)
def test_checkpoints_hold_no_weight_of_the_base(make: Any, folders: list[str], tmp_path: Path) -> None:
    from safetensors import safe_open

    model = make()
    trainer(model, tmp_path, max_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    trained = {n for n, p in model.named_parameters() if "adapters" in n}
    kept = 0
    for folder in folders:
        assert names(checkpoint / folder) >= ADAPTER
        with safe_open(checkpoint / folder / "adapter_model.safetensors", "pt") as file:
            kept += len(list(file.keys()))
    assert kept == len(trained)
    everything = {path.name for path in checkpoint.rglob("*") if path.is_file()}
    assert everything == ADAPTER | STATE | RESUMING | {MARK}


class Watches(TrainerCallback):
    """Notes what a run's folder holds whenever a checkpoint was saved."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(names(Path(args.output_dir)))
        assert names(Path(args.output_dir, f"checkpoint-{state.global_step}")) == ADAPTER | STATE | RESUMING | {MARK}


def test_the_limit_keeps_the_last_and_the_best_as_transformers_would(tmp_path: Path) -> None:
    watches = Watches()
    run = ran(bert("x"), tmp_path, [watches], **BEST, max_steps=10, save_total_limit=2, learning_rate=0.2)
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = 0
    for step, seen in zip((2, 4, 6, 8, 10), watches.seen, strict=True):
        earlier = best
        best = max((s for s in losses if s <= step), key=losses.get)
        others = {best} if best != step else {earlier or step, step - 2} - {0}
        assert f"checkpoint-{step}" in seen
        assert f"checkpoint-{best}" in seen, (step, others)
        assert len(seen) == min(step // 2, 2)
        assert all(name.startswith("checkpoint-") for name in seen)
    assert best != 10, "the last step is the best one, so this test proves too little"
    kept = str(tmp_path / f"checkpoint-{best}")
    arguments = torch.load(tmp_path / "checkpoint-10" / "training_args.bin", weights_only=False)
    assert arguments.save_total_limit == 2, "the one that was given"
    assert run.state.best_model_checkpoint == kept == state_of(tmp_path / "checkpoint-10")["best_model_checkpoint"]
    assert state_of(Path(kept))["best_model_checkpoint"] == kept


def test_what_is_kept_of_the_model_alone_is_resumed_with_a_word_on_what_starts_anew(tmp_path: Path) -> None:
    first = ran(gpt2(seed=7), tmp_path, [StopsAt(4)], save_only_model=True)
    assert names(tmp_path / "checkpoint-4") == ADAPTER | STATE | {MARK}
    again = trainer(gpt2(seed=8), tmp_path, save_only_model=True, max_steps=4)
    with pytest.warns(UserWarning, match="the optimizer, the learning-rate schedule, random numbers start anew"):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    same(again.model, first.model)


def test_half_a_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    first = ran(gpt2(seed=7), tmp_path, max_steps=4)
    for step, missing in {5: "adapter_model.safetensors", 6: "trainer_state.json", 7: "optimizer.pt", 9: MARK}.items():
        shutil.copytree(tmp_path / "checkpoint-4", tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}" / missing).unlink()
    (tmp_path / "checkpoint-8").mkdir()
    again = trainer(gpt2(seed=8), tmp_path, max_steps=4)
    told = r"9 lacks _COMPLETE; checkpoint-8 .*; checkpoint-7 lacks optimizer\*; checkpoint-6 lacks trainer_state.json"
    with pytest.warns(UserWarning, match=told):
        again.train(resume_from_checkpoint=True)
    same(again.model, first.model)
    assert {f"checkpoint-{step}" for step in range(5, 10)} <= names(tmp_path), "nothing of the user's is removed"


def begun(checkpoint: Path) -> None:
    """Make a checkpoint what a killed save leaves, right before its end."""
    (checkpoint / MARK).rename(checkpoint / "_INCOMPLETE")


class AtStep(TrainerCallback):
    """Does something to a run's folder before a step."""

    def __init__(self, step: int, does: Callable[[Path], Any]) -> None:
        self.step, self.does = step, does

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.does(Path(args.output_dir))


def test_half_a_checkpoint_is_cleared_when_a_training_is_resumed_and_nobody_asks(tmp_path: Path) -> None:
    first = ran(gpt2(seed=7), tmp_path)
    begun(tmp_path / "checkpoint-6")
    seen: list[set[str]] = []
    again = ran(gpt2(seed=8), tmp_path, [AtStep(4, lambda run: seen.append(names(run)))], resume=True)
    assert seen == [{"checkpoint-2", "checkpoint-4"}]
    same(again.model, first.model)
    assert names(tmp_path / "checkpoint-6") == ADAPTER | STATE | RESUMING | {MARK}


@pytest.mark.parametrize("spoil", [begun, lambda folder: (folder / MARK).unlink()], ids=["begun", "unmarked"])
def test_half_a_checkpoint_is_gone_at_the_next_save_and_never_counts_for_the_limit(spoil: Any, tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path, max_steps=2).train()

    def half(run: Path) -> None:
        spoil(shutil.copytree(run / "checkpoint-2", run / "checkpoint-9"))

    trainer(gpt2(), tmp_path, [AtStep(3, half)], save_total_limit=2, max_steps=4).train(resume_from_checkpoint=True)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}


def test_half_a_checkpoint_that_is_named_is_an_error_and_the_next_try_finds_the_one_before(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path, max_steps=4).train()
    begun(tmp_path / "checkpoint-4")
    again = trainer(gpt2(), tmp_path, max_steps=4)
    with pytest.raises(AdapterFileError, match="interrupted, so it is removed.*True for the last whole one"):
        again.train(resume_from_checkpoint=get_last_checkpoint(tmp_path))
    again.train(resume_from_checkpoint=get_last_checkpoint(tmp_path))
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}
    shutil.rmtree(tmp_path / "checkpoint-2")
    begun(tmp_path / "checkpoint-4")
    with pytest.raises(AdapterFileError, match="no checkpoint in .* is whole: checkpoint-4 .* starts anew"):
        again.train(resume_from_checkpoint=True)
    assert get_last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("steps", [2, 4], ids=["all", "all but the last, which is half"])
def test_a_run_of_an_earlier_version_has_no_marks_and_is_resumed(steps: int, tmp_path: Path) -> None:
    first = ran(gpt2(seed=7), tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-6")
    for name in ("checkpoint-2", "checkpoint-4"):
        (tmp_path / name / MARK).unlink()
    if steps == 2:
        (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    again = trainer(gpt2(seed=8), tmp_path, save_total_limit=3)
    with pytest.warns(UserWarning, match="checkpoint-4 lacks optimizer") if steps == 2 else nullcontext():
        again.train(resume_from_checkpoint=True)
    same(again.model, first.model)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    older = ran(gpt2(seed=8), tmp_path, max_steps=2, resume=str(tmp_path / "checkpoint-2"))
    assert older.state.global_step == 2


def test_without_its_mark_the_last_one_is_not_taken_and_alone_it_is(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path / "run", max_steps=4).train()
    last = tmp_path / "run" / "checkpoint-4"
    (last / MARK).unlink()
    again = trainer(gpt2(), tmp_path / "run", [StopsAt(3, save=False)], max_steps=4)
    with pytest.warns(UserWarning, match="resuming from .*checkpoint-2; .* checkpoint-4 lacks _COMPLETE"):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    with pytest.raises(AdapterFileError, match="it lacks _COMPLETE.*If you know that it is whole, make a file"):
        again.train(resume_from_checkpoint=str(last))
    shutil.copytree(last, tmp_path / "alone" / last.name)
    (last / MARK).touch()
    for place in (last, tmp_path / "alone" / last.name):
        again.train(resume_from_checkpoint=str(place))
        assert again.state.global_step == 4


@pytest.mark.parametrize(
    "missing", ["adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "scheduler.pt"]
)
def test_half_a_checkpoint_that_is_named_is_an_error_before_anything_is_touched(missing: str, tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / missing).unlink()
    again = trainer(gpt2(seed=8), tmp_path, max_steps=4)
    before = weights(again.model)
    with pytest.raises(AdapterFileError, match=f"not a whole checkpoint: it lacks {missing.split('.')[0]}"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(v, before[k]) for k, v in weights(again.model).items())


def test_a_checkpoint_of_other_adapters_or_none_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    trainer(bert("a"), tmp_path / "run", max_steps=2).train()
    other = trainer(two(["a", "b"]), tmp_path / "empty", max_steps=4)
    with pytest.raises(AdapterFileError, match=r"lacks a.adapter_config.json, a.adapter_model.safetensors, b."):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    with pytest.raises(AdapterFileError, match="the folder itself"):
        other.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises((ValueError, FileNotFoundError)):  # Transformers' own
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("older", [False, True], ids=["a limit of 1", "over an older one"])
@pytest.mark.parametrize("where", ["written", "brought onto the disk"])
def test_a_failed_save_changes_nothing_there(
    where: str, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(gpt2(), tmp_path, [StopsAt(4)], save_total_limit=None if older else 1)
    if older:
        trainer(gpt2(), tmp_path, save_steps=4, max_steps=4).train()
        before = (tmp_path / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns
    owner, name = (run, "_save_rng_state") if where == "written" else (disk, "sync_tree")
    does = getattr(owner, name)

    def fail(folder: Any) -> None:
        does(folder)
        if run.state.global_step == 4:
            assert (tmp_path / "checkpoint-2" / MARK).is_file(), "no whole one is left"
            raise OSError("No space left on device")

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert names(tmp_path) == {"checkpoint-2"} | ({"checkpoint-4"} if older else set())
    if older:
        assert (tmp_path / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns == before
        assert MARK in names(tmp_path / "checkpoint-4")
    assert run.args.save_total_limit == (None if older else 1)


def test_what_a_killed_save_left_undone_is_done_when_its_run_is_resumed(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path / "a").train()
    ran(gpt2(), tmp_path / "b", save_total_limit=1, resume=str(tmp_path / "a" / "checkpoint-6"))
    again = trainer(gpt2(), tmp_path / "a", save_total_limit=1, max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))  # not the last one
    assert names(tmp_path / "a") == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    trainer(gpt2(), tmp_path / "a", save_total_limit=1).train(resume_from_checkpoint=True)
    assert names(tmp_path / "a") == {"checkpoint-6"}


def test_what_an_earlier_version_moved_aside_when_it_was_killed_is_back(tmp_path: Path) -> None:
    first = ran(gpt2(seed=7), tmp_path, max_steps=2)
    aside = tmp_path / "_saving" / ".replaced"
    aside.mkdir(parents=True)
    os.rename(tmp_path / "checkpoint-2", aside / "checkpoint-2")
    again = ran(gpt2(seed=8), tmp_path, max_steps=2, resume=True)
    same(again.model, first.model)
    assert names(tmp_path) == {"checkpoint-2"}


def test_a_checkpoint_takes_the_place_of_an_older_one_of_its_step(tmp_path: Path) -> None:
    ran(two(["a", "b"]), tmp_path, max_steps=2)
    (tmp_path / "checkpoint-2" / "theirs").touch()
    trainer(bert("a"), tmp_path, max_steps=2).train()
    assert names(tmp_path) == {"checkpoint-2"}
    assert names(tmp_path / "checkpoint-2") == ADAPTER | STATE | RESUMING | {MARK}


class Writes(Trainer):
    """Puts files and a link of its own into a checkpoint, as many do: before, within or after the Trainer's."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "before").symlink_to("nowhere")
        super()._save_checkpoint(model, trial)
        (folder / "after").touch()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        Path(output_dir or self.args.output_dir, "within").touch()


def test_what_a_subclass_writes_into_a_checkpoint_stays(tmp_path: Path) -> None:
    stock = trainer(gpt2(), tmp_path, max_steps=2)
    Writes(model=stock.model, args=stock.args, train_dataset=stock.train_dataset).train()
    assert names(tmp_path) == {"checkpoint-2"}
    assert names(tmp_path / "checkpoint-2") == ADAPTER | STATE | RESUMING | {MARK, "before", "within", "after"}
    assert os.readlink(tmp_path / "checkpoint-2" / "before") == "nowhere"


def test_an_old_checkpoint_that_somebody_removes_meanwhile_is_no_error(tmp_path: Path) -> None:
    run = trainer(gpt2(), tmp_path, save_total_limit=1)
    save = run._save_rng_state

    def disturbed(folder: str) -> None:
        save(folder)
        if run.state.global_step == 4:
            shutil.rmtree(tmp_path / "checkpoint-2")

    run._save_rng_state = disturbed
    run.train()
    assert names(tmp_path) == {"checkpoint-6"}


def test_the_trials_of_a_search_have_their_own_whole_checkpoints(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stock = trainer(gpt2(), tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2)
    run = Trainer(
        model_init=lambda: gpt2("x"),
        args=stock.args,
        train_dataset=stock.train_dataset,
        eval_dataset=stock.eval_dataset,
    )
    run.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)}, n_trials=2,
        backend="optuna",
    )  # fmt: skip
    assert names(tmp_path) == {"run-0", "run-1"}
    for trial in tmp_path.iterdir():
        assert names(trial) == {"checkpoint-2", "checkpoint-4"}
        assert names(trial / "checkpoint-4") == ADAPTER | STATE | RESUMING | {MARK}


def test_a_stock_model_s_checkpoints_are_left_to_transformers(tmp_path: Path) -> None:
    run = trainer(gpt2().unload(), tmp_path, max_steps=2)
    places = []
    run._save_rng_state = places.append
    run.train()
    assert places == [str(tmp_path / "checkpoint-2")]
    trainer(gpt2().unload(), tmp_path, max_steps=2).train(resume_from_checkpoint=True)  # without random numbers


def test_transformers_saves_and_counts_in_the_order_that_ours_relies_on() -> None:
    saving = inspect.getsource(inspect.unwrap(Trainer._save_checkpoint))
    order = (
        "self._get_output_dir(trial=trial)",
        "self.save_model(output_dir",
        "self.state.save_to_json(",
        "rotate_checkpoints(",
    )
    found = [saving.index(call) for call in order]
    assert found == sorted(found)
    assert "self.args.save_total_limit" in saving + inspect.getsource(
        getattr(Trainer, "_rotate_checkpoints", Trainer.train)
    )
    values = inspect.getsource(Trainer.set_initial_training_values).rstrip()
    returned = [line.strip(" ,") for line in values[values.rindex("return (") :].splitlines()[1:-1]]
    assert returned[:2] == ["num_train_epochs", "num_update_steps_per_epoch"]
    assert returned[-1] == "max_steps"
