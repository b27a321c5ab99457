"""Learning rates and weight decay by what a parameter is, in own loops and through the stock Trainer's optimizers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer
from transformers.optimization import Adafactor

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_optimizer, parameter_groups
from hf_lora.errors import AdapterStateError, ConfigError

from .tiny import tiny
from .trainings import Rows, bert, gpt2, ran, same, trainer, weights
from .versions import OLDER

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")

RATE = 0.01
HEAD = {"classifier.adapters.default.saved_weight.value", "classifier.adapters.default.saved_bias.value"}
BY_TORCH = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
BY_BITSANDBYTES = ["adamw_8bit", "paged_adamw_8bit", "lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit"]


def rated(ratio: float | None = 4, head: float | None = None, **changes: Any) -> LoRAModel:
    """Return a classifier whose B, and whose head, have rates of their own."""
    model = bert(**changes)
    model.set_learning_rates(loraplus_lr_ratio=ratio, head_learning_rate=head)
    return model


def found(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Return (learning rate, weight decay) by a parameter's name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def both_ways(model: LoRAModel, tmp_path: Path, decay: float = 0.0) -> list[dict[str, tuple[float, float]]]:
    """Return what `parameter_groups` and the stock Trainer's own optimizer give each parameter."""
    built = trainer(model, tmp_path, learning_rate=RATE, weight_decay=decay).create_optimizer()
    return [found(model, groups) for groups in (parameter_groups(model, RATE, decay), built.param_groups)]


def given(run: Trainer, kind: Any, **settings: Any) -> Trainer:
    """Give a Trainer the class of its optimizer, and what it is made of."""
    run.optimizer_cls_and_kwargs = (kind, settings)
    return run


# --- which parameter gets what ----------------------------------------------------------------------------------------


def test_b_gets_the_ratio_and_the_head_its_own_rate(tmp_path: Path) -> None:
    model = rated(16, 0.5)
    for got in both_ways(model, tmp_path):
        assert set(got) == {n for n, p in model.named_parameters() if p.requires_grad}
        assert {n: rate for n, (rate, _) in got.items()} == {
            n: 0.5 if n in HEAD else RATE * 16 if n.endswith("lora_B") else RATE for n in got
        }
    compiled = torch.compile(model, backend="eager")
    assert found(model, parameter_groups(compiled, RATE)) == got
    run = trainer(model, tmp_path, learning_rate=RATE)
    run.model = compiled
    assert found(model, run.create_optimizer().param_groups) == got


def test_without_settings_the_trainers_own_groups_stay_as_they_are(tmp_path: Path) -> None:
    model = bert()
    ours, theirs = (
        make(trainer(model, tmp_path, weight_decay=0.1)).param_groups
        for make in (lambda run: run.create_optimizer(), Trainer.create_optimizer)
    )
    seen = [[(g["lr"], g["weight_decay"], [id(p) for p in g["params"]]) for g in groups] for groups in (ours, theirs)]
    assert seen[0] == seen[1]


def test_the_groups_are_pefts_where_only_factors_train() -> None:
    peft, loraplus = pytest.importorskip("peft"), pytest.importorskip("peft.optimizers")
    base, targets = tiny("bert_mlm"), ["query", "word_embeddings"]
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=targets))
    ours = LoRAModel.from_model(base, LoRAConfig(r=2, target_modules=targets))
    rates = {"loraplus_lr_ratio": 8, "loraplus_lr_embedding": 0.25}
    ours.set_learning_rates(**rates)
    made = loraplus.create_loraplus_optimizer(theirs, torch.optim.SGD, lr=RATE, **rates, loraplus_weight_decay=0.1)
    seen = [
        sorted((g["lr"], g["weight_decay"], sorted(tuple(p.shape) for p in g["params"])) for g in groups if g["params"])
        for groups in (parameter_groups(ours, RATE, 0.1), made.param_groups)
    ]
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("changes", "faster"),
    [({"use_dora": True, "bias": "all"}, "lora_B"), ({"lora_bias": True}, ("lora_B", "lora_bias"))],
)
def test_vectors_beside_b_keep_the_common_rate_and_biases_of_b_follow_it(changes: dict, faster: Any) -> None:
    model = rated(**changes)
    for name, (rate, _) in found(model, parameter_groups(model, RATE)).items():
        assert rate == (4 * RATE if name.endswith(faster) else RATE), name


