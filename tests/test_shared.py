"""Formulas with tensors that layers share: each is one object wherever the adapter goes, counted and saved once."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_lora import (  # fmt: skip
    AdapterCache,
    LoRAConfig,
    LoRAModel,
    Run,
    add_lora,
    compare,
    inspect_adapter,
    parameter_groups,
    train_together,
)
from hf_lora.errors import AdapterFileError, AdapterMismatchError, AdapterStateError, ConfigError, TargetError

from .cases import move
from .tiny import tiny

WEIGHTS = "adapter_model.safetensors"
SHARING: dict[str, dict[str, Any]] = {
    "vera": {"use_vera": True, "r": 4},
    "vera-drawn": {"use_vera": True, "r": 4, "save_projection": False},
    "sharelora": {"use_sharelora": True, "r": 2},
}
every = pytest.mark.parametrize("formula", SHARING)
saving = pytest.mark.parametrize("formula", ["vera", "sharelora"])


class Net(nn.Module):
    """Two blocks of layers of three sizes, the widest inputs and outputs in different ones."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(6, 10), "down": nn.Linear(10, 4), "back": nn.Linear(4, 6)}) for _ in "ab"
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["back"](block["down"](torch.tanh(block["up"](x))))
        return x


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def config(formula: str, **changes: Any) -> LoRAConfig:
    return LoRAConfig(**{"target_modules": ["up", "down", "back"], **SHARING[formula], **changes})


def made(formula: str, **changes: Any) -> LoRAModel:
    model = add_lora(net(), config(formula, **changes))
    move(model)
    return model


def example() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def held(model: LoRAModel, name: str = "default") -> dict[str, set[int]]:
    """Return, by attribute of what is shared and by pattern where that is a group, the objects in its places."""
    found: dict[str, set[int]] = {}
    for module, _, _, adapter in model._lora.carried(name):
        for attribute in adapter.shared():
            place = attribute if "vera" in attribute else f"{module.rpartition('.')[2]}.{attribute}"
            found.setdefault(place, set()).add(id(getattr(adapter, attribute)))
    return found


def is_one(model: LoRAModel, name: str = "default") -> bool:
    found = held(model, name)
    return bool(found) and all(len(ids) == 1 for ids in found.values())


def copied(model: LoRAModel, folder: Path) -> LoRAModel:
    model.save_pretrained(folder)
    return LoRAModel.from_pretrained(folder, base_model=net(), is_trainable=True)


WAYS: dict[str, Callable[[LoRAModel, Path], LoRAModel]] = {
    "as it is": lambda model, _: model,
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "cast": lambda model, _: model.float().double(),
    "to a device and back": lambda model, _: model.to("cpu", torch.float32).to(torch.float64),
    "file": copied,
    "merged and unmerged": lambda model, _: (model.merge_adapter(), model.unmerge_adapter(), model)[-1],
}


@every
@pytest.mark.parametrize("way", WAYS)
def test_what_is_shared_stays_one_object_and_computes_the_same(formula: str, way: str, tmp_path: Path) -> None:
    model = made(formula)
    want = model(example())
    other = WAYS[way](model, tmp_path)
    assert is_one(other)
    loose = 1e-5 if way in ("cast", "to a device and back") else 1e-12
    assert torch.allclose(other(example()), want, rtol=loose, atol=loose)
    assert other is model or not set.union(*held(other).values()) & set.union(*held(model).values())


@every
def test_a_state_dict_has_every_name_and_loads_into_one_object(formula: str) -> None:
    model, other = made(formula), add_lora(net(), config(formula))
    state = model.state_dict()
    assert {name.rpartition(".")[2] for name in state if "adapters" in name} >= set(
        next(iter(model._lora.carried("default"))).adapter.tensors()
    )
    other.load_state_dict(state)
    assert is_one(other)
    assert torch.equal(other(example()), model(example()))


@saving
def test_safetensors_own_way_to_save_a_whole_model_reads_it_back(formula: str, tmp_path: Path) -> None:
    model, other = made(formula), add_lora(net(), config(formula))
    save_model(model, str(tmp_path / "whole.safetensors"))
    assert load_model(other, tmp_path / "whole.safetensors") == (set(), [])
    assert is_one(other)
    assert torch.equal(other(example()), model(example()))


