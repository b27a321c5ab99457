"""LoRA-XS: a file holds the core alone, and tells whether the base's factors are those that it was trained between."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora, truncate
from hf_lora.errors import AdapterStateError, BaseMismatchError, ConfigError, TargetError

from .cases import move

FILE = "adapter_model.safetensors"
CONFIG = LoRAConfig(r=3, lora_alpha=6, target_modules=["0", "2"], use_lora_xs=True)


def base(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = add_lora(base(), CONFIG)
    move(model)
    model.save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, seed: int = 0, **kwargs: Any) -> LoRAModel:
    return LoRAModel.from_pretrained(folder, base_model=base(seed), **kwargs)


def without_notes(folder: Path) -> Path:
    """Drop what the file notes of its base, as a tool that copies tensors does."""
    save_file(load_file(folder / FILE), folder / FILE, metadata={"format": "pt"})
    return folder


def test_a_file_holds_r_squared_and_three_r_numbers_a_layer_and_peft_refuses_it(saved: Path) -> None:
    tensors = load_file(saved / FILE)
    assert sum(t.numel() for t in tensors.values()) == 2 * (3 * 3 + 3 * 3)
    assert {key.rpartition(".")[2] for key in tensors} == {"lora_xs_core", "lora_xs_found"}
    assert json.loads((saved / "adapter_config.json").read_text())["peft_type"] == "LORA_XS"
    with pytest.raises((KeyError, ValueError), match="LORA_XS"):
        peft.PeftModel.from_pretrained(base(), saved)


def test_only_the_cores_train() -> None:
    model = add_lora(base(), CONFIG)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 9
    frozen = {name: t.clone() for name, t in model.state_dict().items() if "core" not in name}
    model(torch.randn(4, 8)).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    assert all(torch.equal(model.state_dict()[name], t) for name, t in frozen.items())
    assert all(layer.adapters["default"]["weight"].core.any() for layer in (model[0], model[2]))


def test_factors_with_other_signs_are_the_same_after_all(
    saved: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, svd = load(saved)(x), torch.linalg.svd

    def with_other_signs(matrix: Tensor, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = svd(matrix, **how)
        signs = torch.tensor([(-1.0) ** i for i in range(len(s))], dtype=s.dtype)
        return u * signs, s, signs[:, None] * vh

    monkeypatch.setattr(torch.linalg, "svd", with_other_signs)
    assert torch.equal(load(saved)(x), want)


def test_factors_that_this_machine_finds_otherwise_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svd = torch.linalg.svd

    def turned(matrix: Tensor, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As of two singular values that are one: any two directions of their plane will do."""
        u, s, vh = svd(matrix, **how)
        turn = torch.eye(len(s), dtype=s.dtype)
        turn[:2, :2] = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
        return u @ turn.mT, s, turn @ vh

    monkeypatch.setattr(torch.linalg, "svd", turned)
    with pytest.raises(BaseMismatchError, match=r"0: the adapter \(LoRA-XS\) is built on factors"):
        load(saved)


@pytest.mark.parametrize("noted", [True, False])
def test_another_base_is_told_with_or_without_the_notes_of_the_file(saved: Path, noted: bool) -> None:
    folder = saved if noted else without_notes(saved)
    load(folder)
    with pytest.raises(BaseMismatchError, match="other weights" if noted else "those of this base are others"):
        load(folder, seed=1)


def test_unchecked_it_takes_the_factors_that_are_here_and_says_so_in_its_next_file(saved: Path, x: Tensor) -> None:
    model = load(without_notes(saved), seed=1, check_base=False, is_trainable=True)
    model.save_pretrained(saved / "again")
    assert torch.equal(load(saved / "again", seed=1)(x), model(x))
    with pytest.raises(BaseMismatchError):
        load(saved / "again")


def test_weights_of_another_base_are_not_copied_into_an_adapter(saved: Path) -> None:
    model = add_lora(base(1), CONFIG)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BaseMismatchError, match="those of this base are others"):
        model.load_weights(saved)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_state_dict_with_another_base_takes_the_factors_anew(saved: Path, x: Tensor) -> None:
    model, want = add_lora(base(1), CONFIG), load(saved)
    model.load_state_dict(want.state_dict())
    assert torch.equal(model(x), want(x))


def test_a_base_that_changed_beneath_it_is_told_when_it_is_saved(tmp_path: Path) -> None:
    model = add_lora(base(), CONFIG)
    move(model)
    with torch.no_grad():
        model[0].weight.mul_(-1.5)
    with pytest.raises(BaseMismatchError, match="use_lora_xs=True"):
        model.save_pretrained(tmp_path)


def test_truncating_gives_plain_lora_that_any_tool_reads(saved: Path, x: Tensor, tmp_path: Path) -> None:
    model = load(saved)
    want = model(x)
    plain = truncate(model, rank=3).model
    assert torch.allclose(plain(x), want, atol=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    assert torch.allclose(peft.PeftModel.from_pretrained(base(), tmp_path / "plain")(x), want, atol=1e-5)


def test_the_randomised_factors_come_near_the_exact_ones_and_come_back(tmp_path: Path, x: Tensor) -> None:
    model = add_lora(base(), CONFIG.copy(svd_niter=30))
    exact = add_lora(base(), CONFIG)
    for ours, theirs in zip((model[0], model[2]), (exact[0], exact[2]), strict=True):
        one, two = (layer.adapters["default"]["weight"] for layer in (ours, theirs))
        assert torch.allclose(one.frozen_B @ one.frozen_A, two.frozen_B @ two.frozen_A, atol=1e-3)
    move(model)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    assert torch.equal(load(tmp_path)(x), model(x))


@pytest.mark.parametrize("wrong", [-1, 1000, 1.5, True])
def test_a_number_of_iterations_out_of_bounds_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="svd_niter="):
        LoRAConfig(use_lora_xs=True, svd_niter=wrong)


def test_more_directions_than_there_are_and_room_for_more_are_refused() -> None:
    with pytest.raises(TargetError, match="2 is a matrix of 6 directions, of which r=7"):
        add_lora(base(), CONFIG.copy(r=7))
    with pytest.raises(AdapterStateError, match="has a core of one rank"):
        add_lora(base(), CONFIG).eval().prepare_hotswap(max_r=4)