@pytest.mark.parametrize("name", ["default", "norm", "bias"])
def test_weights_are_decayed_and_norms_biases_and_lengths_are_not(name: str, tmp_path: Path) -> None:
    model = bert(name, use_dora=True, bias="all", modules_to_save=["LayerNorm", "classifier"])
    for got in both_ways(model, tmp_path, decay=0.1):
        decayed = {n for n, (_, decay) in got.items() if decay}
        weight = f"classifier.adapters.{name}.saved_weight.value"
        assert decayed == {n for n in got if n.endswith(("lora_A", "lora_B", weight))}
        assert len(got) > len(decayed) > 8
        assert {decay for _, decay in got.values()} == {0.0, 0.1}


def test_norms_and_biases_of_any_shape_are_known_by_what_they_are() -> None:
    class Norm(nn.Module):  # none of torch's, with a bias of two dimensions beside it
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.table = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 4))

    model = add_lora(nn.Sequential(nn.Linear(4, 4), Norm(), nn.GroupNorm(2, 4)), LoRAConfig(target_modules=["0"]))
    got = found(model, parameter_groups(model.requires_grad_(True), RATE, 0.1))
    factors = {f"0.adapters.default.weight.lora_{factor}" for factor in "AB"}
    assert {n for n, (_, decay) in got.items() if decay} == {"0.weight", *factors}


def test_parameters_of_the_base_that_train_are_heads_also_inside_another_module() -> None:
    model = gpt2()
    model.set_learning_rates(head_learning_rate=0.5)
    model.transformer.ln_f.requires_grad_(True)
    outer = nn.ModuleDict({"encoder": model, "score": nn.Linear(16, 2)})
    got = found(outer, parameter_groups(outer, RATE))
    heads = {f"{place}.{kind}" for place in ("encoder.transformer.ln_f", "score") for kind in ("weight", "bias")}
    assert {n for n, (rate, _) in got.items() if rate == 0.5} == heads
    outer["other"] = bert()
    with pytest.raises(ConfigError, match="LoRAModels"):
        parameter_groups(outer, RATE)


