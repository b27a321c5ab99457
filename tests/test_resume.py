"""Resuming is exact: twelve steps straight are five, a checkpoint, and seven more, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer

from hf_lora import LoRAModel

from .trainings import BEST, CHECKPOINTING, StopsAt, bert, ending, gpt2, ran, same, t5, trainer, two, weights
from .versions import not_older

STEPS, CUT = 12, 5


# what is trained: a model of a seed; the Trainer's arguments
CASES: dict[str, tuple[Callable[[int], LoRAModel], dict[str, Any]]] = {
    "BERT": (lambda seed: bert(seed=seed), {}),
    "a named adapter": (lambda seed: gpt2("sentiment", seed), {}),
    "a named adapter of T5": (lambda seed: t5("sentiment", seed), {}),
    "two adapters at once": (lambda seed: two(["a", "b"], seed), {}),
    "the second of two adapters": (lambda seed: two("b", seed), {}),
    "a head": (lambda seed: bert("x", seed, modules_to_save=["classifier"]), {}),
    "accumulated gradients": (lambda seed: gpt2(seed=seed), {"gradient_accumulation_steps": 2}),
    "gradient checkpointing": (lambda seed: gpt2(seed=seed), {CHECKPOINTING: True}),
    "DoRA": (lambda seed: bert(seed=seed, use_dora=True), {}),
    "VeRA": (lambda seed: bert(seed=seed, use_vera=True, init_lora_weights=False), {}),
    "a frozen A": (lambda seed: bert(seed=seed, use_lora_fa=True), {}),
    "a core between frozen factors": (lambda seed: bert(seed=seed, use_lora_xs=True, init_lora_weights=False), {}),
    "a shared A": (lambda seed: bert(seed=seed, use_sharelora=True), {}),
    "trained rows of tokens": (lambda seed: bert(seed=seed, trainable_token_indices=[3, 4, 5]), {}),
    "biases": (lambda seed: bert(seed=seed, bias="lora_only"), {}),
    "float32 masters on bfloat16": (lambda seed: bert(seed=seed, dtype=torch.bfloat16), {"bf16": True}),
    "warm-up, cosine, weight decay": (
        lambda seed: gpt2(seed=seed),
        {"lr_scheduler_type": "cosine", "warmup_steps": 7, "weight_decay": 0.1, "optim": "adafactor"},
    ),
}


# Before 5.23 Transformers itself does not resume exactly with accumulated gradients, whatever it trains.
_OF_NEWER = {"accumulated gradients"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=not_older) if c in _OF_NEWER else c for c in CASES])
def test_twelve_steps_are_five_a_checkpoint_and_seven(case: str, tmp_path: Path) -> None:
    make, changes = CASES[case]
    changes = {"max_steps": STEPS, "save_strategy": "no", **changes}
    straight = trainer(make(7), tmp_path / "straight", **changes)
    before = weights(straight.model)
    straight.train()
    want = ending(straight)
    moved = [k for k, v in weights(straight.model).items() if not torch.equal(v, before[k])]
    assert moved
    assert all("adapters" in k for k in moved)
    assert len({entry["loss"] for entry in straight.state.log_history if "loss" in entry}) == STEPS

    first = ran(make(7), tmp_path / "parts", [StopsAt(CUT)], **changes)
    assert first.state.global_step == CUT
    other = make(8)
    assert any(not torch.equal(v, before[k]) for k, v in weights(other).items()), "the resumed one starts elsewhere"
    second = ran(other, tmp_path / "parts", **changes, resume=True)
    same(ending(second), want)


@pytest.mark.parametrize("steps", [6, 8], ids=["at the end of an epoch", "within an epoch"])
def test_a_finished_training_that_is_resumed_takes_no_further_step(steps: int, tmp_path: Path) -> None:
    changes = {"max_steps": steps, "lr_scheduler_type": "constant"}
    first = ran(gpt2(seed=7), tmp_path, **changes)
    again = ran(gpt2(seed=8), tmp_path, **changes, resume=True)
    assert again.state.global_step == steps
    same(again.model, first.model)


def test_patience_runs_out_where_it_would_have_without_the_interruption(tmp_path: Path) -> None:
    often = {"max_steps": STEPS, "eval_steps": 1, "save_steps": 1, "learning_rate": 0.1}
    changes = {**BEST, **often, "restore_callback_states_from_checkpoint": True}

    def make(seed: int, folder: str, cut: int | None = None) -> Trainer:
        callbacks = [EarlyStoppingCallback(early_stopping_patience=3), *([StopsAt(cut)] if cut else [])]
        return trainer(gpt2("x", seed), tmp_path / folder, callbacks, **changes)

    straight = make(7, "straight")
    straight.train()
    stopped, best = straight.state.global_step, straight.state.best_global_step
    assert stopped == best + 3 < STEPS
    make(7, "parts", stopped - 1).train()
    second = make(8, "parts")
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == stopped
    assert second.state.best_model_checkpoint == str(tmp_path / "parts" / f"checkpoint-{best}")
    same(second.model, straight.model)


@pytest.mark.parametrize("other", [False, True], ids=["moved", "another run's"])
def test_the_best_of_a_run_whose_folder_has_moved_is_there_at_the_end(other: bool, tmp_path: Path) -> None:
    changes = {**BEST, "max_steps": 8, "learning_rate": 0.01}
    first = ran(gpt2("x"), tmp_path / "there", **changes)
    best = f"checkpoint-{first.state.best_global_step}"
    assert best != "checkpoint-8"
    (tmp_path / "there").rename(tmp_path / "here")
    state = tmp_path / "here" / best / "trainer_state.json"
    if other:
        state.write_text(json.dumps({**json.loads(state.read_text()), "best_metric": 9.0}))
    again = trainer(gpt2("x", 8), tmp_path / "here", **changes)
    with pytest.warns(UserWarning, match=f"put it at .*{best}") if other else nullcontext():
        again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == (None if other else str(tmp_path / "here" / best))
    if not other:
        same(again.model, first.model)
