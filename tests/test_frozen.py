"""A tensor that a formula's row keeps as it began (LoRA-FA's A): saved and copied like the others, never trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_ready, parameter_groups
from hf_lora.errors import AdapterStateError, ConfigError, TargetError

from .cases import move
from .peek import lora_linear
from .tiny import inputs, tiny


def made(*names: str, **config: Any) -> LoRAModel:
    """Return two layers with adapters whose A is frozen, the first of the names selected."""
    torch.manual_seed(0)
    model = add_lora(nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4)), LoRAConfig(r=2, use_lora_fa=True, **config))
    for name in names:
        model.add_adapter(LoRAConfig(r=2, use_lora_fa=True), name)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}


def test_switching_what_trains_leaves_it_frozen() -> None:
    model = made("other")
    assert trained(model) == {"lora_B"}
    model.set_adapter("other")
    model.set_requires_grad(["default", "other"])
    assert trained(model) == {"lora_B"}
    assert trained(copy.deepcopy(model)) == {"lora_B"}
    model.set_requires_grad(["default", "other"], False)
    assert trained(model) == set()


def test_a_loaded_one_trains_the_rest_alone(tmp_path: Any) -> None:
    made().save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4))
    assert trained(LoRAModel.from_pretrained(tmp_path, base_model=base, is_trainable=True)) == {"lora_B"}


def test_a_step_moves_the_rest_and_the_optimizer_gets_no_more() -> None:
    model, x = made(), torch.randn(3, 6)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    assert sum(p.numel() for group in groups for p in group["params"]) == 2 * 10 + 2 * 4
    model(x).sum().backward()
    torch.optim.SGD(groups).step()
    moved = {name.rpartition(".")[2] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"lora_B"}


def test_a_batch_of_rows_trains_with_it() -> None:
    model = made("other").train()
    model.set_requires_grad(["default", "other"])
    model(torch.randn(2, 6), adapter_names=["default", "other"]).sum().backward()
    assert all((p.grad is not None) == ("lora_B" in name) for name, p in model.named_parameters())


def test_one_that_was_thawed_by_hand_is_told() -> None:
    model = made().train()
    check_ready(model)
    model.get_submodule("0.adapters.default.weight").lora_A.requires_grad_()
    with pytest.raises(AdapterStateError, match="0's lora_A, which its formula keeps as it began"):
        check_ready(model)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_x_is_not_kept_where_a_is_frozen_and_gradients_are_those_of_a_trained_a(p: float) -> None:
    torch.manual_seed(0)
    x, weight, bias, a, b = (torch.randn(*s, requires_grad=True) for s in ((5, 6), (10, 6), (10,), (2, 6), (10, 2)))
    found = []
    for frozen in (False, True):
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            torch.manual_seed(1)
            y = lora_linear(x, weight.detach(), bias.detach(), a.detach() if frozen else a, b, 1.5, p, False)
        assert any(t.data_ptr() == x.data_ptr() for t in kept) is not frozen
        found.append(torch.autograd.grad(y.square().sum(), (x, b)))
    assert all(map(torch.equal, *found))


def test_a_second_derivative_that_would_need_x_is_refused() -> None:
    x, b = torch.randn(3, 6, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    y = lora_linear(x, torch.randn(4, 6), None, torch.randn(2, 6), b, 1.0, 0.0, False)
    with pytest.raises(AdapterStateError, match="whose A is frozen"):
        torch.autograd.grad(y.square().sum(), b, create_graph=True)


def test_peft_reads_the_file_as_plain_lora_says_what_it_leaves_out_and_trains_a_too(tmp_path: Path) -> None:
    base = tiny("llama", noisy=True)
    model = LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(r=2, target_modules=["q_proj"], use_lora_fa=True))
    move(model)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["peft_type"], written["use_lora_fa"]) == ("LORA", True)
    with pytest.warns(UserWarning, match="use_lora_fa"):
        theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    found = []
    for each in (model, theirs):
        loss = each(**inputs("llama")).logits.square().mean()
        loss.backward()
        grads = {n.replace(".default.weight", "").rpartition(".")[2]: p.grad for n, p in each.named_parameters()}
        found.append((loss.detach(), grads["lora_A"], grads["lora_B"]))
    (ours, no_gradient, of_b), (same, gradient, also_of_b) = found
    assert torch.allclose(ours, same)
    assert torch.allclose(of_b, also_of_b, rtol=1e-4, atol=1e-7)
    assert no_gradient is None
    assert gradient.abs().max() > 0


def test_an_embedding_is_refused_since_nothing_would_train_there() -> None:
    with pytest.raises(TargetError, match="0 is an embedding, whose A starts at zero"):
        add_lora(nn.Sequential(nn.Embedding(4, 6)), LoRAConfig(r=2, target_modules=["0"], use_lora_fa=True))


def test_a_start_out_of_the_weight_keeps_its_a_and_comes_back(tmp_path: Path) -> None:
    model, x = made(init_lora_weights="pissa"), torch.randn(3, 6)
    before = model(x).detach()
    assert torch.allclose(before, model.eval().unload()(x), atol=1e-5)
    model = made(init_lora_weights="pissa")
    move(model)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4))
    again = LoRAModel.from_pretrained(tmp_path, base_model=base, is_trainable=True)
    assert torch.equal(again(x), model(x))
    assert trained(again) == {"lora_B"}


def test_a_start_that_keeps_the_other_factor_is_refused() -> None:
    with pytest.raises(ConfigError, match="init_lora_weights='mica' keeps lora_B as it began, which LoRA-FA"):
        LoRAConfig(use_lora_fa=True, init_lora_weights="mica")
