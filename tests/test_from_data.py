"""Starts from data: EVA and LoRA-GA against plain float64 lines, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import ArgumentError, ConfigError, TargetError

from .cases import KIND_CASES, config_of, data_of, move, network
from .peek import RunSettings, first_gradients, plan_run
from .quantising import FIRST, read
from .runs import write_base
from .tiny import IDS, tiny

EVA, GA = {"init_lora_weights": "eva"}, {"init_lora_weights": "lora_ga"}
LOFTQ = {"init_lora_weights": "loftq"}


class Two(nn.Module):
    """Two layers, each with an input of its own."""

    def __init__(self, one: int = 6, two: int = 6) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(one, 8), nn.Linear(two, 7)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.one(x).sin().mean() + self.two(y).cos().mean()).square()


def _net(*sizes: int) -> Two:
    torch.manual_seed(0)
    return Two(*sizes).double()


def _config(**settings: Any) -> LoRAConfig:
    return LoRAConfig(**{"r": 2, "lora_alpha": 5, "target_modules": ["one", "two"], **settings})


def _batches(count: int, rows: int = 20) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([5, 3, 2, 1, 0.5, 0.1], dtype=torch.float64)
    draws = [torch.randn(2, rows, 6, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(x * spread + number / 3, y * spread.flip(0) ** 0.2 - number / 3) for number, (x, y) in enumerate(draws)]


def _a(model: Any, name: str) -> Tensor:
    return model.get_submodule(name).carried("default")["weight"].lora_A.detach()


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions of rows about their mean and the shares of the variance."""
    centred = rows - rows.mean(0)
    _, s, vh = torch.linalg.svd(centred, full_matrices=False)
    return vh, s.square() / centred.square().sum()


def _same_up_to_sign(got: Tensor, want: Tensor, atol: float = 1e-5) -> bool:
    signs = (got * want).sum(1, keepdim=True).sign()
    return torch.allclose(got, signs * want, atol=atol)


# --- EVA ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4])
def test_eva_begins_with_the_principal_directions_of_all_the_inputs_and_shares_out_the_rank(count: int) -> None:
    data = _batches(count)
    model: Any = add_lora(_net(), _config(r=3, **EVA, eva_config={"tau": 1.0}), data=data)
    seen = {name: _principal(torch.cat([batch[at] for batch in data])) for at, name in enumerate(("one", "two"))}
    every = sorted(((share, name) for name, (_, shares) in seen.items() for share in shares.tolist()), reverse=True)
    ranks = {name: [n for _, n in every[:6]].count(name) for name in seen}
    assert sorted(ranks.values()) != [3, 3], "the data asks for no other ranks, so this test proves nothing"
    for name, (directions, _) in seen.items():
        adapter = model.get_submodule(name).carried("default")["weight"]
        assert adapter.r == ranks[name]
        assert _same_up_to_sign(adapter.lora_A.detach(), directions[: ranks[name]])
        assert not adapter.lora_B.any()
        assert adapter.scaling == pytest.approx(5 / 3)  # alpha grows with the rank
    found = model.peft_config["default"]
    assert found.rank_pattern == {name: rank for name, rank in ranks.items() if rank != 3}
    assert found.eva_config["rho"] == 2.0


def test_eva_leaves_a_layer_out_whose_directions_explain_least(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 1, generator=generator, dtype=torch.float64) * torch.ones(4, dtype=torch.float64)
    x = x + torch.randn(40, 1, generator=generator, dtype=torch.float64) * torch.tensor([1.0, -1, 1, -1])
    y = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    model: Any = add_lora(_net(4, 30), _config(r=1, **EVA), data=[(x, y)])
    assert model.peft_config["default"].target_modules == ["one"]
    assert model.peft_config["default"].rank_pattern == {"one": 2}
    move(model)
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=_net(4, 30))
    assert torch.equal(again(x, y), model(x, y))


