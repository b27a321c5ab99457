"""A truncated adapter is the best one of its rank, keeps the energy that was asked for, and is saved as plain LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_lora import LoRAConfig, LoRAModel, truncate
from hf_lora.errors import AdapterNameError, AdapterStateError, ArgumentError

from .cases import FLOAT_COVER, SUMS, adapted, config_of, example, mergeable, move, network
from .tiny import inputs, tiny

CASES = [(k, v) for k, v in FLOAT_COVER if v in SUMS]
laws = pytest.mark.parametrize(("kind", "variant"), CASES, ids=[f"{k}-{v}" for k, v in CASES])


def updates(model: LoRAModel, name: str = "default") -> dict[str, torch.Tensor]:
    """What an adapter adds to each matrix, in float64."""
    found = {}
    for module, layer in model._lora.layers.items():
        for key, adapter in layer.carried(name).items():
            if adapter.low_rank:
                a, b, scaling = adapter.pairs()
                found[f"{module}.{key}"] = scaling * b.detach().double() @ a.detach().double()
    return found


@laws
def test_all_of_the_energy_changes_nothing_and_the_file_is_plain_lora(kind: str, variant: str, tmp_path: Path) -> None:
    model, x = adapted(kind, variant, torch.float64), example(kind, torch.float64)
    before = model(x)
    report = truncate(model, energy=1.0)
    assert report.model is model
    assert report.error < 1e-12
    assert torch.allclose(model(x), before, atol=1e-9)
    model.save_pretrained(tmp_path)
    config = LoRAConfig.from_pretrained(tmp_path)
    assert (config.formula, config.use_rslora, config.init_lora_weights) == ("lora", False, True)
    again = LoRAModel.from_pretrained(tmp_path, base_model=network(kind, torch.float64))
    assert torch.allclose(again(x), before, atol=1e-5)


@laws
def test_each_update_becomes_the_best_of_its_rank_and_the_report_says_what_is_lost(kind: str, variant: str) -> None:
    model = mergeable(kind, variant, torch.float64)
    wanted = {name: torch.linalg.svd(update, full_matrices=False) for name, update in updates(model).items()}
    before = updates(model)
    report = truncate(model, rank=2 if "grouped" in kind or "depthwise" in kind else 1)
    lost = 0.0
    for name, update in updates(model).items():
        u, s, vh = wanted[name]
        best = (u[..., :1] * s[..., None, :1]) @ vh[..., :1, :]
        assert torch.allclose(update, best, atol=1e-9), name
        lost += float((before[name] - update).square().sum())
    whole = sum(float(update.square().sum()) for update in before.values())
    assert report.error == pytest.approx((lost / whole) ** 0.5)


def trained(**settings: object) -> LoRAModel:
    model = LoRAModel.from_model(tiny("llama", noisy=True), LoRAConfig(**{"r": 6, "lora_alpha": 9, **settings}))
    move(model)
    return model


def test_by_energy_each_layer_gets_the_fewest_directions_that_keep_it(tmp_path: Path) -> None:
    model = trained(target_modules="all-linear", modules_to_save=["norm"], use_rslora=True)
    spectra = {name: torch.linalg.svdvals(update).square() for name, update in updates(model).items()}
    norm = model.get_submodule("model.norm").adapters["default"]["saved_weight"].value.clone()
    report = truncate(model, energy=0.8)
    for row in report.layers:
        squares = spectra[f"{row.layer}.weight"]
        assert squares[: row.rank].sum() >= 0.8 * squares.sum() - 1e-9
        assert row.rank == 1 or squares[: row.rank - 1].sum() < 0.8 * squares.sum()
    assert len({row.rank for row in report.layers}) > 1
    assert sum(row.after for row in report.layers) < sum(row.before for row in report.layers)
    assert torch.equal(model.get_submodule("model.norm").adapters["default"]["saved_weight"].value, norm)
    want = model(**inputs("llama")).logits
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=tiny("llama", noisy=True))
    assert torch.equal(again(**inputs("llama")).logits, want)
    assert {again.peft_config["default"].rank_of(row.layer) for row in report.layers} == {r.rank for r in report.layers}


def test_a_folder_is_loaded_onto_its_base_and_another_name_leaves_the_adapter_as_it_was(tmp_path: Path) -> None:
    tiny("llama", noisy=True).save_pretrained(tmp_path / "base")
    first = LoRAModel.from_pretrained(str(tmp_path / "base"), LoRAConfig(r=4, init_lora_weights=False))
    first.save_pretrained(tmp_path / "wide")
    report = truncate(tmp_path / "wide", rank=2)
    assert report.model.peft_config["default"].r == 2
    before = updates(first)
    truncate(first, rank=1, into="small")
    assert first.active_adapters() == ["default"]
    assert all(torch.equal(update, before[name]) for name, update in updates(first).items())
    assert first.peft_config["small"].r == 1
    assert first.get_nb_trainable_parameters()[0] == sum(row.before for row in report.layers)


def test_a_truncated_adapter_trains_on() -> None:
    model = trained()
    truncate(model, rank=2)
    model.train()
    model(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert grads
    assert all(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({}, ArgumentError, "give one of them"),
        ({"rank": 2, "energy": 0.5}, ArgumentError, "give one of them"),
        ({"rank": 0}, ArgumentError, "positive integer"),
        ({"rank": True}, ArgumentError, "positive integer"),
        ({"energy": 1.5}, ArgumentError, "a share"),
        ({"energy": 0}, ArgumentError, "a share"),
        ({"rank": 1, "adapter_name": "other"}, AdapterNameError, "no adapter 'other'"),
        ({"rank": 1, "into": "default"}, AdapterNameError, "already"),
    ],
)
def test_what_cannot_be_is_refused_with_the_model_unchanged(
    arguments: dict[str, object], error: type[Exception], told: str
) -> None:
    model, x = adapted("linear", "lora"), example("linear")
    before = model(x)
    with pytest.raises(error, match=told):
        truncate(model, **arguments)
    assert torch.equal(model(x), before)


def test_several_adapters_and_formulas_that_are_no_sum_are_told_apart() -> None:
    model = adapted("linear", "lora")
    model.add_adapter(config_of("linear", "dora"), "long")
    model.disable_adapters()
    with pytest.raises(AdapterStateError, match="'long' is DoRA"):
        truncate(model, rank=1, adapter_name="long")
    with pytest.raises(ArgumentError, match="Linear"):
        truncate(torch.nn.Linear(2, 2), rank=1)
    model.enable_adapters()
    (broken,) = (each.adapter for each in model._lora.carried("default"))
    kept = broken.lora_A.detach().clone()
    with torch.no_grad():
        broken.lora_A[0, 0] = torch.nan
    with pytest.raises(AdapterStateError, match="not finite"):
        truncate(model, rank=1, adapter_name="default")
    with torch.no_grad():
        broken.lora_A.copy_(kept)
    model.merge_adapter(adapter_names=["default"])
    with pytest.raises(AdapterStateError, match="merged"):
        truncate(model, rank=1, adapter_name="default")
