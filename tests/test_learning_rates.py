"""Learning rates and weight decay by what a parameter is, in own loops and through the stock Trainer's optimizers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, Trainer

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_optimizer, parameter_groups
from hf_lora.errors import AdapterStateError, ConfigError

from .tiny import tiny
from .trainings import Rows, bert, gpt2, trainer, weights
from .versions import OLDER

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT's own
]

RATE = 0.01
HEAD = {"classifier.adapters.default.saved_weight.value", "classifier.adapters.default.saved_bias.value"}
BY_TORCH = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
BY_BITSANDBYTES = ["adamw_8bit", "paged_adamw_8bit", "lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit"]


class Norm(nn.Module):
    """A norm that is none of torch's, with a bias of two dimensions beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.table = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.table.sum(0)


def found(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Return (learning rate, weight decay) by a parameter's name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def built(model: LoRAModel, tmp_path: Path, **changes: object) -> dict[str, tuple[float, float]]:
    """Return what the stock Trainer's own optimizer is told, by a parameter's name."""
    return found(model, trainer(model, tmp_path, learning_rate=RATE, **changes).create_optimizer().param_groups)


def test_b_gets_the_ratio_and_the_head_its_own_rate(tmp_path: Path) -> None:
    model = bert()
    model.set_learning_rates(loraplus_lr_ratio=16, head_learning_rate=0.5)
    for got in (found(model, parameter_groups(model, RATE)), built(model, tmp_path)):
        assert set(got) == {n for n, p in model.named_parameters() if p.requires_grad}
        assert {n: rate for n, (rate, _) in got.items()} == {
            n: 0.5 if n in HEAD else RATE * 16 if n.endswith("lora_B") else RATE for n in got
        }


def test_without_settings_the_trainers_own_groups_stay_as_they_are(tmp_path: Path) -> None:
    model = bert()
    run = trainer(model, tmp_path, weight_decay=0.1)
    ours = [(g["lr"], g["weight_decay"], [id(p) for p in g["params"]]) for g in run.create_optimizer().param_groups]
    other = trainer(model, tmp_path, weight_decay=0.1)
    theirs = Trainer.create_optimizer(other).param_groups
    assert ours == [(g["lr"], g["weight_decay"], [id(p) for p in g["params"]]) for g in theirs]


def test_the_groups_are_pefts_where_only_factors_train() -> None:
    peft = pytest.importorskip("peft")
    loraplus = pytest.importorskip("peft.optimizers")
    base = tiny("bert_mlm")
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["query", "word_embeddings"]))
    ours = LoRAModel.from_model(base, LoRAConfig(r=2, target_modules=["query", "word_embeddings"]))
    ours.set_learning_rates(loraplus_lr_ratio=8, loraplus_lr_embedding=0.25)
    made = loraplus.create_loraplus_optimizer(
        theirs, torch.optim.SGD, lr=RATE, loraplus_lr_ratio=8, loraplus_lr_embedding=0.25, loraplus_weight_decay=0.1
    )

    def sorted_groups(groups: list[dict]) -> list[tuple[float, float, list[tuple[int, ...]]]]:
        return sorted(
            (g["lr"], g["weight_decay"], sorted(tuple(p.shape) for p in g["params"])) for g in groups if g["params"]
        )

    assert sorted_groups(parameter_groups(ours, RATE, 0.1)) == sorted_groups(made.param_groups)


def test_vectors_beside_b_keep_the_common_rate_and_biases_of_b_follow_it() -> None:
    dora = bert(use_dora=True, bias="all")
    dora.set_learning_rates(loraplus_lr_ratio=4)
    for name, (rate, _) in found(dora, parameter_groups(dora, RATE)).items():
        assert rate == (4 * RATE if name.endswith("lora_B") else RATE), name
    biased = bert(lora_bias=True)
    biased.set_learning_rates(loraplus_lr_ratio=4)
    for name, (rate, _) in found(biased, parameter_groups(biased, RATE)).items():
        assert rate == (4 * RATE if name.endswith(("lora_B", "lora_bias")) else RATE), name


@pytest.mark.parametrize("name", ["default", "norm", "bias"])
def test_weights_are_decayed_and_norms_biases_and_lengths_are_not(name: str, tmp_path: Path) -> None:
    model = bert(name, use_dora=True, bias="all", modules_to_save=["LayerNorm", "classifier"])
    for got in (found(model, parameter_groups(model, RATE, 0.1)), built(model, tmp_path, weight_decay=0.1)):
        decayed = {n for n, (_, decay) in got.items() if decay}
        assert decayed == {
            n for n in got if n.endswith(("lora_A", "lora_B", "classifier.adapters." + name + ".saved_weight.value"))
        }
        assert len(got) > len(decayed) > 8
        assert {decay for _, decay in got.values()} == {0.0, 0.1}


