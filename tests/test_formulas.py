"""Each formula computes what its paper says: forward and gradients against a few plain lines in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_lora import LoRAConfig, add_lora
from hf_lora.errors import ConfigError

from .cases import Named, move

Values = dict[str, Tensor]


def _hira(weight: Tensor, v: Values, scaling: float) -> Tensor:
    return weight + weight * (v["lora_B"] @ v["lora_A"])


def _vera(weight: Tensor, v: Values, scaling: float) -> Tensor:
    return weight + torch.diag(v["lambda_b"]) @ v["vera_B"] @ torch.diag(v["lambda_d"]) @ v["vera_A"]


def _plain(weight: Tensor, v: Values, scaling: float) -> Tensor:
    return weight + scaling * v["lora_B"] @ v["lora_A"]


def _adalora(weight: Tensor, v: Values, scaling: float) -> Tensor:
    return weight + scaling * v["lora_B"] @ torch.diag(v["lora_E"].flatten()) @ v["lora_A"]


def _xs(weight: Tensor, v: Values, scaling: float) -> Tensor:
    """As numpy takes the weight apart; the signs are those that make the largest entry of each row of V' positive."""
    r = len(v["core"])
    u, s, vh = (torch.from_numpy(each) for each in numpy.linalg.svd(weight.numpy(), full_matrices=False))
    signs = torch.tensor([1.0 if row.max() > -row.min() else -1.0 for row in vh[:r]], dtype=weight.dtype)
    b, a = u[:, :r] * signs * s[:r], signs[:, None] * vh[:r]
    return weight + scaling * b @ v["core"] @ a


# By switch: the weight that the paper makes of a linear layer's, (out, in), and of the adapter's tensors.
PAPERS: dict[str, Callable[[Tensor, Values, float], Tensor]] = {
    "use_hira": _hira,
    "use_lora_fa": _plain,
    "use_lora_xs": _xs,
    "use_vera": _vera,
    "use_sharelora": _plain,
    "use_adalora": _adalora,
}


@pytest.mark.parametrize("switch", PAPERS)
def test_a_formula_computes_and_trains_as_its_paper_says(switch: str) -> None:
    torch.manual_seed(0)
    net = Named(nn.Linear(9, 12)).double()
    weight, bias = net.layer.weight.detach().clone(), net.layer.bias.detach().clone()
    model = add_lora(net, LoRAConfig(r=8, target_modules=["layer"], **{switch: True}))
    move(model)
    x = torch.randn(5, 9, dtype=torch.float64)
    (adapter,) = model.layer.carried("default").values()
    values = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in adapter.tensors().items()}
    want = nn.functional.linear(x, PAPERS[switch](weight, values, adapter.scaling), bias)
    got = model(x)
    assert torch.allclose(got, want, rtol=0, atol=1e-12)
    want.square().sum().backward()
    got.square().sum().backward()
    for name, value in values.items():
        assert value.grad is None or torch.allclose(adapter.tensors()[name].grad, value.grad, atol=1e-10), name


def test_a_method_of_its_own_has_its_own_words_in_its_file_and_none_of_plain_loras(tmp_path: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["layer"], lora_dropout=0.1, use_hira=True)
    assert (config.use_hira, config.peft_type, config.scaling_of("layer")) == (True, "HIRA", 1.0)
    add_lora(Named(nn.Linear(6, 10)), config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "HIRA"
    assert written["hira_dropout"] == 0.1
    assert not {"use_hira", "lora_alpha", "lora_dropout", "bias", "init_lora_weights"} & written.keys()
    assert {key.rpartition(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {"hira_A", "hira_B"}
    again = LoRAConfig.from_pretrained(tmp_path)
    assert (again.formula, again.lora_dropout) == ("hira", 0.1)
    assert again.copy(r=4).use_hira is True


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lora_alpha": 16}, r"lora_alpha=16: HiRA \(use_hira=True\) has no such setting; leave it out"),
        ({"use_rslora": True}, "use_rslora=True: HiRA"),
        ({"init_lora_weights": "pissa"}, r"'pissa': HiRA \(use_hira=True\) takes True, False, 'gaussian'"),
        ({"init_lora_weights": "eva"}, "'eva': HiRA"),
        ({"use_dora": True}, "exclude each other"),
    ],
)
def test_a_setting_that_a_formula_has_no_place_for_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        LoRAConfig(use_hira=True, **wrong)


def test_an_attached_configs_formula_cannot_be_changed_and_an_unknown_name_is_an_attribute_error() -> None:
    model = add_lora(Named(nn.Linear(6, 10)), LoRAConfig(target_modules=["layer"], use_hira=True))
    with pytest.raises(ConfigError, match="use_hira=False"):
        model.peft_config["default"].use_hira = False
    assert not hasattr(LoRAConfig(), "use_hirra")