def test_eva_whitens_and_keeps_alpha_where_it_is_asked_to() -> None:
    data = _batches(1)
    plain: Any = add_lora(_net(), _config(**EVA), data=data)
    whitened: Any = add_lora(
        _net(), _config(**EVA, eva_config={"whiten": True, "adjust_scaling_factors": False}), data=data
    )
    x = data[0][0] - data[0][0].mean(0)
    values = torch.linalg.svdvals(x)[: len(_a(plain, "one"))]
    assert torch.allclose(_a(whitened, "one"), _a(plain, "one") / values.sqrt()[:, None], atol=1e-5)
    assert whitened.peft_config["default"].alpha_pattern == {}


def test_eva_looks_at_attended_and_labelled_positions_alone() -> None:
    ids = torch.arange(24).reshape(2, 12) % 40
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 7:], labels[0, :3] = 0, -100
    config = LoRAConfig(r=2, target_modules=["q_proj", "v_proj"], **EVA, eva_config={"rho": 1})
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    model: Any = LoRAModel.from_model(tiny("llama"), config, data=[batch])
    name, inputs = next((n, []) for n in model._lora.layers if n.endswith("1.self_attn.q_proj"))
    base = tiny("llama")
    base.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    base.eval()(ids, attention_mask=mask)
    rows = inputs[0][mask.bool() & (labels != -100)].detach().double()
    assert _same_up_to_sign(_a(model, name).double(), _principal(rows)[0][:2], 1e-3)
    assert torch.equal(_a(model, name), _a(model, name.replace("q_proj", "v_proj"))), "they are given one tensor"


def test_eva_stops_where_directions_stay() -> None:
    taken = []

    def batches() -> Any:
        for number in range(50):
            taken.append(number)
            yield _batches(1, rows=400)[0]

    add_lora(_net(), _config(**EVA), data=batches())
    assert len(taken) == 2


# --- LoRA-GA ------------------------------------------------------------------------------------------------------------


def _gradient(net: Two, data: list[tuple[Tensor, Tensor]], name: str) -> Tensor:
    weight = net.get_submodule(name).weight
    return sum(torch.autograd.grad(net(*batch), weight)[0] for batch in data) / len(data)


@pytest.mark.parametrize("scale", ["stable", "unit", "gd_scale", "weight_svd"])
@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_lora_ga_begins_with_directions_of_the_mean_gradient(direction: str, scale: str) -> None:
    data, net = _batches(3), _net()
    settings = {"direction": direction, "scale": scale, "stable_gamma": 9}
    model: Any = add_lora(_net(), _config(**GA, lora_ga_config=settings), data=data)
    for name in ("one", "two"):
        u, _, vh = torch.linalg.svd(_gradient(net, data, name))
        of_a, of_b = {"ArB2r": ([0, 1], [2, 3]), "A2rBr": ([2, 3], [0, 1]), "ArBr": ([1, 3], [0, 2])}[direction]
        factor = {
            "stable": len(u) ** 0.25 / 3,
            "unit": 1,
            "gd_scale": 1 / 2.5,
            "weight_svd": (torch.linalg.svdvals(net.get_submodule(name).weight)[:2] / 2.5).sqrt().mean(),
        }[scale]
        adapter = model.get_submodule(name).carried("default")["weight"]
        assert _same_up_to_sign(adapter.lora_A.detach(), vh[of_a] * factor)
        assert _same_up_to_sign(adapter.lora_B.detach().T, u.T[of_b] * factor)


def test_lora_ga_gives_the_same_bits_however_few_gradients_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _batches(2)
    whole: Any = add_lora(_net(), _config(**GA), data=data)
    monkeypatch.setattr(first_gradients, "_CHUNK", 1)
    parts: Any = add_lora(_net(), _config(**GA), data=data)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_looking_at_data_leaves_the_base_as_it_was() -> None:
    base = tiny("llama").train()
    base.model.norm.eval()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    batch = {"input_ids": IDS, "labels": IDS}
    config = LoRAConfig(r=2, target_modules=["q_proj"], **GA)
    trained = []

    def run(model: Any) -> Tensor:
        trained.append(model.training)
        return model(**batch).loss

    model: Any = LoRAModel.from_model(base, config, data=lambda _: [batch, run])
    assert (model.training, trained) == (True, [False])
    assert not model.model.norm.training
    plain = {name: value for name, value in model.state_dict().items() if "adapters" not in name}
    assert all(torch.equal(value, before[name]) for name, value in plain.items())
    assert not any(p.requires_grad or p.grad is not None for n, p in model.named_parameters() if "adapters" not in n)