def test_norms_and_biases_of_any_shape_are_known_by_what_they_are() -> None:
    model = add_lora(nn.Sequential(nn.Linear(4, 4), Norm(), nn.GroupNorm(2, 4)), LoRAConfig(target_modules=["0"]))
    model.requires_grad_(True)
    got = found(model, parameter_groups(model, RATE, 0.1))
    assert {n for n, (_, decay) in got.items() if decay} == {
        "0.weight", "0.adapters.default.weight.lora_A", "0.adapters.default.weight.lora_B"
    }  # fmt: skip


def test_parameters_of_the_base_that_train_are_heads_also_inside_another_module() -> None:
    model = gpt2()
    model.set_learning_rates(head_learning_rate=0.5)
    model.transformer.ln_f.requires_grad_(True)
    outer = nn.ModuleDict({"encoder": model, "score": nn.Linear(16, 2)})
    got = found(outer, parameter_groups(outer, RATE))
    heads = {"encoder.transformer.ln_f.weight", "encoder.transformer.ln_f.bias", "score.weight", "score.bias"}
    assert {n for n, (rate, _) in got.items() if rate == 0.5} == heads
    outer["other"] = bert()
    with pytest.raises(ConfigError, match="LoRAModels"):
        parameter_groups(outer, RATE)


def test_the_settings_survive_copying_and_pickling_and_calling_with_nothing_restores_the_default() -> None:
    model = bert()
    model.set_learning_rates(loraplus_lr_ratio=4)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len({g["lr"] for g in parameter_groups(copied, RATE)}) == 2
        copied.set_learning_rates()
        assert {g["lr"] for g in parameter_groups(copied, RATE)} == {RATE}
    assert len({g["lr"] for g in parameter_groups(model, RATE)}) == 2


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "16"])
def test_what_is_no_rate_is_refused_and_nothing_is_set(value: object) -> None:
    model = bert()
    for name in ("loraplus_lr_ratio", "loraplus_lr_embedding", "head_learning_rate"):
        with pytest.raises(ConfigError, match=f"{name}={value!r}"):
            model.set_learning_rates(**{name: value})
    with pytest.raises(ConfigError, match="learning_rate="):
        parameter_groups(model, value)
    with pytest.raises(ConfigError, match="weight_decay=-1"):
        parameter_groups(model, RATE, -1)
    assert {g["lr"] for g in parameter_groups(model, RATE)} == {RATE}


def test_a_ratio_below_one_is_told_to_be_the_opposite_of_lora_plus() -> None:
    model = bert()
    with pytest.warns(UserWarning, match=r"loraplus_lr_ratio=0\.5"):
        model.set_learning_rates(loraplus_lr_ratio=0.5)
    assert {g["lr"] for g in parameter_groups(model, RATE)} == {RATE, RATE / 2}


