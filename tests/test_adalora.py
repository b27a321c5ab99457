"""AdaLoRA in the stock Trainer: the budget is kept exactly, as PEFT schedules it, resumes to the bit, and ends as LoRA."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_lora import LoRAConfig, LoRAModel, Run, add_lora, train_together, truncate
from hf_lora.errors import AdapterFileError, AdapterMismatchError, AdapterStateError, ConfigError

from .cases import move
from .peek import Budget
from .tiny import inputs, tiny

TARGETS = ["q_proj", "v_proj", "up_proj"]  # of two layers
SETTINGS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "use_adalora": True, "target_r": 2, "tinit": 1, "tfinal": 2}


def rows() -> list[dict[str, Any]]:
    ids = torch.randint(4, 48, (8, 7), generator=torch.Generator().manual_seed(5))
    return [{"input_ids": row, "labels": row} for row in ids]


def fresh(**settings: Any) -> LoRAModel:
    torch.manual_seed(0)
    config = LoRAConfig(**{"target_modules": TARGETS, **SETTINGS, **settings})
    return LoRAModel.from_model(tiny("llama", noisy=True), config)


def trainer(model: nn.Module, folder: Path, **arguments: Any) -> Trainer:
    usual = {"max_steps": 8, "learning_rate": 0.1, "report_to": [], "save_steps": 2, "per_device_train_batch_size": 2}
    made = TrainingArguments(str(folder), **{**usual, **arguments})
    return Trainer(model, made, train_dataset=rows(), eval_dataset=rows())


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs("llama")).logits


def values_of(model: LoRAModel) -> dict[str, torch.Tensor]:
    return {each.module: each.adapter.lora_E for each in model._lora.carried("default")}


def test_a_training_ends_with_a_plain_adapter_of_the_budget_that_opens_in_peft(tmp_path: Path) -> None:
    model, alive = fresh(), []
    run = trainer(model, tmp_path / "run")
    run.train()
    for step in (2, 8):
        at = LoRAModel.from_pretrained(tmp_path / f"run/checkpoint-{step}", base_model=tiny("llama", noisy=True))
        assert at.peft_config["default"].total_step == 8
        alive.append(sum(int(e.count_nonzero()) for e in values_of(at).values()))
    assert alive == [int(12 + 12 * (1 - 1 / 5) ** 3), 12]  # of 6 layers, target_r 2
    config = model.peft_config["default"]
    left = {name: int(e.count_nonzero()) for name, e in values_of(at).items()}
    assert config.formula == "lora"
    assert {name: config.rank_of(name) for name in left} == {name: max(n, 1) for name, n in left.items()}
    assert len({*left.values()}) > 1
    assert torch.allclose(logits(model), logits(at), atol=1e-4)
    assert (logits(model) - logits(tiny("llama", noisy=True))).abs().max() > 0.1
    model.save_pretrained(tmp_path / "last")
    theirs = peft.PeftModel.from_pretrained(tiny("llama", noisy=True), str(tmp_path / "last")).eval()
    assert theirs.peft_config["default"].peft_type == "LORA"
    assert torch.allclose(logits(theirs), logits(model), atol=1e-4)
    again = LoRAModel.from_pretrained(tmp_path / "last", base_model=tiny("llama", noisy=True))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("step", [3, 7], ids=["while-the-budget-falls", "once-it-is-reached"])
def test_resuming_gives_the_bits_of_a_training_that_was_not_stopped(step: int, tmp_path: Path) -> None:
    whole = fresh()
    trainer(whole, tmp_path / "whole", save_steps=step).train()
    checkpoint = tmp_path / f"part/checkpoint-{step}"
    shutil.copytree(tmp_path / f"whole/checkpoint-{step}", checkpoint)
    resumed = fresh()
    trainer(resumed, tmp_path / "part", save_strategy="no").train(resume_from_checkpoint=True)
    assert whole.peft_config["default"].to_dict() == resumed.peft_config["default"].to_dict()
    for (name, value), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, other), name
    shutil.copy(checkpoint / "adapter_model.safetensors", checkpoint / "budget_default.safetensors")
    with pytest.raises(AdapterMismatchError, match="budget_default.* was not written in a training of 'default'"):
        trainer(fresh(), tmp_path / "part").train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "budget_default.safetensors").unlink()
    with pytest.raises(AdapterFileError, match="budget_default"):
        trainer(fresh(), tmp_path / "part").train(resume_from_checkpoint=str(checkpoint))


def test_the_best_model_at_the_end_is_the_checkpoints_and_too_large_a_one_is_told(tmp_path: Path) -> None:
    model = fresh()
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "turn"}
    run = trainer(model, tmp_path, greater_is_better=True, **best)
    run.compute_metrics = lambda _: {"turn": -run.state.global_step}  # the first checkpoint is the best
    with pytest.warns(UserWarning, match="12 of target_r"):
        run.train()
    step = Path(run.state.best_model_checkpoint)
    at = LoRAModel.from_pretrained(step, base_model=tiny("llama", noisy=True))
    assert step.name == "checkpoint-2"
    assert torch.allclose(logits(model), logits(at), atol=1e-4)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_what_was_trained_before_trains_on_for_another_number_of_steps(is_loaded: bool, tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    model = fresh()
    run = trainer(model, tmp_path)
    run.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        run.train()
    if is_loaded:
        model.save_pretrained(tmp_path / "saved")
        model = LoRAModel.from_pretrained(tmp_path / "saved", base_model=tiny("llama", noisy=True), is_trainable=True)
    trainer(model, tmp_path, max_steps=10).train()
    assert sum(each.adapter.r for each in model._lora.carried("default")) <= 2 * len(TARGETS) * 2 + len(TARGETS)
    assert model.peft_config["default"].formula == "lora"


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"tinit": 5, "tfinal": 3}, ConfigError, "leave none of total_step=8"),
        ({"total_step": 9}, ConfigError, "total_step=9"),
    ],
)
def test_a_schedule_that_does_not_fit_the_training_is_refused_before_a_step(
    settings: dict[str, Any], error: type[Exception], told: str, tmp_path: Path
) -> None:
    model = fresh(**settings)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=told):
        trainer(model, tmp_path).train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target_r": 5}, "more than r=4"),
        ({"target_r": 0}, "at least 1"),
        ({"beta1": 1.0}, "below 1"),
        ({"orth_reg_weight": -0.5}, "at least 0"),
        ({"tinit": 3, "tfinal": 5, "total_step": 8}, "leave none"),
        ({"tinit": 1.5}, "an integer"),
        ({"rank_pattern": {"q_proj": 2}}, "no such setting"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_config_is_made(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        LoRAConfig(**{**SETTINGS, **settings})


def test_room_for_other_ranks_is_refused() -> None:
    with pytest.raises(AdapterStateError, match="truncate"):
        fresh().prepare_hotswap(8)


def test_a_loop_of_ones_own_is_told_that_nobody_keeps_the_budget() -> None:
    model = fresh().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
    with pytest.warns(UserWarning, match="budget"):
        optimizer.step()


def test_trained_together_with_others_it_keeps_its_budget_and_truncates_to_plain_lora(tmp_path: Path) -> None:
    base = tiny("llama", noisy=True)
    runs = {"a": Run(LoRAConfig(target_modules=TARGETS, **SETTINGS)), "b": Run(LoRAConfig(r=2, target_modules=TARGETS))}
    arguments = TrainingArguments(str(tmp_path), max_steps=8, learning_rate=0.1, report_to=[], save_strategy="no")
    train_together(base, runs, arguments, train_dataset=rows())
    values = [each.adapter.lora_E for each in base._lora.carried("a")]
    assert sum(int(e.count_nonzero()) for e in values) == 12
    truncate(base, energy=1.0, adapter_name="a")
    assert base.peft_config["a"].formula == "lora"


def test_a_model_around_it_is_refused_before_a_step(tmp_path: Path) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fresh()

        def forward(self, **batch: Any) -> Any:
            return self.inner(**batch)

    with pytest.raises(AdapterStateError, match="AdaLoRA"):
        trainer(Around(), tmp_path).train()


# --- the numbers, against PEFT's allocator -------------------------------------------------------------------------

SCHEDULE: dict[str, Any] = {
    "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "beta1": 0.8, "beta2": 0.7, "orth_reg_weight": 0.3,
    "total_step": 12,
}  # fmt: skip


def both() -> tuple[LoRAModel, Any, Budget]:
    """The same adapter here and in PEFT, in float64, with numbers of its own."""
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7)).double()
    ours = add_lora(copy.deepcopy(net), LoRAConfig(r=4, use_adalora=True, target_modules=["0", "2"], **SCHEDULE))
    move(ours)
    theirs = peft.get_peft_model(net, peft.AdaLoraConfig(init_r=4, target_modules=["0", "2"], **SCHEDULE))
    found = {each.module: each.adapter for each in ours._lora.carried("default")}
    for name, adapter in found.items():
        layer = theirs.base_model.model.get_submodule(name)
        for part in ("lora_A", "lora_B", "lora_E"):
            layer.get_parameter(f"{part}.default").data = getattr(adapter, part).detach().clone()
    return ours, theirs.double(), Budget(found, SCHEDULE)


def parts(ours: LoRAModel, theirs: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
    layers = {each.module: each.adapter for each in ours._lora.carried("default")}
    names = [(module, part) for module in layers for part in ("lora_A", "lora_B", "lora_E")]
    model = theirs.base_model.model
    return [(getattr(layers[m], p), model.get_submodule(m).get_parameter(f"{p}.default")) for m, p in names]


def test_budgets_and_what_they_take_away_are_those_of_pefts_allocator() -> None:
    ours, theirs, budget = both()
    allocator = RankAllocator(theirs, theirs.peft_config["default"], "default")
    generator, counts = torch.Generator().manual_seed(6), []
    for step in range(1, 13):
        for mine, other in parts(ours, theirs):
            mine.grad = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
            other.grad = mine.grad.clone()
            with torch.no_grad():  # a step of an optimizer, which revives what was zero
                mine.sub_(0.1 * mine.grad)
                other.sub_(0.1 * other.grad)
        budget.settle(step)
        assert budget.allowed(step) == allocator.budget_schedule(step)[0]
        theirs.base_model.update_and_allocate(step)
        for mine, other in parts(ours, theirs):
            assert torch.allclose(mine, other, atol=1e-12), step
        counts.append(budget.components())
    assert counts[0] == 8
    assert counts[-1] == 4 == budget.target


def test_the_regularisers_gradient_is_that_of_pefts_loss() -> None:
    ours, theirs, budget = both()
    pairs = [pair for pair in parts(ours, theirs) if pair[0].shape[1] > 1]
    norms = []
    for mine, other in pairs:
        mine.grad = torch.ones_like(mine)
        square = other @ other.T if len(other) == 4 else other.T @ other
        norms.append(torch.linalg.matrix_norm(square - torch.eye(4)))
    wanted = torch.autograd.grad(0.3 * sum(norms) / len(norms), [other for _, other in pairs])
    budget.regularise()
    for (mine, _), want in zip(pairs, wanted, strict=True):
        assert torch.allclose(mine.grad, 1 + want, atol=1e-12)


def test_the_trainer_keeps_the_factors_near_orthogonality(tmp_path: Path) -> None:
    def distance(weight: float) -> float:
        model = fresh(orth_reg_weight=weight)
        factors = [each.adapter.lora_A for each in model._lora.carried("default")]
        trainer(model, tmp_path / str(weight), save_strategy="no").train()
        return sum(float(torch.linalg.matrix_norm(a.detach() @ a.detach().T - torch.eye(4))) for a in factors)

    assert distance(1.0) < 0.8 * distance(0.0)


def test_components_without_a_value_are_no_part_of_what_is_combined_and_truncated() -> None:
    ours, _, budget = both()
    budget.settle(9)
    ranks = [len(each.adapter.pairs().a) for each in ours._lora.carried("default")]
    assert ranks == [4, 1]  # of the second nothing is left, but a rank of 1
    assert not next(reversed([*ours._lora.carried("default")])).adapter.pairs().a.any()


def test_of_equal_components_the_first_stay_so_that_the_budget_is_kept() -> None:
    _, _, budget = both()
    budget.settle(9)  # without a gradient nothing is more important than another
    assert budget.components() == budget.target


def test_an_adapter_that_pefts_budget_made_smaller_computes_the_same_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(init_r=4, target_modules=TARGETS, **SCHEDULE)
    theirs = peft.get_peft_model(tiny("llama", noisy=True), config)
    move(theirs)
    for parameter in theirs.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    theirs.base_model.update_and_allocate(3)
    theirs.base_model.update_and_allocate(9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter 'default': . LoRA tensor")  # of a layer that nothing is left of
        theirs.save_pretrained(tmp_path)
    model = LoRAModel.from_pretrained(tmp_path, base_model=tiny("llama", noisy=True))
    assert sum(int(e.count_nonzero()) for e in values_of(model).values()) == 12
    assert torch.allclose(logits(model), logits(theirs), atol=1e-5)