COUNTS = {  # trains, all of the adapter's: by hand, of (in, out) = (6, 10), (10, 4), (4, 6) in two blocks
    "vera": (2 * (3 * 4 + 20), 2 * (3 * 4 + 20) + 4 * 10 + 10 * 4),
    "sharelora": (2 * (6 + 10 + 4) + 2 * 2 * (10 + 4 + 6),) * 2,
}


@saving
def test_it_is_counted_and_saved_once(formula: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = made(formula)
    base = sum(p.numel() for p in net().parameters())
    trains, own = COUNTS[formula]
    assert model.get_nb_trainable_parameters() == (trains, base + own)
    model.print_trainable_parameters()
    assert f"{trains:,d}" in capsys.readouterr().out
    assert model.targets_report().splitlines()[-1].split() == ["total", f"{own:,d}"]
    model.save_pretrained(tmp_path)
    assert sum(t.numel() for t in load_file(tmp_path / WEIGHTS).values()) == own
    seen = inspect_adapter(tmp_path)
    assert seen.parameters == own == sum(target.parameters for target in seen.targets)
    assert {finding.code for finding in seen.findings} <= {"base"}
    assert f"{own:,d}" in (tmp_path / "README.md").read_text()


def test_the_keys_of_each_file(tmp_path: Path) -> None:
    for formula in SHARING:
        made(formula).save_pretrained(tmp_path / formula)
    keys = {formula: {*load_file(tmp_path / formula / WEIGHTS)} for formula in SHARING}
    assert {key for key in keys["vera"] if "lambda" not in key} == {"base_model.vera_A", "base_model.vera_B"}
    assert keys["vera-drawn"] == {key for key in keys["vera"] if "lambda" in key}
    assert {key for key in keys["sharelora"] if "lora_A" in key} == {
        f"base_model.model.blocks.0.{name}.lora_A.weight" for name in ("up", "down", "back")
    }
    assert sum("lora_B" in key for key in keys["sharelora"]) == 6
    types = {f: json.loads((tmp_path / f / "adapter_config.json").read_text())["peft_type"] for f in SHARING}
    assert types == {"vera": "VERA", "vera-drawn": "VERA", "sharelora": "SHARELORA"}


@every
def test_an_optimizer_gets_each_tensor_once_and_no_frozen_one(formula: str) -> None:
    model = made(formula).train()
    groups = parameter_groups(model, 0.1, weight_decay=0.1)
    given = [p for group in groups for p in group["params"]]
    assert len(given) == len({id(p) for p in given})
    assert sum(p.numel() for p in given) == model.get_nb_trainable_parameters()[0]
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    before = held(model)
    model(example()).square().sum().backward()
    torch.optim.SGD(groups).step()
    after = [p for p in model.parameters() if not p.requires_grad]
    assert all(map(torch.equal, frozen, after))
    assert held(model) == before


def test_the_gradient_of_a_shared_factor_is_the_sum_of_its_layers() -> None:
    model = made("sharelora")
    model(example()).square().sum().backward()
    shared = {n: p.grad for n, p in model.named_parameters() if "lora_A" in n}
    apart = add_lora(net(), LoRAConfig(r=2, target_modules=["up", "down", "back"]))
    for module, _, _, adapter in apart._lora.carried("default"):
        source = model.get_submodule(f"{module}.adapters.default.weight")
        for name in ("lora_A", "lora_B"):
            getattr(adapter, name).data.copy_(getattr(source, name).detach())
    apart(example()).square().sum().backward()
    for name, gradient in shared.items():
        parts = [apart.get_parameter(name.replace("blocks.0", f"blocks.{i}")).grad for i in (0, 1)]
        assert torch.allclose(gradient, parts[0] + parts[1], rtol=0, atol=1e-10)


@every
def test_two_adapters_share_nothing_and_one_can_go(formula: str) -> None:
    model = made(formula)
    want = model(example())
    model.add_adapter(config(formula), "other")
    model.set_adapter("other")
    move(model, 5)
    assert is_one(model, "other")
    assert not set.union(*held(model).values()) & set.union(*held(model, "other").values())
    model.delete_adapter("other")
    model.set_adapter("default")
    assert is_one(model)
    assert torch.equal(model(example()), want)
    plain = model.unload()
    assert torch.equal(plain(example()), net()(example()))


def two(formula: str) -> LoRAModel:
    """A model with two adapters of a formula, "default" and "other", which is selected."""
    model = made(formula)
    model.add_adapter(config(formula), "other")
    model.set_adapter("other")
    move(model, 5)
    return model


@every
def test_rows_of_a_batch_have_adapters_of_their_own(formula: str) -> None:
    model = two(formula)
    model.eval()
    x, names = example(), ["default", "__base__", "other"]
    got = model(x, adapter_names=names)
    for row, name in enumerate(names):
        with model.adapters_disabled() if name == "__base__" else model.adapters_active(name):
            assert torch.allclose(got[row], model(x)[row], rtol=0, atol=1e-12)


@every
def test_adapters_combine_compare_and_merge_as_their_updates_do(formula: str) -> None:
    model = two(formula)
    deltas = {name: updates(model, name) for name in ("default", "other")}
    model.add_weighted_adapter(["default", "other"], [0.5, 2.0], "both", combination_type="cat")
    for place, delta in updates(model, "both").items():
        want = 0.5 * deltas["default"][place] + 2.0 * deltas["other"][place]
        assert torch.allclose(delta, want, rtol=0, atol=1e-10)
    found = compare("default", "other", model)
    whole = [torch.cat([each.flatten() for each in deltas[name].values()]) for name in ("default", "other")]
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(*whole, dim=0)), abs=1e-10)
    model.set_adapter("default")
    want = model(example())
    assert torch.allclose(model.merge_and_unload()(example()), want, rtol=0, atol=1e-12)


