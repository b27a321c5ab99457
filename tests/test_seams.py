"""The places in other packages that hf_lora reaches into: few, listed, and nothing breaks where one of them is gone."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import pickle
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from hf_lora import LoRAConfig, LoRAModel, metrics
from hf_lora.errors import AdapterStateError, ModelError

from .peek import MARK, METHODS, SEAMS, hooks
from .trainings import DEFAULTS, Rows, gpt2, trainer

pytest.importorskip("trl", reason="two of the places are TRL's")
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
GONE = ("asked_later", "asked_always", "constructor")


@cache
def moved(case: str) -> Any:
    """Return what `python -m tests.moved` prints of a case."""
    done = subprocess.run([sys.executable, "-m", "tests.moved", case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("row", [*SEAMS, *METHODS], ids=lambda row: f"{row.place}-{row.purpose[:40]}")
def test_a_place_that_is_gone_is_told_where_it_is_needed_and_nowhere_else(row: Any) -> None:
    """Imports, plain Trainers and adapters without a Trainer work, as `tests/moved.py` asserts."""
    package = row.place.partition(".")[0]
    want = f"{row.place} is missing from {package} {importlib.metadata.version(package)}, and hf_lora needs it for this: {row.purpose}. "
    kinds = [[kind for kind, text in moved(case) if want in text] for case in GONE]
    assert any(kinds)
    assert {kind for each in kinds for kind in each} == {"error" if row.required else "warning"}
    assert row.required or all(len(each) <= 1 for each in kinds), "a warning comes once"


def test_what_is_gone_is_told_with_the_versions_that_hf_lora_supports() -> None:
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    said = " ".join(text for case in GONE for _, text in moved(case))
    for bounds in ("transformers>=5.0,<6", "accelerate>=1.3", "peft>=0.18"):
        assert f'"{bounds}"' in pyproject
        assert f"hf_lora supports {bounds}; install that." in said
    assert "names no version of trl; install an older one." in said


def function(method: Any) -> Any:
    return getattr(method, "__func__", method)


def test_the_installed_versions_have_every_place_and_no_other_is_patched() -> None:
    for seam in SEAMS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(seam.module)
    assert 10 <= len(SEAMS) == len({seam.place for seam in SEAMS}) <= 12
    assert not [row.place for row in METHODS if not callable(getattr(Trainer, row.name, None))]
    found = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("transformers", "accelerate", "peft", "trl"):
            continue
        for key, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == name and MARK in getattr(value, "__dict__", {}):
                found.add(f"{name}.{key}")
            for inner, method in list(vars(value).items()) if isinstance(value, type) else ():
                if MARK in getattr(function(method), "__dict__", {}):
                    code = function(method).__code__
                    same = [c for c in value.__mro__ if code is getattr(function(vars(c).get(inner)), "__code__", None)]
                    found.add(
                        f"{same[-1].__module__}.{same[-1].__name__}.{inner}"
                    )  # the classes below it are one place
    # The auto classes' base is written in another module than the one that is patched, after all of them.
    assert found == {seam.place.replace("auto.modeling_auto", "auto.auto_factory") for seam in SEAMS}


def plain() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=1)
    )


def test_a_plain_model_s_trainer_keeps_its_class_and_its_methods(tmp_path: Path) -> None:
    run = trainer(plain(), tmp_path, max_steps=1)
    run.train()
    assert type(run) is Trainer
    assert not [row.place for row in METHODS if "hf_lora" in getattr(Trainer, row.name).__code__.co_filename and row.name not in ("train", "push_to_hub")]  # fmt: skip
    assert type(trainer(gpt2().unload(), tmp_path)) is Trainer


def test_a_loramodel_s_trainer_is_still_a_trainer_of_its_own_name(tmp_path: Path) -> None:
    run = trainer(gpt2(), tmp_path)
    cls = type(run)
    assert cls is not Trainer
    assert isinstance(run, Trainer)
    assert (cls.__name__, cls.__qualname__, cls.__module__) == ("Trainer", "Trainer", "transformers.trainer")
    assert type(trainer(gpt2(), tmp_path)) is cls
    run.accelerator = run.gather_function = None  # which hold weak references, once anything was trained here
    for again in (pickle.loads(pickle.dumps(run)), copy.copy(run), copy.deepcopy(run)):
        assert type(again) is cls
    assert not hasattr(run.create_optimizer, MARK)


class Calls(Trainer):
    """Overrides what ours overrides, and asks the Trainer above it."""

    def create_optimizer(self, *args: Any) -> Any:  # Transformers 5.0 gives none
        self.before = self.optimizer
        optimizer = super().create_optimizer(*args)
        self.groups = len(optimizer.param_groups)
        return optimizer


def test_a_user_s_override_stands_around_ours_and_finds_it_as_super(tmp_path: Path) -> None:
    stock = trainer(model := gpt2(), tmp_path, max_steps=1)
    model.set_learning_rates(loraplus_lr_ratio=4)
    run = Calls(model=model, args=stock.args, train_dataset=stock.train_dataset)
    order = [cls for cls in type(run).__mro__ if "create_optimizer" in vars(cls)]
    assert order[0] is Calls
    assert order[-1] is Trainer
    assert len(order) == 3
    run.train()
    assert run.before is None
    assert run.groups > 2, "ours did not regroup what Transformers built"


def test_a_model_that_gets_adapters_after_its_trainer_was_made_is_trained_as_one(tmp_path: Path) -> None:
    run = trainer(plain(), tmp_path, max_steps=2)
    assert type(run) is Trainer
    model = LoRAModel.from_model(run.model, LoRAConfig(r=2))
    model.merge_adapter()
    with pytest.raises(AdapterStateError, match="merged"):
        run.train()
    assert type(run) is not Trainer
    model.unmerge_adapter()
    run.train()
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_an_override_of_train_that_meets_adapters_late_runs_once(tmp_path: Path) -> None:
    class Counts(Trainer):
        count = 0

        def train(self, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().train(*args, **kwargs)

    stock = trainer(plain(), tmp_path, max_steps=1)
    run = Counts(model=stock.model, args=stock.args, train_dataset=stock.train_dataset)
    LoRAModel.from_model(run.model, LoRAConfig(r=2))
    run.train()
    assert run.count == 1
    assert isinstance(run, Counts)
    assert type(run) is not Counts


def test_a_model_init_that_makes_a_loramodel_is_seen_before_anything_is_done_with_it(tmp_path: Path) -> None:
    made: list[Any] = []

    def model_init() -> Any:
        made.append(plain() if not made else LoRAModel.from_model(plain(), LoRAConfig(r=2)))
        return made[-1]

    args = TrainingArguments(output_dir=str(tmp_path), **{**DEFAULTS, "max_steps": 2})
    run = Trainer(model_init=model_init, args=args, train_dataset=Rows(labels="tokens"))
    assert type(run) is Trainer
    run.train()
    assert type(run) is not Trainer
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert "call_model_init" not in vars(run)
    args.push_to_hub = True
    with pytest.raises(ModelError, match="base_model_name_or_path"):  # and no repo is asked for
        Trainer(model_init=model_init, args=args, train_dataset=Rows(labels="tokens"))


def test_hf_loras_metrics_alone_make_a_trainer_ours(tmp_path: Path) -> None:
    stock = trainer(plain(), tmp_path)
    run = Trainer(
        model=stock.model, args=stock.args, eval_dataset=stock.eval_dataset, compute_metrics=metrics("perplexity")
    )
    assert type(run) is not Trainer
    assert "eval_perplexity" in run.evaluate()


def test_uninstalled_a_loramodel_s_trainer_is_transformers_own(tmp_path: Path) -> None:
    hooks.uninstall()
    try:
        assert type(trainer(gpt2(), tmp_path)) is Trainer
    finally:
        hooks.install()
    assert type(trainer(gpt2(), tmp_path)) is not Trainer