class _OwnDecay(Trainer):
    """Says itself what decays: factors, and nothing else."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [n for n, _ in model.named_parameters() if "lora_" in n]


def test_what_a_user_chose_to_decay_stays_so_and_takes_the_rates(tmp_path: Path) -> None:
    model = rated()
    stock = trainer(model, tmp_path, learning_rate=RATE, weight_decay=0.1)
    run = _OwnDecay(model=model, args=stock.args, train_dataset=stock.train_dataset)
    got = found(model, run.create_optimizer().param_groups)
    assert {n for n, (_, decay) in got.items() if decay} == {n for n in got if "lora_" in n}
    assert {n for n, (rate, _) in got.items() if rate == 4 * RATE} == {n for n in got if n.endswith("lora_B")}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": trained[:3], "weight_decay": 0.0}, {"params": trained[3:], "weight_decay": 0.3}]
    own = given(trainer(model, tmp_path), torch.optim.AdamW, lr=RATE, params=groups)
    decays = {id(p): g["weight_decay"] for g in own.create_optimizer().param_groups for p in g["params"]}
    assert [decays[id(p)] for p in trained] == [0.0] * 3 + [0.3] * (len(trained) - 3)
    if not OLDER:  # those have no factories of optimizers
        factory = given(trainer(model, tmp_path), lambda: lambda model: torch.optim.SGD(groups, lr=RATE))
        assert {g["weight_decay"] for g in factory.create_optimizer().param_groups[:2]} == {0.0}


def test_names_and_options_of_a_group_stay_with_its_parameters(tmp_path: Path) -> None:
    model = gpt2()
    model.set_learning_rates(loraplus_lr_ratio=4)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": named, "betas": (0.5, 0.6), "mine": "kept"}]
    groups = given(trainer(model, tmp_path), torch.optim.AdamW, lr=RATE, params=groups).create_optimizer().param_groups
    assert [(g["lr"], g["betas"], g["mine"]) for g in groups] == [(r, (0.5, 0.6), "kept") for r in (RATE, 4 * RATE)]
    assert [[id(model.get_parameter(n)) for n in g["param_names"]] for g in groups] == [
        [id(p) for p in g["params"]] for g in groups
    ]


def test_the_settings_survive_copying_and_pickling_and_calling_with_nothing_restores_the_default() -> None:
    model = rated()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len({g["lr"] for g in parameter_groups(copied, RATE)}) == 2
        copied.set_learning_rates()
        assert {g["lr"] for g in parameter_groups(copied, RATE)} == {RATE}
    assert len({g["lr"] for g in parameter_groups(model, RATE)}) == 2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "16"])
def test_what_is_no_rate_is_refused_and_nothing_is_set(value: object) -> None:
    model = bert()
    for name in ("loraplus_lr_ratio", "loraplus_lr_embedding", "head_learning_rate"):
        with pytest.raises(ConfigError, match=f"{name}={value!r}"):
            model.set_learning_rates(**{name: value})
    with pytest.raises(ConfigError, match="learning_rate=.*weight_decay=-1"):
        parameter_groups(model, value, -1)
    assert {g["lr"] for g in parameter_groups(model, RATE)} == {RATE}


def test_a_ratio_below_one_is_told_to_be_the_opposite_of_lora_plus() -> None:
    with pytest.warns(UserWarning, match=r"loraplus_lr_ratio=0\.5"):
        model = rated(0.5)
    assert {g["lr"] for g in parameter_groups(model, RATE)} == {RATE, RATE / 2}


@pytest.mark.parametrize("name", ["loraplus_lr_embedding", "head_learning_rate"])
def test_a_rate_that_nothing_would_take_is_an_error_before_the_first_step(name: str, tmp_path: Path) -> None:
    model = gpt2()
    model.set_learning_rates(**{name: 0.1})
    run = trainer(model, tmp_path)
    for start in (lambda: parameter_groups(model, RATE), run.train):
        with pytest.raises(ConfigError, match=rf"^{name}=0\.1"):
            start()
    assert run.state.global_step == 0


def test_an_optimizer_of_ones_own_has_to_follow_the_rates(tmp_path: Path) -> None:
    model = rated(4, 0.5)
    plain = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    for wrong in (plain, torch.optim.AdamW(parameter_groups(bert(), RATE))):
        run = trainer(model, tmp_path)
        run.optimizer = wrong
        with pytest.raises((ConfigError, AdapterStateError), match="parameter_groups|missing"):
            run.train()
    with pytest.raises(ConfigError, match=r"loraplus_lr_ratio .*head_learning_rate .*\[0\.01\]"):
        check_optimizer(model, plain)
    run = trainer(model, tmp_path, max_steps=2)
    run.optimizer = torch.optim.AdamW(parameter_groups(model, RATE))
    run.train()
    assert run.state.global_step == 2


def test_an_optimizer_without_a_learning_rate_refuses_rates(tmp_path: Path) -> None:
    model = bert()
    runs = [given(trainer(model, tmp_path), Adafactor, lr=None, relative_step=True) for _ in range(2)]
    runs[0].create_optimizer()
    model.set_learning_rates(loraplus_lr_ratio=4)
    with pytest.raises(ConfigError, match="Adafactor"):
        runs[1].create_optimizer()


def test_rates_that_change_between_two_trainings_need_a_new_optimizer(tmp_path: Path) -> None:
    model = rated()
    run = ran(model, tmp_path, max_steps=2)
    run.train()
    for ratio in (8, None):
        model.set_learning_rates(loraplus_lr_ratio=ratio)
        with pytest.raises(ConfigError, match=r"trainer\.optimizer = None"):
            run.train()
    run.optimizer = run.lr_scheduler = None
    run.train()
    assert len({g["initial_lr"] for g in run.optimizer.param_groups}) == 1


class Around(nn.Module):
    """A module of one's own with a head of its own around a LoRAModel."""

    def __init__(self, inside: LoRAModel) -> None:
        super().__init__()
        self.inside, self.score = inside, nn.Linear(2, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.score(self.inside(input_ids).logits)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_rates_of_a_model_inside_the_trained_module_are_followed_or_refused(tmp_path: Path) -> None:
    around = Around(rated(4, 0.5))
    run, other = (trainer(around, tmp_path, max_steps=2, save_strategy="no", learning_rate=RATE) for _ in range(2))
    run.train_dataset = other.train_dataset = Rows()
    run.train()
    names = {id(p): n for n, p in around.named_parameters()}
    got = {names[id(p)]: g["initial_lr"] for g in run.optimizer.param_groups for p in g["params"]}
    heads = {"score.weight", "score.bias", *(f"inside.{n}" for n in HEAD)}
    assert got == {n: 0.5 if n in heads else 4 * RATE if n.endswith("lora_B") else RATE for n in got}
    other.optimizer = torch.optim.AdamW([p for p in around.parameters() if p.requires_grad], lr=RATE)
    with pytest.raises(ConfigError, match=r"hf_lora\.parameter_groups"):
        other.train()


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", [*BY_TORCH, *BY_BITSANDBYTES])
def test_any_optimizer_of_the_trainer_moves_adapters_only_at_their_rates(optim: str, tmp_path: Path) -> None:
    if optim in BY_BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    model = rated(4, 0.003)
    before = weights(model)
    run = trainer(
        model, tmp_path, optim=optim, max_steps=3, learning_rate=RATE, weight_decay=0.1, save_strategy="no",
        lr_scheduler_type="constant",
    )  # fmt: skip
    run.train()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    assert found(model, run.optimizer.param_groups) == {
        n: (0.003 if n in HEAD else RATE * 4 if n.endswith("lora_B") else RATE, 0.0 if "bias" in n else 0.1)
        for n in moved
    }


def test_eight_bit_states_are_of_eight_bits_and_resume_in_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = {"optim": "adamw_8bit", "max_steps": 4, "lr_scheduler_type": "constant", "save_total_limit": 3}
    straight, resumed = (
        rated(r=256, lora_alpha=256) for _ in range(2)
    )  # tensors below 4,096 elements keep states of 32 bits
    first = ran(straight, tmp_path, **settings)
    assert torch.uint8 in [s["state1"].dtype for s in first.optimizer.optimizer.state.values()]
    trainer(resumed, tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same(straight, resumed)


def test_lora_plus_resumes_in_the_same_bits_and_a_ratio_that_changed_is_told(tmp_path: Path) -> None:
    straight, resumed = rated(8, 0.01), rated(8, 0.01)
    trainer(straight, tmp_path, weight_decay=0.1).train()
    half = str(tmp_path / "checkpoint-2")
    trainer(resumed, tmp_path, weight_decay=0.1).train(resume_from_checkpoint=half)
    same(straight, resumed)
    with pytest.raises(ConfigError, match=r"loraplus_lr_ratio=4.*hf_lora\.parameter_groups"):
        trainer(rated(4, 0.01), tmp_path, weight_decay=0.1).train(resume_from_checkpoint=half)


def test_a_plateau_that_moved_the_rates_is_no_reason_to_refuse_to_go_on(tmp_path: Path) -> None:
    settings = {
        "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "threshold": 1.0},
        "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss",
    }  # fmt: skip
    straight, resumed = (trainer(rated(None, 0.5), tmp_path, **settings) for _ in range(2))
    straight.train()
    assert min(g["lr"] for g in straight.optimizer.param_groups) < 1e-4
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    same(straight.model, resumed.model)
    resumed.args.max_steps = 2
    resumed.train()


@pytest.mark.parametrize("follows", [True, False])
def test_a_one_cycle_schedule_of_ones_own_starts_below_the_rates_and_is_no_false_alarm(follows, tmp_path: Path) -> None:
    model = rated(4, 0.5)
    run = trainer(model, tmp_path, max_steps=2)
    run.optimizer = torch.optim.AdamW(parameter_groups(model, RATE))
    rates = [g["lr"] for g in run.optimizer.param_groups] if follows else RATE
    run.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, max_lr=rates, total_steps=4)
    if follows:
        run.train()
    else:
        with pytest.raises(ConfigError, match=r"hf_lora\.parameter_groups"):
            run.train()
