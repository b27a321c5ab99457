"""Two adapters compared, against their dense updates in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora, compare
from hf_lora.errors import AdapterFileError, AdapterMismatchError, AdapterNameError, AdapterStateError

from .cases import FLOAT_COVER, KIND_CASES, SUMS, adapted, config_of, data_of, move

CASES = [(k, v) for k, v in FLOAT_COVER if v in SUMS and v not in ("bias-trained", "lora-bias")]


def two(kind: str, variant: str) -> LoRAModel:
    """Return a case's network with two adapters in float64, "default" and "wide" of another rank."""
    model = adapted(kind, variant, torch.float64)
    model.add_adapter(config_of(kind, variant, r=4), "wide", **data_of(kind, variant))
    move(model, 4)
    return model


def dense(model: LoRAModel, name: str) -> dict[str, Tensor]:
    """Return what an adapter adds to each matrix."""
    held = [(m, k, a) for m, layer in model._lora.layers.items() for k, a in layer.carried(name).items()]
    return {f"{m}.{k}".removesuffix(".weight"): a.scaling * a.product().detach() for m, k, a in held}


def spaces(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return projectors onto what a matrix reads and writes."""
    pseudo = torch.linalg.pinv(matrix, rtol=1e-9)
    return pseudo @ matrix, matrix @ pseudo


@pytest.mark.parametrize(("kind", "variant"), CASES, ids=[f"{k}-{v}" for k, v in CASES])
def test_cosine_and_overlap_are_those_of_the_dense_updates(kind: str, variant: str) -> None:
    model = two(kind, variant)
    found = compare("default", "wide", model)
    ours, theirs = dense(model, "default"), dense(model, "wide")
    assert sorted(row.layer for row in found.layers) == sorted(ours)
    for row in found.layers:
        one, other = ours[row.layer], theirs[row.layer]
        want = (one * other).sum() / (one.norm() * other.norm())
        assert abs(row.cosine - float(want)) < 1e-10
        assert abs(row.first - float(one.norm())) < 1e-9 * row.first
        if KIND_CASES[kind].merges:  # of a convolution in groups the spaces are those of each group
            pairs = zip(spaces(one), spaces(other), strict=True)
            shared = torch.linalg.matrix_rank(one, rtol=1e-9).minimum(torch.linalg.matrix_rank(other, rtol=1e-9)).sum()
            inputs, outputs = ((p.mT * q).sum() / shared for p, q in pairs)
            assert abs(row.inputs - float(inputs)) < 1e-8
            assert abs(row.outputs - float(outputs)) < 1e-8
    whole = [torch.cat([each[k].flatten() for k in ours]) for each in (ours, theirs)]
    assert abs(found.cosine - float(torch.cosine_similarity(*whole, dim=0))) < 1e-10


def test_the_same_one_the_opposite_and_one_that_does_not_meet_it() -> None:
    model = two("linear", "lora")
    model.add_weighted_adapter(["default"], [-0.5], "minus")
    (row,) = compare("default", "minus", model).layers
    assert row.cosine == pytest.approx(-1)
    assert (row.inputs, row.outputs) == (pytest.approx(1), pytest.approx(1))
    assert row.second == pytest.approx(row.first / 2)
    one, other = (model.layer.adapters[name]["weight"] for name in ("default", "wide"))
    with torch.no_grad():
        one.lora_A[:, 3:], other.lora_A[:, :3] = 0, 0
    (row,) = compare("default", "wide", model).layers
    assert row.cosine == pytest.approx(0, abs=1e-12)
    assert row.inputs == pytest.approx(0, abs=1e-12)
    model.add_adapter(LoRAConfig(r=2, **KIND_CASES["linear"].targets), "fresh")
    found = compare("default", "fresh", model)
    assert math.isnan(found.layers[0].cosine)
    assert math.isnan(found.layers[0].inputs)
    assert "-" in str(found)


@pytest.mark.parametrize(
    "kind", ["linear", "embedding", "conv2d", "conv2d-grouped", "experts", "experts-transposed", "attention"]
)
def test_folders_compare_as_the_adapters_on_a_model(kind: str, tmp_path: Path) -> None:
    model = two(kind, "lora")
    model.save_pretrained(tmp_path, adapter_name="default")
    model.save_pretrained(tmp_path / "wide", adapter_name="wide")
    there, here = compare(tmp_path, tmp_path / "wide"), compare("default", "wide", model)
    assert len(there.layers) == len(here.layers)
    for one, other in zip(*(sorted(each.layers, key=lambda row: row.first) for each in (there, here)), strict=True):
        assert one[1:] == pytest.approx(other[1:], rel=1e-9)


class Block(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))


def test_files_whose_keys_stand_for_other_parameters_are_not_compared(tmp_path: Path) -> None:
    model = nn.ModuleDict({"experts": nn.ParameterDict({n: torch.randn(3, 5, 5) for n in ("up", "down")})})
    model = add_lora(model, LoRAConfig(r=2, target_parameters=["experts.up"]), "up")
    for name, targets in {"down": ["experts.down"], "both": ["experts.up", "experts.down"]}.items():
        model.add_adapter(LoRAConfig(r=2, target_parameters=targets), name)
    move(model)
    model.save_pretrained(tmp_path)
    for one, other in (("up", "down"), ("both", "up"), ("down", "both")):
        with pytest.raises(AdapterStateError, match=r"target_parameters=.*compare\('a', 'b', model=model\)"):
            compare(tmp_path / one, tmp_path / other)
    assert len(compare(tmp_path / "both", tmp_path / "both").layers) == 2


def test_layers_that_are_alike_are_one_row_and_those_of_one_adapter_are_told() -> None:
    model = add_lora(nn.Sequential(*(Block() for _ in range(2))), LoRAConfig(r=2, target_modules=["query", "key"]), "a")
    move(model, 1)
    model.add_adapter(LoRAConfig(r=2, target_modules=["query", "value"]), "b")
    move(model, 2)
    found = compare("a", "b", model)
    assert len(found.layers) == 2
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "layers", "cosine", "inputs", "outputs", "|a|", "|b|"]
    assert lines[1].split()[:2] == ["*.query", "2"]
    assert lines[2].split()[:3] == ["all", "2", f"{found.cosine:.3f}"]
    assert lines[3:] == [f"only {n}: *.{m}" for n, m in (("a", "key"), ("b", "value"))]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    model = two("linear", "pissa")
    model.add_adapter(config_of("linear", "dora"), "long")
    with pytest.raises(AdapterStateError, match="'long' is DoRA, which is no sum"):
        compare("default", "long", model)
    with pytest.raises(AdapterNameError, match="no adapter 'x'"):
        compare("default", "x", model)
    with pytest.raises(AdapterFileError):
        compare(tmp_path, tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterStateError, match=r"depends on the model .*'pissa'.*compare\('a', 'b', model=model\)"):
        compare(tmp_path, tmp_path)
    with pytest.raises(AdapterStateError, match="is DoRA"):
        compare(tmp_path / "long", tmp_path / "long")
    for name, size in (("six", 6), ("five", 5)):
        add_lora(nn.Sequential(nn.Linear(size, 4)), LoRAConfig(r=1, target_modules=["0"])).save_pretrained(
            tmp_path / name
        )
    with pytest.raises(AdapterMismatchError, match="other bases"):
        compare(tmp_path / "six", tmp_path / "five")
    add_lora(nn.ModuleDict({"a": nn.Linear(6, 4)}), LoRAConfig(r=1, target_modules=["a"])).save_pretrained(
        tmp_path / "a"
    )
    with pytest.raises(AdapterStateError, match="no layer in common"):
        compare(tmp_path / "six", tmp_path / "a")