@pytest.mark.parametrize("name", ["loraplus_lr_embedding", "head_learning_rate"])
def test_a_rate_that_nothing_would_take_is_an_error_before_the_first_step(name: str, tmp_path: Path) -> None:
    model = gpt2()
    model.set_learning_rates(**{name: 0.1})
    with pytest.raises(ConfigError, match=rf"^{name}=0\.1"):
        parameter_groups(model, RATE)
    run = trainer(model, tmp_path)
    with pytest.raises(ConfigError, match=rf"^{name}=0\.1"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("rates", [{}, {"loraplus_lr_ratio": 4, "head_learning_rate": 0.003}], ids=["plain", "rates"])
@pytest.mark.parametrize("optim", [*BY_TORCH, *BY_BITSANDBYTES])
def test_any_optimizer_of_the_trainer_moves_adapters_only(optim: str, rates: dict[str, float], tmp_path: Path) -> None:
    if optim in BY_BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    model = bert()
    model.set_learning_rates(**rates)
    before = weights(model)
    run = trainer(
        model, tmp_path, optim=optim, max_steps=3, learning_rate=RATE, weight_decay=0.1, save_strategy="no",
        lr_scheduler_type="constant",
    )  # fmt: skip
    run.train()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    got = found(model, run.optimizer.param_groups)
    head, ratio = rates.get("head_learning_rate", RATE), rates.get("loraplus_lr_ratio", 1)
    assert got == {
        n: (head if n in HEAD else RATE * ratio if n.endswith("lora_B") else RATE, 0.0 if "bias" in n else 0.1)
        for n in moved
    }


def test_eight_bit_states_are_of_eight_bits_and_resume_in_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")

    def run(steps: int, resume: bool) -> tuple[LoRAModel, Trainer]:
        model = bert(r=256)  # smaller tensors than 4,096 elements keep states of 32 bits
        model.set_learning_rates(loraplus_lr_ratio=4)
        made = trainer(
            model, tmp_path, optim="adamw_8bit", max_steps=steps, lr_scheduler_type="constant", save_total_limit=3
        )
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        return model, made

    straight, first = run(4, resume=False)
    states = [s["state1"].dtype for s in first.optimizer.optimizer.state.values()]
    assert torch.uint8 in states
    resumed, _ = run(4, resume=True)
    want = weights(straight)
    assert all(torch.equal(value, want[n]) for n, value in resumed.state_dict().items())


def test_lora_plus_resumes_in_the_same_bits_and_a_ratio_that_changed_is_told(tmp_path: Path) -> None:
    def run(resume: bool, ratio: float) -> LoRAModel:
        model = bert()
        model.set_learning_rates(loraplus_lr_ratio=ratio, head_learning_rate=0.01)
        made = trainer(model, tmp_path, weight_decay=0.1)
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        return model

    want = weights(run(False, 8))
    assert all(torch.equal(value, want[n]) for n, value in run(True, 8).state_dict().items())
    with pytest.raises(ConfigError, match=r"loraplus_lr_ratio=4.*hf_lora\.parameter_groups"):
        run(True, 4)


def test_an_optimizer_of_ones_own_has_to_follow_the_rates(tmp_path: Path) -> None:
    model = bert()
    model.set_learning_rates(loraplus_lr_ratio=4, head_learning_rate=0.5)
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


def test_rates_that_change_between_two_trainings_need_a_new_optimizer(tmp_path: Path) -> None:
    model = bert()
    model.set_learning_rates(loraplus_lr_ratio=4)
    run = trainer(model, tmp_path, max_steps=2)
    run.train()
    run.train()
    for ratio in (8, None):
        model.set_learning_rates(loraplus_lr_ratio=ratio)
        with pytest.raises(ConfigError, match=r"trainer\.optimizer = None"):
            run.train()
    run.optimizer = run.lr_scheduler = None
    run.train()
    assert len({g["initial_lr"] for g in run.optimizer.param_groups}) == 1


def test_an_optimizer_without_a_learning_rate_refuses_rates(tmp_path: Path) -> None:
    model = bert()
    settings = {"optim": "adafactor", "optim_args": "relative_step=True,scale_parameter=True,warmup_init=True"}
    run = trainer(model, tmp_path, **settings)
    from transformers.optimization import Adafactor

    run.optimizer_cls_and_kwargs = (Adafactor, {"lr": None, "relative_step": True, "scale_parameter": True})
    run.create_optimizer()
    model.set_learning_rates(loraplus_lr_ratio=4)
    again = trainer(model, tmp_path)
    again.optimizer_cls_and_kwargs = (Adafactor, {"lr": None, "relative_step": True, "scale_parameter": True})
    with pytest.raises(ConfigError, match="Adafactor"):
        again.create_optimizer()


def test_names_and_options_of_a_group_stay_with_its_parameters(tmp_path: Path) -> None:
    model = gpt2()
    model.set_learning_rates(loraplus_lr_ratio=4)
    run = trainer(model, tmp_path)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": named, "betas": (0.5, 0.6), "mine": "kept"}]
    run.optimizer_cls_and_kwargs = (torch.optim.AdamW, {"lr": RATE, "params": groups})
    optimizer = run.create_optimizer()
    assert [(g["lr"], g["betas"], g["mine"]) for g in optimizer.param_groups] == [
        (rate, (0.5, 0.6), "kept") for rate in (RATE, 4 * RATE)
    ]
    for group in optimizer.param_groups:
        assert [model.get_parameter(n) is p for n, p in zip(group["param_names"], group["params"], strict=True)] == [
            True,
            True,
        ]


def test_a_plateau_that_moved_the_rates_is_no_reason_to_refuse_to_go_on(tmp_path: Path) -> None:
    def run(steps: int = 6) -> Trainer:
        model = bert()
        model.set_learning_rates(head_learning_rate=0.5)
        return trainer(
            model, tmp_path, max_steps=steps, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps",
            eval_steps=1, lr_scheduler_kwargs={"patience": 0, "threshold": 1.0}, metric_for_best_model="eval_loss",
        )  # fmt: skip

    straight, resumed, again = run(), run(), run(2)
    straight.train()
    assert min(g["lr"] for g in straight.optimizer.param_groups) < 1e-4
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    want = weights(straight.model)
    assert all(torch.equal(value, want[n]) for n, value in resumed.model.state_dict().items())
    again.train()
    again.train()


def test_a_one_cycle_schedule_of_ones_own_starts_below_the_rates_and_is_no_false_alarm(tmp_path: Path) -> None:
    model = bert()
    model.set_learning_rates(loraplus_lr_ratio=4, head_learning_rate=0.5)
    for follows in (True, False):
        run = trainer(model, tmp_path, max_steps=2)
        run.optimizer = torch.optim.AdamW(parameter_groups(model, RATE))
        rates = [g["lr"] for g in run.optimizer.param_groups] if follows else RATE
        run.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, max_lr=rates, total_steps=4)
        if follows:
            run.train()
        else:
            with pytest.raises(ConfigError, match=r"hf_lora\.parameter_groups"):
                run.train()


