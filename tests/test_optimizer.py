"""What an optimizer must hold: every parameter that requires a gradient, in the stock Trainer and in own loops."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_lora import LoRAConfig, LoRAModel, check_optimizer
from hf_lora.errors import AdapterStateError, ConfigError

from .trainings import bert, gpt2, ran, trainer, weights

LATE = LoRAConfig(r=2, target_modules=["c_attn"])


def _adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


def _two(active: str | list[str]) -> LoRAModel:
    """Return a model of two adapters."""
    model = gpt2()
    model.add_adapter(LATE, "late")
    model.set_adapter(active)
    return model


def test_an_adapter_added_after_the_optimizer_was_built_is_missing_from_it() -> None:
    model = gpt2()
    optimizer = _adamw(model)
    check_optimizer(model, optimizer)
    model.add_adapter(LATE, "late")
    with pytest.raises(AdapterStateError, match=r"4 of 4 .*missing .*adapters\.late"):
        check_optimizer(model, optimizer)
    model.set_adapter("default")
    check_optimizer(model, optimizer)


def test_the_stock_trainer_refuses_such_an_optimizer_before_the_first_step(tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(model, tmp_path)
    run.optimizer = _adamw(model)
    model.add_adapter(LATE, "late")
    with pytest.raises(AdapterStateError, match=r"missing .*adapters\.late"):
        run.train()
    assert run.state.global_step == 0


def _frozen(model: LoRAModel) -> None:
    model._lora.records["default"].trainable = False  # as after loading for inference
    model.requires_grad_(False)


NOTHING = {
    "disabled": (lambda model: model.train().disable_adapters(), r"\['default'\].*enable_adapters"),
    "merged": (lambda model: model.train().merge_adapter(), r"\['default'\].*unmerge_adapter"),
    "inactive": (lambda model: model.set_adapter([]), r"\['default'\].*\[\].*set_adapter"),
    "for inference": (_frozen, r"\['default'\].*is_trainable=True"),
    "without adapters": (lambda model: model.unload().requires_grad_(False), "gradient"),
}


@pytest.mark.parametrize("how", NOTHING)
def test_what_keeps_adapters_from_training_is_named_with_its_cure(how: str, tmp_path: Path) -> None:
    model = gpt2()
    optimizer, run = _adamw(model), trainer(model, tmp_path)
    keep, told = NOTHING[how]
    keep(model)
    with pytest.raises(AdapterStateError, match=told):
        check_optimizer(model, optimizer)
    if how != "without adapters":
        with pytest.raises(AdapterStateError, match=told):
            run.create_optimizer()


@pytest.mark.parametrize("how", ["disabled", "merged", "inactive"])
def test_a_teacher_that_was_frozen_by_hand_is_no_hindrance_to_its_student(how: str) -> None:
    teacher, student = gpt2(), gpt2(seed=1)
    NOTHING[how][0](teacher)
    both = torch.nn.ModuleDict({"teacher": teacher.requires_grad_(False), "student": student})
    check_optimizer(both, _adamw(both))


@pytest.mark.parametrize("both", [False, True])
def test_adapters_added_or_chosen_after_the_trainer_was_made_train(both: bool, tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(model, tmp_path, max_steps=3)
    model.add_adapter(LATE, "late")
    model.set_adapter(["default", "late"] if both else "late")
    before = weights(model)
    run.train()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n in before if ".adapters.late." in n or (both and ".adapters.default." in n)}


def test_an_adapter_added_between_two_trainings_needs_a_new_optimizer(tmp_path: Path) -> None:
    model = gpt2()
    run = ran(model, tmp_path, max_steps=2)
    run.train()
    model.add_adapter(LATE, "late")
    with pytest.raises(AdapterStateError, match=r"missing .*trainer\.optimizer"):
        run.train()
    run.optimizer = run.lr_scheduler = None
    before = weights(model)
    run.train()
    assert any(".late." in n and not torch.equal(value, before[n]) for n, value in model.state_dict().items())


class _SwitchesToLate(TrainerCallback):
    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 1:
            kwargs["model"].set_adapter("late")


def test_an_adapter_switched_on_in_training_is_an_error_before_the_next_step(tmp_path: Path) -> None:
    run = trainer(_two("default"), tmp_path, callbacks=[_SwitchesToLate()])
    with pytest.raises(AdapterStateError, match=r"missing .*adapters\.late"):
        run.train()
    assert run.state.global_step == 1


def test_adapters_that_the_optimizer_holds_may_take_turns(tmp_path: Path) -> None:
    run = ran(_two(["default", "late"]), tmp_path, max_steps=3, callbacks=[_SwitchesToLate()])
    assert run.state.global_step == 3


def test_a_parameter_that_the_optimizer_holds_twice_is_an_error() -> None:
    model = gpt2()
    optimizer = _adamw(model)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": optimizer.param_groups[0]["params"][:1]})
    with pytest.raises(AdapterStateError, match="1 of 4 .*twice.*lora_A"):
        check_optimizer(model, optimizer)


class _Own(Trainer):
    """Builds its optimizer without asking Transformers."""

    def create_optimizer(self, model: object = None) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.SGD([p for n, p in self.model.named_parameters() if n.endswith("lora_B")])
        return self.optimizer


def test_the_optimizer_of_a_trainers_subclass_is_checked_as_well(tmp_path: Path) -> None:
    stock = trainer(gpt2(), tmp_path)
    run = _Own(model=stock.model, args=stock.args, train_dataset=stock.train_dataset)
    with pytest.raises(AdapterStateError, match="2 of 4 .*missing .*lora_A"):
        run.train()
    assert run.state.global_step == 0


def test_layerwise_optimizers_train_but_refuse_rates_of_their_own(tmp_path: Path) -> None:
    model = bert()
    run = trainer(model, tmp_path)
    run.optimizer = LayerWiseDummyOptimizer(optimizer_dict={})
    run.create_optimizer()
    model.set_learning_rates(loraplus_lr_ratio=4)
    with pytest.raises(ConfigError, match="LayerWiseDummyOptimizer"):
        run.create_optimizer()


def test_a_model_without_adapters_keeps_whatever_optimizer_it_was_given(tmp_path: Path) -> None:
    model = gpt2().unload()
    run = trainer(model, tmp_path, max_steps=2, save_strategy="no")
    run.optimizer = torch.optim.SGD([model.transformer.wte.weight], lr=0.1)
    run.train()
    assert run.state.global_step == 2


def test_the_trainers_seams_take_what_the_hooks_pass_on() -> None:
    from accelerate.optimizer import AcceleratedOptimizer  # not above: old ones warn when they come before Trainer

    assert "if self.optimizer is None" in inspect.getsource(Trainer.create_optimizer), "a given one passes elsewhere"
    assert [*inspect.signature(Trainer.create_scheduler).parameters] == ["self", "num_training_steps", "optimizer"]
    inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert AcceleratedOptimizer(inner).optimizer is inner, "accelerate's wrapper calls what it wraps otherwise now"
