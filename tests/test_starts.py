"""Where A and B begin: each start against a few plain lines in float64, and seeds that decide every bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora, compare
from hf_lora.errors import AdapterFileError, AdapterStateError, ConfigError, TargetError

from .cases import VARIANTS, Named, move, network, settings_of
from .peek import INITS, read_notes
from .tiny import tiny

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def _made(start: str | bool, r: int = 4, **settings: object) -> tuple[Tensor, LoRAModel]:
    """Return a weight, float64, and a layer of it with an adapter of scaling 2.5."""
    torch.manual_seed(0)
    net = Named(nn.Linear(12, 9)).double()
    weight = net.layer.weight.detach().clone()
    config = LoRAConfig(r=r, lora_alpha=2.5 * r, target_modules=["layer"], init_lora_weights=start, **settings)
    return weight, add_lora(net, config)


def _factors(model: LoRAModel) -> tuple[Tensor, Tensor]:
    (adapter,) = model.layer.carried("default").values()
    return adapter.lora_A.detach().clone(), adapter.lora_B.detach().clone()


def test_milora_begins_with_the_minor_singular_directions() -> None:
    weight, model = _made("milora")
    a, b = _factors(model)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(2.5 * b @ a, u[:, 5:] * s[5:] @ vh[5:], atol=1e-5)
    assert torch.allclose((a * a).sum(1), s[5:] / 2.5, atol=1e-5), "the values are not split evenly"
    assert torch.allclose((b * b).sum(0), s[5:] / 2.5, atol=1e-5)


def test_mica_begins_with_the_minor_left_vectors_and_trains_a_alone() -> None:
    weight, model = _made("mica")
    a, b = _factors(model)
    u = torch.linalg.svd(weight).U
    assert not a.any()
    assert torch.allclose(b @ b.T, u[:, 5:] @ u[:, 5:].T, atol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    model(torch.randn(3, 12, dtype=torch.float64)).square().sum().backward()
    torch.optim.SGD(trained, 0.1).step()
    assert torch.equal(_factors(model)[1], b)
    assert _factors(model)[0].any()


def test_orthogonal_begins_with_two_factors_whose_product_is_zero() -> None:
    torch.manual_seed(0)
    model = add_lora(
        Named(nn.Linear(3000, 2000)), LoRAConfig(r=8, init_lora_weights="orthogonal", target_modules=["layer"])
    )
    a, b = (factor.double() for factor in _factors(model))
    assert (b @ a).abs().max() < 1e-7
    for factor in (a, b.T):  # X Q / 10 with X normal and Q half of an orthogonal matrix
        values = torch.linalg.eigvalsh(factor @ factor.T / factor.shape[1])
        assert torch.allclose(values, torch.tensor([0.0] * 4 + [0.01] * 4, dtype=torch.float64), atol=1.5e-3)
    inside = [torch.linalg.svd(factor).U[:, :4] for factor in (a, b.T)]
    assert (inside[0].T @ inside[1]).abs().max() < 1e-5, "A and B do not share one orthogonal matrix"


@pytest.mark.parametrize(
    ("start", "settings", "message"),
    [("orthogonal", {"r": 3}, "even rank, and r=3. Set r=4"), ("milora", {"r": 10}, "10 directions .* 9")],
)
def test_a_rank_that_a_start_has_no_meaning_for_is_refused(start: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        _made(start, **settings)


@pytest.mark.parametrize(
    "settings",
    [*({"init_lora_weights": start} for start in ("pissa", "pissa_niter_4", "milora", "mica")), {"use_lora_xs": True}],
)
def test_a_weight_that_is_not_finite_has_no_start_and_the_model_is_left_as_it_was(settings: dict[str, Any]) -> None:
    net = Named(nn.Linear(8, 6))
    with torch.no_grad():
        net.layer.weight[0, 0] = torch.nan
    with pytest.raises(AdapterStateError, match=r"matrix \(.*\) whose numbers are not finite"):
        add_lora(net, LoRAConfig(r=2, target_modules=["layer"], **settings))
    assert type(net) is Named
    assert type(net.layer) is nn.Linear


@pytest.mark.parametrize("switch", ["use_dora", "use_hira"])
def test_a_start_that_keeps_a_factor_goes_with_plain_lora_alone(switch: str) -> None:
    with pytest.raises(ConfigError, match=f"'mica' keeps lora_B .*{switch}"):
        LoRAConfig(init_lora_weights="mica", **{switch: True})


# --- the file of a start that nobody can compute again -------------------------------------------------------------------


def test_a_held_start_comes_back_on_a_base_that_would_not_give_it_again(tmp_path: Path) -> None:
    _, model = _made("milora")
    move(model)
    model.save_pretrained(tmp_path)
    torch.manual_seed(5)
    other = Named(nn.Linear(12, 9)).double()
    own, product = other.layer.weight.detach().clone(), next(iter(model.layer.carried("default").values())).product()
    again = LoRAModel.from_pretrained(tmp_path, base_model=other, check_base=False)
    assert torch.allclose(again.merge_and_unload().layer.weight, own + 2.5 * product, atol=1e-12)
    tensors, config = load_file(tmp_path / WEIGHTS), json.loads((tmp_path / CONFIG).read_text())
    a, b = (tensors[f"base_model.model.layer.lora_{x}.weight"] for x in "AB")
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 20.0, True)
    assert torch.allclose(b @ a, product, atol=1e-12)


def test_files_of_a_held_start_are_compared_as_they_compute(tmp_path: Path) -> None:
    models = [_made(start)[1] for start in ("milora", True)]
    for number, model in enumerate(models):
        move(model, seed=number)
        model.save_pretrained(tmp_path / str(number))
    models[0].load_adapter(tmp_path / "1", "other")
    there = compare("default", "other", model=models[0])
    here = compare(tmp_path / "0", tmp_path / "1")
    assert here.layers[0].cosine == pytest.approx(there.layers[0].cosine)


def test_a_held_start_is_resumed_in_place(tmp_path: Path) -> None:
    _, model = _made("milora")
    move(model)
    model.save_pretrained(tmp_path)
    fresh = _made("milora")[1]
    x = torch.randn(3, 12, dtype=torch.float64)
    assert not torch.equal(fresh(x), model(x))
    fresh.load_weights(tmp_path)
    assert torch.equal(fresh(x), model(x))
    state = _made("milora", seed=5)[1]
    state.load_state_dict(model.state_dict())
    assert torch.equal(state(x), model(x))


def test_a_note_of_a_start_that_is_damaged_is_told_and_one_of_another_rank_counts_for_nothing(tmp_path: Path) -> None:
    _, model = _made("milora")
    model.save_pretrained(tmp_path / "damaged")
    notes = {**read_notes(tmp_path / "damaged" / WEIGHTS), "started_as": {"r": 4}}
    tensors = load_file(tmp_path / "damaged" / WEIGHTS)
    save_file(tensors, tmp_path / "damaged" / WEIGHTS, metadata={"format": "pt", "hf_lora": json.dumps(notes)})
    with pytest.raises(AdapterFileError, match="of its start is damaged"):
        LoRAModel.from_pretrained(tmp_path / "damaged", base_model=_made(True)[1].unload())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "rank_pattern": {"layer": 8}, "r": 16, "lora_alpha": 40}))
    again = LoRAModel.from_pretrained(tmp_path, base_model=_made(True)[1].unload())
    assert again.peft_config["default"].init_lora_weights is True


# --- seeds --------------------------------------------------------------------------------------------------------------


def _drawn(order: str, start: str | bool, torch_seed: int, **settings: object) -> dict[str, Tensor]:
    torch.manual_seed(torch_seed)
    sizes = {"one": (8, 6), "two": (8, 6), "three": (6, 8)}
    net = nn.ModuleDict({name: nn.Linear(*sizes[name]) for name in order.split()})
    model = add_lora(net, LoRAConfig(r=2, target_modules=order.split(), init_lora_weights=start, **settings))
    return {name: value for name, value in model.state_dict().items() if "adapters" in name}


DRAWN = [start for start, row in INITS.items() if row.draws and not row.data]


@pytest.mark.parametrize("start", DRAWN)
def test_a_seed_decides_every_bit_whatever_the_order_of_layers_and_torchs_own_state(start: str | bool) -> None:
    first, again = _drawn("one two three", start, 1, seed=7), _drawn("three one two", start, 2, seed=7)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    names = {name.partition(".")[2] for name in first if first[name].any()}
    assert names
    for name in names:
        assert not torch.equal(first[f"one.{name}"], first[f"two.{name}"]), "two layers drew the same numbers"
        assert not torch.equal(first[f"one.{name}"], _drawn("one two three", start, 1, seed=8)[f"one.{name}"])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "init_lora_weights" not in VARIANTS[v]])
def test_a_seed_decides_every_bit_of_every_formula(variant: str) -> None:
    made = []
    for state in (1, 2):
        config = LoRAConfig(
            **{**settings_of(variant), "target_modules": ["layer"], "init_lora_weights": False, "seed": 7}
        )
        net = network("linear")
        torch.manual_seed(state)
        made.append(add_lora(net, config).state_dict())
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


@pytest.mark.parametrize("start", DRAWN)
def test_without_a_seed_torchs_own_state_decides(start: str | bool) -> None:
    first, again, other = (_drawn("one", start, seed) for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_a_seed_that_was_drawn_is_saved_and_makes_the_same_adapter(tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    before = {name: value.clone() for name, value in model.get_adapter_state_dict().items()}
    move(model)
    model.save_pretrained(tmp_path)
    assert "seed" not in json.loads((tmp_path / CONFIG).read_text())
    loaded = LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"))
    seed = loaded.peft_config["default"].seed
    assert isinstance(seed, int)
    torch.manual_seed(99)
    again = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, seed=seed)).get_adapter_state_dict()
    assert before.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in before.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("start", DRAWN)
def test_a_seed_makes_the_same_bits_on_a_gpu(start: str | bool) -> None:
    made = []
    for device in ("cpu", "cuda"):
        net = nn.ModuleDict({"one": nn.Linear(64, 48)}).to(device)
        made.append(
            add_lora(net, LoRAConfig(r=8, target_modules=["one"], init_lora_weights=start, seed=3)).state_dict()
        )
    assert all(torch.equal(made[0][name], made[1][name].cpu()) for name in made[0] if "adapters" in name)


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True, 1 << 63])
def test_a_seed_is_an_integer(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed="):
        LoRAConfig(seed=seed)  # type: ignore[arg-type]