@every
def test_files_that_hold_no_factors_of_each_layer_are_compared_on_a_model(formula: str, tmp_path: Path) -> None:
    for name in "ab":
        made(formula).save_pretrained(tmp_path / name)
    with pytest.raises(AdapterStateError, match=r"whose file has no A and B of each layer.*compare\('a', 'b', model"):
        compare(tmp_path / "a", tmp_path / "b")


def updates(model: LoRAModel, name: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return {m: a.scaling * a.product() for m, _, _, a in model._lora.carried(name)}


@every
def test_a_file_becomes_the_adapter_by_copying_and_by_a_hot_swap(formula: str, tmp_path: Path) -> None:
    other = made(formula)
    move(other, 9)
    other.save_pretrained(tmp_path)
    for load in (lambda m: m.load_weights(tmp_path), lambda m: m.eval().load_adapter(tmp_path, hotswap=True)):
        model = made(formula)
        before = held(model)
        load(model)
        assert torch.equal(model(example()), other(example()))
        assert held(model) == before


@saving
def test_room_for_other_ranks_is_refused_in_words(formula: str) -> None:
    with pytest.raises(AdapterStateError, match="shares tensors with other layers, which have one rank"):
        made(formula).eval().prepare_hotswap(8)


def test_layers_that_a_rank_pattern_parts_share_with_their_like_alone(tmp_path: Path) -> None:
    model = made("sharelora", rank_pattern={r"blocks\.1\.up": 3})
    assert {name: len(ids) for name, ids in held(model).items()} == {"up.lora_A": 2, "down.lora_A": 1, "back.lora_A": 1}
    other = copied(model, tmp_path)
    assert torch.equal(other(example()), model(example()))
    with pytest.raises(AdapterMismatchError, match="shares its tensors with other layers in the file"):
        made("sharelora").eval().load_adapter(tmp_path, hotswap=True)


@saving
def test_a_file_that_lacks_what_is_shared_or_has_it_twice_is_refused(formula: str, tmp_path: Path) -> None:
    made(formula).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    shared = next(key for key in tensors if key.endswith(("vera_A", "up.lora_A.weight")))
    less = {key: tensor for key, tensor in tensors.items() if key != shared}
    save_file(less, tmp_path / WEIGHTS)
    with pytest.raises((AdapterMismatchError, AdapterFileError), match=r"missing (vera_A|lora_A) of"):
        LoRAModel.from_pretrained(tmp_path, base_model=net())
    if formula == "sharelora":
        again = shared.replace("blocks.0", "blocks.1")
        save_file({**tensors, again: tensors[shared] + 1}, tmp_path / WEIGHTS)
        with pytest.raises(AdapterMismatchError, match="share one lora_A, of which the file has two"):
            LoRAModel.from_pretrained(tmp_path, base_model=net())


def test_veras_matrices_in_a_file_whose_config_says_that_they_are_drawn_are_refused(tmp_path: Path) -> None:
    made("vera").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"save_projection": true', '"save_projection": false'))
    with pytest.raises(AdapterMismatchError, match="unexpected vera_A of"):
        LoRAModel.from_pretrained(tmp_path, base_model=net())


def test_another_key_draws_other_matrices_and_its_weights_are_not_copied_in(tmp_path: Path) -> None:
    one, other = made("vera"), made("vera", projection_prng_key=1)
    assert not torch.equal(one(example()), other(example()))
    other.save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match="projection_prng_key=1 in the file, 0 on the model"):
        one.load_weights(tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_vera": True, "lora_alpha": 16}, r"lora_alpha=16: VeRA \(use_vera=True\) has no such setting"),
        ({"use_vera": True, "rank_pattern": {"up": 2}}, "rank_pattern=.*VeRA"),
        ({"use_vera": True, "exclude_modules": ["up"]}, "exclude_modules=.*VeRA"),
        ({"use_vera": True, "init_lora_weights": "gaussian"}, r"'gaussian': VeRA \(use_vera=True\) takes True, False"),
        ({"use_vera": True, "init_lora_weights": "pissa"}, "'pissa': VeRA"),
        ({"use_vera": True, "d_initial": "0.1"}, "d_initial='0.1', but it is a number"),
        ({"projection_prng_key": 3}, "projection_prng_key=3 has no effect without use_vera=True"),
        ({"use_vera": True, "use_sharelora": True}, "exclude each other"),
        ({"use_sharelora": True, "lora_bias": True}, "lora_bias=True: ShareLoRA"),
        *(
            ({"use_sharelora": True, "init_lora_weights": start}, f"{start!r}: ShareLoRA")
            for start in (
                "olora",
                "orthogonal",
                "eva",
                "lora_ga",
                "loftq",
            )  # A is another layer's, which B does not fit
        ),
        ({"use_vera": True, "d_initial": 0}, "d_initial=0, but nothing trains from there"),
        ({"use_vera": True, "d_initial": 10**400}, "but it is a number"),
        (
            {"use_vera": True, "projection_prng_key": 1 << 64},
            "projection_prng_key=18446744073709551616, but it lies in",
        ),
    ],
)
def test_a_setting_without_a_place_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        LoRAConfig(**settings)