def test_a_second_adapter_is_started_on_the_base_alone() -> None:
    data = _batches(2)
    alone: Any = add_lora(_net(), _config(**GA, seed=1), data=data)
    model: Any = add_lora(_net(), _config(init_lora_weights=False))
    move(model)
    model.add_adapter(_config(**GA, seed=1), "second", data=data)
    for name in ("one", "two"):
        got = model.get_submodule(name).carried("second")["weight"].lora_A
        assert torch.equal(got, alone.get_submodule(name).carried("default")["weight"].lora_A)


def test_the_file_of_lora_ga_needs_no_data_and_no_base(tmp_path: Path) -> None:
    model: Any = add_lora(_net(), _config(**GA, lora_ga_config={"stable_gamma": 4}), data=_batches(1))
    move(model)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["init_lora_weights"], written.get("lora_ga_config")) == (4, True, None)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    adapter = model.one.carried("default")["weight"]
    b, a = (tensors[f"base_model.model.one.lora_{x}.weight"] for x in "BA")
    assert torch.allclose(b @ a, adapter.product(), atol=1e-12)
    again: Any = LoRAModel.from_pretrained(tmp_path, base_model=_net(), is_trainable=True)
    assert again.peft_config["default"].lora_ga_config["stable_gamma"] == 4
    assert _a(again, "one").shape == (2, 6)


# --- LoftQ --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a module", "tensors"])
@pytest.mark.parametrize("kind", [kind for kind in FIRST if kind in KIND_CASES])
def test_loftq_begins_with_the_best_approximation_of_what_quantising_took(
    kind: str, given: str, tmp_path: Path
) -> None:
    before: Any = data_of(kind, "loftq")["data"]
    data = before if given == "a module" else dict(before.state_dict())
    model: Any = add_lora(network(kind), config_of(kind, "loftq", r=3, lora_alpha=6), data=data)
    lost = before.layer.weight.detach().double() - read(network(kind).layer).double()
    u, s, vh = torch.linalg.svd(lost, full_matrices=False)
    adapter = model.layer.carried("default")["weight"]
    product = adapter.scaling * adapter.lora_B.detach().double() @ adapter.lora_A.detach().double()
    assert adapter.scaling == 2
    assert (product - u[:, :3] * s[:3] @ vh[:3]).abs().max() < 1e-4 * s[0]
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["init_lora_weights"], written["r"], written.get("loftq_config")) == (True, 3, None)