class _OwnDecay(Trainer):
    """Says itself what decays: factors, and nothing else."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [n for n, _ in model.named_parameters() if "lora_" in n]


def test_what_a_user_chose_to_decay_stays_so_and_takes_the_rates(tmp_path: Path) -> None:
    model = bert()
    model.set_learning_rates(loraplus_lr_ratio=4)
    stock = trainer(model, tmp_path, learning_rate=RATE, weight_decay=0.1)
    run = _OwnDecay(model=model, args=stock.args, train_dataset=stock.train_dataset)
    got = found(model, run.create_optimizer().param_groups)
    assert {n for n, (_, decay) in got.items() if decay} == {n for n in got if "lora_" in n}
    assert {n for n, (rate, _) in got.items() if rate == 4 * RATE} == {n for n in got if n.endswith("lora_B")}
    own = trainer(model, tmp_path)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": trained[:3], "weight_decay": 0.0}, {"params": trained[3:], "weight_decay": 0.3}]
    own.optimizer_cls_and_kwargs = (torch.optim.AdamW, {"lr": RATE, "params": groups})
    decays = {id(p): g["weight_decay"] for g in own.create_optimizer().param_groups for p in g["params"]}
    assert [decays[id(p)] for p in trained] == [0.0] * 3 + [0.3] * (len(trained) - 3)
    if OLDER:  # without factories of optimizers
        return
    factory = trainer(model, tmp_path)
    factory.optimizer_cls_and_kwargs = (lambda: lambda model: torch.optim.SGD(groups, lr=RATE), {})
    assert {g["weight_decay"] for g in factory.create_optimizer().param_groups[:2]} == {0.0}


class Around(nn.Module):
    """A module of one's own with a head of its own around a LoRAModel."""

    def __init__(self, inside: LoRAModel) -> None:
        super().__init__()
        self.inside, self.score = inside, nn.Linear(2, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.score(self.inside(input_ids).logits)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_rates_of_a_model_inside_the_trained_module_are_followed_or_refused(tmp_path: Path) -> None:
    model = bert()
    around = Around(model)
    run = trainer(around, tmp_path, max_steps=2, save_strategy="no", learning_rate=RATE)
    run.train_dataset = Rows()
    model.set_learning_rates(loraplus_lr_ratio=4, head_learning_rate=0.5)
    run.train()
    names = {id(p): n for n, p in around.named_parameters()}
    got = {names[id(p)]: g["initial_lr"] for g in run.optimizer.param_groups for p in g["params"]}
    assert {n for n, rate in got.items() if rate == 4 * RATE} == {n for n in got if n.endswith("lora_B")}
    heads = {"score.weight", "score.bias", *(f"inside.{n}" for n in HEAD)}
    assert {n for n, rate in got.items() if rate == 0.5} == heads
    other = trainer(around, tmp_path)
    other.train_dataset = Rows()
    other.optimizer = torch.optim.AdamW([p for p in around.parameters() if p.requires_grad], lr=RATE)
    with pytest.raises(ConfigError, match=r"hf_lora\.parameter_groups"):
        other.train()


def test_a_compiled_model_s_rates_are_found(tmp_path: Path) -> None:
    model = bert()
    model.set_learning_rates(loraplus_lr_ratio=4)
    wrapped = torch.compile(model, backend="eager")
    assert found(model, parameter_groups(wrapped, RATE)) == found(model, parameter_groups(model, RATE))
    run = trainer(model, tmp_path)
    run.model = wrapped
    got = found(model, run.create_optimizer().param_groups)
    assert {rate for n, (rate, _) in got.items() if n.endswith("lora_B")} == {4 * 0.02}
    assert isinstance(model, BertForSequenceClassification)
