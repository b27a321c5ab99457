"""Weighted combinations of adapters: what they compute, PEFT's results, what is taken over, refused and told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterNameError, AdapterStateError, ArgumentError, ConfigError

from . import peek
from .cases import FLOAT_COVER, KIND_CASES, SUMS, adapted, config_of, data_of, example, move, network
from .tiny import floats, inputs, scatter, tiny

CHATTER = (
    "fan_in_fan_out is set to False:UserWarning",
    ".*no pruning:UserWarning",
    "LoRA adapter added to ConvNd:UserWarning",
)
pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in CHATTER]
NAMES, WEIGHTS = ["default", "wide", "plain"], [0.7, -1.3, 0.4]
CASES = [(k, v) for k, v in FLOAT_COVER if v in SUMS and v not in ("bias-trained", "lora-bias")]
laws = pytest.mark.parametrize(("kind", "variant"), CASES, ids=[f"{k}-{v}" for k, v in CASES])


def several(kind: str, variant: str, dtype: torch.dtype = torch.float64) -> LoRAModel:
    """Return a case's network with three adapters: of a variant, of it with another rank, and plain LoRA."""
    model = adapted(kind, variant, dtype)
    model.add_adapter(config_of(kind, variant, r=4), "wide", **data_of(kind, variant))
    move(model, 4)
    model.add_adapter(LoRAConfig(r=2, lora_alpha=5, **KIND_CASES[kind].targets), "plain")
    move(model, 5)
    return model


def updates(model: LoRAModel, name: str) -> dict[str, Tensor]:
    """Return what an adapter adds to each matrix, dense."""
    held = [(m, k, a) for m, layer in model._lora.layers.items() for k, a in layer.carried(name).items()]
    return {f"{m}.{k}": a.scaling * a.product().detach() for m, k, a in held}


def summed(model: LoRAModel, names: list[str], weights: list[float]) -> dict[str, Tensor]:
    """Return the weighted sum of adapters' dense updates."""
    every = [(w, updates(model, name)) for name, w in zip(names, weights, strict=True)]
    keys = dict.fromkeys(key for _, each in every for key in each)
    return {key: sum(w * each[key] for w, each in every if key in each) for key in keys}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], atol: float) -> None:
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert (got[key] - value).abs().max() <= atol * max(1.0, float(value.abs().max())), key


@laws
def test_cat_and_a_wide_svd_add_the_weighted_sum_of_the_updates(kind: str, variant: str, tmp_path: Path) -> None:
    model = several(kind, variant)
    want = summed(model, NAMES, WEIGHTS)
    model.add_weighted_adapter(NAMES, WEIGHTS, "cat", "cat")
    assert_close(updates(model, "cat"), want, 1e-12)
    r = model.peft_config["cat"].r
    model.add_weighted_adapter(NAMES, WEIGHTS, "svd", svd_rank=r)
    assert_close(updates(model, "svd"), want, 1e-12)
    assert max(value.abs().max() for value in want.values()) > 0.1
    assert model.active_adapters() == ["plain"]
    model.set_adapter("svd")
    model.save_pretrained(tmp_path, adapter_name="svd")
    again = LoRAModel.from_pretrained(tmp_path, base_model=network(kind, torch.float64))
    x = example(kind, torch.float64)
    assert (again(x) - model(x)).abs().max() < 1e-10


@pytest.mark.parametrize("kind", [k for k, v in CASES if v == "lora" and KIND_CASES[k].merges])  # not of groups apart
def test_the_svd_is_the_best_of_its_rank(kind: str) -> None:
    model = several(kind, "lora")
    model.add_weighted_adapter(NAMES, WEIGHTS, "svd", svd_rank=2)
    want = {}
    for key, delta in summed(model, NAMES, WEIGHTS).items():
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        want[key] = (u[..., :2] * s[..., None, :2]) @ vh[..., :2, :]
    assert_close(updates(model, "svd"), want, 1e-10)


def test_a_half_way_of_two_is_their_mean_and_minus_one_takes_an_update_off() -> None:
    model, x = several("linear", "lora"), example("linear", torch.float64)
    outputs = {}
    for t in (0.0, 0.5, 1.0):
        model.add_weighted_adapter(["default", "wide"], [1 - t, t], f"at{int(10 * t)}", "cat")
        model.set_adapter(f"at{int(10 * t)}")
        outputs[t] = model(x)
    assert torch.allclose(outputs[0.5], (outputs[0.0] + outputs[1.0]) / 2, atol=1e-12)
    model.add_weighted_adapter(["default"], [-1], "off")
    model.set_adapter(["default", "off"])
    with model.adapters_disabled():
        base = model(x)
    assert torch.allclose(model(x), base, atol=1e-12)