@pytest.mark.parametrize(
    ("formula", "layer", "told"),
    [
        ("vera", nn.Embedding(8, 4), "is no linear layer, and VeRA is defined on these alone; set use_vera=False"),
        ("vera", nn.Conv2d(2, 4, 3), "no linear layer"),
        ("vera", nn.MultiheadAttention(8, 2), "a raw parameter"),
        ("sharelora", nn.MultiheadAttention(8, 2), "a raw parameter, for which no published layout of ShareLoRA"),
    ],
)
def test_a_layer_without_a_meaning_is_refused_when_the_adapter_is_added(
    formula: str, layer: nn.Module, told: str
) -> None:
    with pytest.raises(TargetError, match=told):
        add_lora(nn.Sequential(layer), LoRAConfig(**{**SHARING[formula], "target_modules": ["0"]}))


class Packed(nn.Module):
    """A layer whose weight is a library's own affair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_features = self.out_features = width
        self.register_buffer("qweight", torch.randint(-7, 8, (width, width), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.qweight.to(x.dtype).T / 7


@every
def test_a_packed_layer_carries_it_and_trains(formula: str, tmp_path: Path) -> None:
    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Packed(6), Packed(6))

    model, x = add_lora(base(), LoRAConfig(**{**SHARING[formula], "target_modules": ["0", "1"]})), torch.randn(3, 6)
    plain = model(x)
    move(model)
    assert is_one(model)
    want = x
    for layer, (_, _, _, adapter) in zip(base(), model._lora.carried("default"), strict=True):
        want = layer(want) + adapter.scaling * want @ adapter.product().T
    assert torch.allclose(model(x), want, atol=1e-5)
    assert not torch.allclose(model(x), plain, atol=1e-3)
    model.train()(x).sum().backward()
    assert all((p.grad is not None) is p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path)
    assert torch.equal(LoRAModel.from_pretrained(tmp_path, base_model=base())(x), model.eval()(x))


@saving
def test_a_cache_counts_it_once_and_brings_it_back_as_one(formula: str, tmp_path: Path) -> None:
    model = made(formula).eval()
    for seed, name in enumerate("ab"):
        move(model, seed)
        model.save_pretrained(tmp_path / name)
        want = model(example())
    carrier = add_lora(net(), LoRAConfig(r=1, target_modules=["up"])).eval()
    cache = AdapterCache(carrier, max_adapters=1)
    for name in "ab":
        cache.register(name, tmp_path / name)
    for name in "bab":
        with cache.using(name), carrier.adapters_active(name):
            assert is_one(carrier, name)
            assert torch.equal(carrier(example()), want) is (name == "b")
            assert cache.info().bytes == 8 * COUNTS[formula][1]


@saving
def test_runs_that_train_together_end_as_each_alone(formula: str, tmp_path: Path) -> None:
    ids = torch.randint(4, 30, (8, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    settings = {"max_steps": 3, "save_strategy": "no", "remove_unused_columns": False, "per_device_train_batch_size": 4}
    args = {**settings, "use_cpu": True, "report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False}
    runs = {name: Run(LoRAConfig(**SHARING[formula]), train_dataset=rows, seed=i) for i, name in enumerate("ab")}
    base = tiny("bert", num_labels=2).double()
    model = LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(r=1), "mine")
    train_together(model, runs, TrainingArguments(output_dir=str(tmp_path / "all"), **args))
    for name, run in runs.items():
        set_seed(run.settings["seed"])
        alone = LoRAModel.from_model(copy.deepcopy(base), run.config, name)
        own = TrainingArguments(output_dir=str(tmp_path / name), seed=run.settings["seed"], **args)
        Trainer(alone, own, train_dataset=rows).train()
        got, want = (each.get_adapter_state_dict(name) for each in (model, alone))
        assert got.keys() == want.keys()
        assert all(torch.allclose(got[key], want[key], rtol=0, atol=1e-10) for key in want)
        assert is_one(model, name)


def test_veras_step_keeps_neither_the_layers_input_nor_anything_of_its_outputs_size() -> None:
    torch.manual_seed(0)
    for p in (0.0, 0.5):
        model = add_lora(nn.Sequential(nn.Linear(64, 96)), LoRAConfig(r=4, use_vera=True, lora_dropout=p)).train()
        x, kept = torch.randn(4, 8, 64, requires_grad=True), dict[int, int]()
        own = {t.data_ptr() for t in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: (kept.__setitem__(t.untyped_storage().data_ptr(), t.nbytes), t)[1], lambda t: t
        ):
            model(x)
        assert sum(size for at, size in kept.items() if at not in own) <= 32 * 4 * 4


def test_a_factor_that_parted_is_not_saved(tmp_path: Path) -> None:
    model = made("sharelora")
    second = model.get_submodule("blocks.1.up.adapters.default.weight")
    second.lora_A = nn.Parameter(second.lora_A.detach() + 1)
    with pytest.raises(AdapterStateError, match=r"lora_A is one with that of blocks\.0\.up, and another by now"):
        model.save_pretrained(tmp_path)


def test_the_card_and_the_inspection_say_what_reads_it(tmp_path: Path) -> None:
    for formula, cls in (("vera", "PeftModel"), ("sharelora", None)):
        model = LoRAModel.from_model(tiny("llama"), LoRAConfig(**SHARING[formula], target_modules=["q_proj"]))
        model.save_pretrained(tmp_path / formula)
        text = (tmp_path / formula / "README.md").read_text()
        assert ("from peft import" in text) is (cls is not None)
        assert "vllm serve" not in text
        assert "PEFT cannot open this adapter: it has no ShareLoRA" in text or formula != "sharelora"
    assert inspect_adapter(tmp_path / "sharelora").format == "hf_lora (SHARELORA)"
    assert inspect_adapter(tmp_path / "vera").variant == "VeRA"
    assert inspect_adapter(tmp_path / "vera").targets[0].ranks == (4,)