# --- what is refused ----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], Any, type[Exception], str]] = {
    "no data": (EVA, None, ConfigError, "starts from data: pass a few batches"),
    "no labels": (GA, None, ConfigError, "with labels where the adapter is added"),
    "data for nobody": ({}, [1], ArgumentError, "data= has no effect"),
    "settings for nobody": ({"eva_config": {"rho": 1}}, None, ConfigError, "eva_config=.* has no effect"),
    "settings of another": ({**GA, "eva_config": {"rho": 1}}, [1], ConfigError, "eva_config=.* has no effect"),
    "no such setting": ({**EVA, "eva_config": {"roh": 1}}, [1], ConfigError, "eva_config: roh=1; its settings"),
    "a wrong value": ({**GA, "lora_ga_config": {"scale": "big"}}, [1], ConfigError, "scale='big'"),
    "a round more": ({**LOFTQ, "loftq_config": {"loftq_iter": 2}}, _net(), ConfigError, "loftq_iter=2"),
    "weights of nobody": (LOFTQ, [1], ArgumentError, "data= is a list"),
    "a base in float": (LOFTQ, _net(), TargetError, "one, two: not quantised"),
    "no batch": (GA, [], ConfigError, "holds no batch"),
    "no batch for inputs": (EVA, [], ConfigError, "no more positions"),
    "few positions": (EVA, [(torch.ones(2, 6), torch.ones(2, 6))], ConfigError, "one, two no more positions"),
    "no loss": (GA, [lambda m: m.one(torch.ones(1, 6).double())], ConfigError, "needs a loss"),
    "a loss of no gradient": (GA, [lambda m: m.one.weight.detach().sum()], ConfigError, "a gradient"),
    "more directions than there are": ({**GA, "r": 7}, [], TargetError, "one: .* takes r=7 directions out of .* has 6"),
    "a gamma without end": ({**GA, "lora_ga_config": {"stable_gamma": float("inf")}}, [], ConfigError, "gamma=inf"),
    "one batch and no list": (
        EVA,
        {"x": torch.ones(2, 6)},
        ArgumentError,
        r"data= is {'x': a tensor \(2, 6\)}: it takes",
    ),
    "a function of nothing": (EVA, lambda model: None, ArgumentError, "data= is a NoneType"),
    "no batches": (EVA, "abc", ArgumentError, "data= is a str"),
    "numbers": (EVA, [1], ArgumentError, "data= holds a int, which is no batch"),
    "what the model does not take": (
        EVA,
        [{"z": torch.ones(2)}],
        ArgumentError,
        r"holds {'z': a tensor \(2,\)}, which the",
    ),
    "inputs that are not finite": (
        EVA,
        [(torch.full((9, 6), math.nan),) * 2],
        ArgumentError,
        "one inputs that are not",
    ),
    "gradients that are not finite": (
        GA,
        [(torch.full((9, 6), math.nan),) * 2],
        ConfigError,
        "one.weight, two.weight a",
    ),
    "a layer that is not reached": (
        GA,
        [lambda m: m.one(torch.ones(1, 6).double()).sum()],
        ConfigError,
        "two.weight no gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_does_not_do_is_refused_and_the_model_is_left_as_it_was(case: str) -> None:
    settings, data, error, message = REFUSED[case]
    net = _net()
    if isinstance(data, list) and data and isinstance(data[0], tuple):
        data = [tuple(each.double() for each in data[0])]
    with pytest.raises(error, match=message):
        add_lora(net, _config(**settings), data=data)
    assert type(net) is Two
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_eva_refuses_weights_that_are_read() -> None:
    with pytest.raises(TargetError, match="in_proj_weight|attention"):
        add_lora(
            nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)}),
            LoRAConfig(r=2, target_modules=["attention"], **EVA),
            data=[lambda m: m.attention(*[torch.randn(5, 1, 8)] * 3)],
        )


def test_an_adapter_that_is_loaded_takes_no_data(tmp_path: Path) -> None:
    LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2)).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="data= has no effect: .*has begun already"):
        LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"), data=[{"input_ids": IDS}])


def test_the_command_hands_the_start_its_own_first_batches(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    (tmp_path / "rows.csv").write_text("text,label\n" + "good w1 w2 w3 w4,1\nbad w2 w1 w5,0\n" * 20)
    (tmp_path / "scratch").mkdir()
    settings = RunSettings(
        model=str(tmp_path / "base"), train=str(tmp_path / "rows.csv"), r=2, lora={"init_lora_weights": "eva"}
    )
    plan = plan_run(settings, tmp_path / "scratch")
    assert plan.model.peft_config["default"].init_lora_weights == "eva"
    factors = [p.detach() for n, p in plan.model.named_parameters() if n.endswith("lora_A")]
    assert factors
    for a in factors:  # directions, and no random numbers
        assert torch.allclose(a @ a.T, torch.eye(len(a)) * a[0].square().sum(), atol=1e-5)


@pytest.mark.skipif("nf4" not in KIND_CASES, reason="bitsandbytes is not here")
def test_loftq_refuses_weights_of_another_model() -> None:
    with pytest.raises(ConfigError, match="data= has None for layer.weight, which is \\(32, 64\\) in float"):
        add_lora(network("nf4"), config_of("nf4", "loftq"), data={})