def test_biases_of_b_are_combined_with_their_products() -> None:
    model, x = several("linear", "lora-bias"), example("linear", torch.float64)
    model.add_weighted_adapter(["default", "wide"], [0.7, -1.3], "made", "cat")
    outputs = []
    for name in ("made", "default", "wide"):
        model.set_adapter(name)
        outputs.append(model(x).detach())
    with model.adapters_disabled():
        made, one, other = (y - model(x) for y in outputs)
    assert torch.allclose(made, 0.7 * one - 1.3 * other, atol=1e-12)
    with pytest.raises(ConfigError, match="lora_bias of default, wide"):
        model.add_weighted_adapter(["default", "wide", "plain"], WEIGHTS, "other", "cat")


# --- PEFT -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """An embedding, convolutions and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.point = (
            nn.Embedding(11, 6),
            nn.Conv2d(6, 8, (3, 1), padding=(1, 0)),
            nn.Conv2d(8, 5, 1),
        )
        self.first, self.second = nn.Linear(5, 9), nn.Linear(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.point(torch.tanh(self.conv(self.table(ids).mT[..., None])))[..., 0].mT
        return self.second(torch.tanh(self.first(x)))


def net() -> nn.Module:
    torch.manual_seed(3)
    model = Net()
    scatter(model)
    return model.eval()


IDS = torch.arange(10).reshape(2, 5)
BASES: dict[str, tuple[Callable[[], nn.Module], list[str], list[str], dict[str, Any]]] = {
    "net": (net, ["table", "conv", "first", "second"], ["conv", "point", "second"], {"ids": IDS}),
    "gpt2": (lambda: tiny("gpt2", noisy=True), ["c_attn", "wte"], ["c_attn", "c_fc"], inputs("gpt2")),
}
METHODS: dict[str, dict[str, Any]] = {
    "svd": {},
    "svd of rank 3": {"combination_type": "svd", "svd_rank": 3},
    "svd clamped": {"combination_type": "svd", "svd_clamp": 0.9},
    "cat": {},
    "linear": {},
    "ties": {"density": 0.6},
    "ties by frequency": {"combination_type": "ties", "density": 0.6, "majority_sign_method": "frequency"},
    "ties_svd": {"density": 0.3, "svd_rank": 4},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0},
    "dare_linear_svd": {"density": 1.0},
    "dare_ties_svd": {"density": 1.0},
    "magnitude_prune": {"density": 0.5},
    "magnitude_prune_svd": {"density": 0.5},
}


def outputs(model: Any, x: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return floats(model(**x))[0] if not isinstance(x.get("ids"), Tensor) else model(x["ids"])


def saved_pair(base: str, folder: Path, equal: bool) -> LoRAModel:
    """Return a base with two adapters on different layers, and leave them in a folder; equal: of one rank."""
    build, one, other, _ = BASES[base]
    model = add_lora(build(), LoRAConfig(r=3, lora_alpha=5, target_modules=one), "a")
    move(model, 7)
    model.add_adapter(LoRAConfig(r=3 if equal else 2, lora_alpha=4, target_modules=other), "b")
    move(model, 8)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("ranks", ["one rank", "two ranks"])
@pytest.mark.parametrize("base", BASES)
def test_combinations_compute_what_pefts_do_and_open_there(base: str, ranks: str, tmp_path: Path) -> None:
    (build, *_, x), equal = BASES[base], ranks == "one rank"
    model = saved_pair(base, tmp_path, equal)
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path / "a", adapter_name="a")
    theirs.load_adapter(tmp_path / "b", "b")
    every = {case: {"combination_type": case, **settings} for case, settings in METHODS.items()}
    acts_on = {case: peek.COMBINATIONS[asked["combination_type"]].acts_on for case, asked in every.items()}
    for case, asked in ((c, asked) for c, asked in every.items() if (acts_on[c] == "factors") == equal):
        theirs.add_weighted_adapter(["a", "b"], [0.7, -1.2], case, **asked)
        model.add_weighted_adapter(["a", "b"], [0.7, -1.2], case, **asked)
        theirs.set_adapter(case)
        model.set_adapter(case)
        want, got = outputs(theirs, x), outputs(model, x)
        assert (got - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max())), case
        with model.adapters_disabled():
            assert (outputs(model, x) - got).abs().max() > 1e-2, case
    model.save_pretrained(tmp_path / "made", adapter_name=case)
    opened = peft.PeftModel.from_pretrained(build(), tmp_path / "made")
    assert (outputs(opened, x) - got).abs().max() < 1e-5
    again = LoRAModel.from_pretrained(tmp_path / "made", base_model=build())
    assert torch.equal(outputs(again, x), got)
    assert again.peft_config["default"].r == opened.peft_config["default"].r


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_dare_keeps_the_density_and_the_expectation() -> None:
    tensors, method = [torch.randn(200, 100), torch.randn(200, 100)], peek.COMBINATIONS["dare_linear"]
    draw = torch.Generator().manual_seed(0)
    kept = peek.combined(tensors[:1], [1.0], method, 0.3, draw=draw)
    share = float((kept != 0).float().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / kept.numel()) ** 0.5
    assert torch.allclose(kept[kept != 0], tensors[0][kept != 0] / 0.3)
    every = torch.stack([peek.combined(tensors, [0.5, -2.0], method, 0.3, draw=draw) for _ in range(100)])
    want = 0.5 * tensors[0] - 2.0 * tensors[1]
    spread = ((0.25 * tensors[0] ** 2 + 4 * tensors[1] ** 2) * (0.7 / 0.3) / 100).sqrt()
    z = (every.mean(0) - want) / spread.clamp_min(1e-9)
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.std()) - 1) < 0.05


def test_a_seed_gives_the_same_adapter_and_leaves_torchs_random_state_alone() -> None:
    model, state = several("linear", "lora"), torch.get_rng_state()
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        model.add_weighted_adapter(["default", "plain"], [1, 1], name, "dare_ties", density=0.5, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    one, again, two = (updates(model, name)["layer.weight"] for name in ("one", "again", "two"))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    drawn = []
    for number in range(2):
        torch.manual_seed(5)
        model.add_weighted_adapter(["default", "plain"], [1, 1], f"drawn{number}", "dare_linear_svd", density=0.5)
        drawn.append(updates(model, f"drawn{number}")["layer.weight"])
    assert torch.equal(*drawn)


# --- what is taken over, refused and told ---------------------------------------------------------------------------


def test_parts_in_full_are_taken_over_of_one_adapter(tmp_path: Path) -> None:
    base = tiny("bert", noisy=True)
    model = LoRAModel.from_model(
        base, LoRAConfig(r=2, modules_to_save=["pooler"], trainable_token_indices=[3, 5], bias="lora_only"), "a"
    )
    move(model, 1)
    model.add_adapter(LoRAConfig(r=3, target_modules=["key"]), "b")
    move(model, 2)
    model.add_weighted_adapter(["b", "a"], [0.5, 1.0], "made", "cat")
    model.set_adapter(["a", "b"])
    model.add_weighted_adapter(["b", "a"], [1.0, 1.0], "sum", "cat")
    want = outputs(model, inputs("bert"))
    model.set_adapter("sum")
    assert (outputs(model, inputs("bert")) - want).abs().max() < 1e-5
    model.save_pretrained(tmp_path, adapter_name="sum")
    again = LoRAModel.from_pretrained(tmp_path, base_model=tiny("bert", noisy=True))
    assert (outputs(again, inputs("bert")) - want).abs().max() < 1e-5
    opened = peft.PeftModel.from_pretrained(tiny("bert", noisy=True), tmp_path)
    assert (outputs(opened, inputs("bert")) - want).abs().max() < 1e-5
    with pytest.raises(AdapterStateError, match="'a' with the weight -1 holds parts in full"):
        model.add_weighted_adapter(["b", "a"], [1.0, -1.0], "other", "cat")
    model.add_adapter(LoRAConfig(r=2, modules_to_save=["pooler"]), "c")
    with pytest.raises(AdapterStateError, match="'a', 'c' each hold parts in full"):
        model.add_weighted_adapter(["a", "c"], [1.0, 1.0], "other", "cat")


def test_what_is_made_of_adapters_that_train_trains_when_it_is_selected() -> None:
    model = several("linear", "pissa")
    model.add_weighted_adapter(["default", "plain"], [1, 1], "made")
    assert not any(p.requires_grad for p in model.layer.adapters["made"].parameters())
    model.set_adapter("made")
    assert all(p.requires_grad for p in model.layer.adapters["made"].parameters())
    assert model.peft_config["made"].init_lora_weights is True


def test_targets_and_ranks_by_pattern_are_written_out_and_loaded_adapters_do_not_train(tmp_path: Path) -> None:
    names = {"target_modules": r"(first|second|conv)", "exclude_modules": ["conv"], "rank_pattern": {"first": 1}}
    model, x = (
        add_lora(net(), LoRAConfig(r=3, use_rslora=True, alpha_pattern={"second": 2}, **names), "a"),
        {"ids": IDS},
    )
    move(model, 1)
    model.add_adapter(LoRAConfig(r=2, target_modules=["conv", "second"]), "b")
    move(model, 2)
    model.save_pretrained(tmp_path)
    model = LoRAModel.from_pretrained(tmp_path / "a", base_model=net(), adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    model.add_weighted_adapter(["a", "b"], [1, 1], "sum", "cat")
    model.set_adapter(["a", "b"])
    want = outputs(model, x)
    model.set_adapter("sum")
    assert (outputs(model, x) - want).abs().max() < 1e-5
    assert not any(p.requires_grad for p in model.parameters())
    config = model.peft_config["sum"]
    assert config.target_modules == ["conv", "first", "second"]
    assert (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (5, 5, {}, {})
    assert (config.exclude_modules, config.use_rslora) == (None, False)
    model.save_pretrained(tmp_path / "sum", adapter_name="sum")
    opened = peft.PeftModel.from_pretrained(net(), tmp_path / "sum")
    assert (outputs(opened, x) - want).abs().max() < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another word": ({"combination_type": "slerp"}, ArgumentError, "'slerp' is none of svd, linear, cat"),
    "a weight too few": ({"weights": [1.0]}, ArgumentError, r"weights=\[1.0\]: give a finite number for each"),
    "a weight that is none": ({"weights": [1.0, float("nan")]}, ArgumentError, "finite"),
    "one name": ({"adapters": "default"}, ArgumentError, "'default': give a list of names"),
    "one name twice": ({"adapters": ["wide", "wide"]}, ArgumentError, "none twice"),
    "an unknown adapter": ({"adapters": ["wide", "x"]}, AdapterNameError, "no adapter 'x'"),
    "a name that is taken": ({"adapter_name": "plain"}, AdapterNameError, "has an adapter 'plain' already"),
    "no density": ({"combination_type": "ties"}, ArgumentError, "density=None: ties keeps this share"),
    "a density of nothing": ({"combination_type": "dare_ties", "density": 0}, ArgumentError, r"in \(0, 1\]"),
    "a density for nothing": ({"density": 0.5}, ArgumentError, "density=0.5: combination_type='svd' does not use it"),
    "a sign for nothing": ({"majority_sign_method": "frequency"}, ArgumentError, "does not use it"),
    "a sign that is none": ({"majority_sign_method": "most"}, ArgumentError, "neither 'total' nor"),
    "a seed for nothing": ({"seed": 1}, ArgumentError, "nothing is drawn"),
    "a seed that is none": ({"seed": 1.5, "density": 0.5, "combination_type": "dare_ties"}, ArgumentError, "seed=1.5: give an integer"),
    "a rank that is none": ({"svd_rank": True}, ArgumentError, "positive integer"),
    "a rank for nothing": ({"combination_type": "cat", "svd_rank": 2}, ArgumentError, "svd_rank=2: .*does not use it"),
    "a rank of nothing": ({"svd_rank": 0}, ArgumentError, "positive integer"),
    "a clamp that is none": ({"svd_clamp": 2}, ArgumentError, "quantile"),
    "other ranks": ({"combination_type": "linear"}, ConfigError, "have the ranks 2, 4 at layer. Use 'svd' or 'cat'"),
    "DoRA": ({"adapters": ["wide", "long"]}, AdapterStateError, "'long' is DoRA, which is no sum"),
}  # fmt: skip


def test_what_has_no_meaning_is_refused_and_changes_nothing() -> None:
    model = several("linear", "lora")
    model.add_adapter(config_of("linear", "dora"), "long")
    names, x = list(model.peft_config), example("linear", torch.float64)
    before = model(x)
    for case, (changes, error, words) in REFUSED.items():
        asked = {"adapters": ["default", "wide"], "weights": [1.0, 1.0], "adapter_name": "made", **changes}
        with pytest.raises(error, match=words):
            model.add_weighted_adapter(**asked)
        assert list(model.peft_config) == names, case
    assert torch.equal(model(x), before)
    model.merge_adapter("wide")
    with pytest.raises(AdapterStateError, match="merged"):
        model.add_weighted_adapter(["wide"], [1.0], "made")


def test_the_recipe_is_in_the_card_and_stays(tmp_path: Path) -> None:
    model = saved_pair("net", tmp_path, True)
    model.add_weighted_adapter(["a", "b"], [1, -0.5], "made", "dare_ties", density=0.5, seed=3)
    row = r"\| combined of \| 1 x `a`, -0.5 x `b` \(dare_ties, density=0.5, seed=3\) \|"
    model.save_pretrained(tmp_path / "one", adapter_name="made")
    assert re.search(row, (tmp_path / "one" / "README.md").read_text())
    again = LoRAModel.from_pretrained(tmp_path / "one", base_model=net())
    again.save_pretrained(tmp_path / "two")
    assert re.search(row, (tmp_path / "two" / "README.md").read_text())
    assert "combined of" not in (tmp_path / "a" / "README.md").read_text()
