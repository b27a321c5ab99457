"""Layers whose weight is computed from other tensors: pruned, normalised, parametrised; before and after the adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from hf_lora import LoRAConfig, add_lora
from hf_lora.errors import AdapterStateError, MergeError, TargetError

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Net(nn.Module):
    def __init__(self, reads: bool = False, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.reads = layer or nn.Linear(4, 4), reads

    def forward(self, x: Tensor) -> Tensor:
        if self.reads:
            self.layer(x)
            return F.linear(x, self.layer.weight, self.layer.bias)  # type: ignore[arg-type]
        return self.layer(x)


class OnlyCalling(nn.Module):
    def __init__(self, reads: bool = False, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrised_twice(layer: nn.Module) -> None:
    parametrizations.spectral_norm(layer)
    parametrize.register_parametrization(layer, "weight", Doubled())


# How a weight comes to be computed, and how it is made permanent.
Way = Callable[[nn.Module], Any]
WAYS: dict[str, tuple[Way, Way]] = {
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.5), lambda m: prune.remove(m, "weight")),
    "weight norm": (old_weight_norm, remove_weight_norm),
    "spectral norm": (old_spectral_norm, remove_spectral_norm),
    "parametrised by a weight norm": (
        parametrizations.weight_norm,
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "parametrised twice": (_parametrised_twice, lambda m: parametrize.remove_parametrizations(m, "weight")),
}
SETTINGS: dict[str, dict[str, Any]] = {"LoRA": {}, "DoRA": {"use_dora": True}, "PiSSA": {"init_lora_weights": "pissa"}}


def _config(**settings: Any) -> LoRAConfig:
    return LoRAConfig(**{"r": 2, "target_modules": ["layer"], "init_lora_weights": False, **settings})


def _moved(net: Any) -> Any:
    """Return a model whose adapter is away from where it started."""
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += torch.rand_like(parameter) / 4
    return net


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", [OnlyCalling, Net], ids=["called", "called and read"])
def test_a_computed_weight_carries_an_adapter_that_is_not_merged(
    base: Callable[..., Any], way: str, settings: str
) -> None:
    torch.manual_seed(0)
    net, x = base(reads=True), torch.randn(3, 4)
    WAYS[way][0](net.layer)
    net.eval().layer.requires_grad_(False)
    kind, weight = type(net.layer), net(x) - net.layer.bias
    net = _moved(add_lora(net, _config(**SETTINGS[settings])))
    live = net(x)
    live.sum().backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert (live - net.layer.bias - weight).abs().max() > 1e-2
    with net.adapters_disabled():
        assert torch.allclose(net(x) - net.layer.bias, weight, atol=1e-6)
    with pytest.raises(MergeError, match=r"layer: weight of .* is computed .*Make it permanent first"):
        net.merge_adapter()
    assert torch.equal(net(x), live)
    net.add_adapter(_config(init_lora_weights=True), "second")
    net.delete_adapter("second")
    net.set_adapter("default")
    assert torch.allclose(net(x), live, atol=1e-6)
    net.unload()
    assert type(net.layer) is kind
    assert torch.allclose(net(x) - net.layer.bias, weight, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_computed_later_merges_once_it_is_permanent(way: str) -> None:
    torch.manual_seed(0)
    net, x = add_lora(OnlyCalling().eval(), _config()), torch.randn(3, 4)
    WAYS[way][0](net.layer)
    net.layer.requires_grad_(False)
    with net.adapters_disabled():
        off = net(x)
    live = net(x)
    assert (live - off).abs().max() > 1e-2
    with pytest.raises(MergeError, match=r"layer: weight of .* is computed"):
        net.merge_adapter()
    net.add_adapter(_config(init_lora_weights=True), "second")
    net.set_adapter("default")
    assert torch.allclose(net(x), live, atol=1e-6)
    WAYS[way][1](net.layer)
    assert torch.allclose(net(x), live, atol=1e-5)
    net.merge_adapter()
    assert torch.allclose(net(x), live, atol=1e-5)
    net.unmerge_adapter()
    plain = net.unload()
    assert type(plain.layer) is nn.Linear
    assert torch.allclose(plain(x), off, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_read_with_its_adapters_is_not_computed_from_later(way: str) -> None:
    net, x = add_lora(Net(reads=True), _config()), torch.randn(3, 4)
    live = net(x)
    with pytest.raises(AdapterStateError, match=r"weight of .* is read with its adapters inside.* unload\(\)"):
        WAYS[way][0](net.layer)
    if way != "weight norm":  # torch has taken the weight away by then
        assert torch.equal(net(x), live)


def test_a_parametrised_layer_that_loses_its_adapter_keeps_its_parametrization() -> None:
    net, x = add_lora(OnlyCalling().eval(), _config()), torch.randn(3, 4)
    parametrizations.orthogonal(net.layer)
    with net.adapters_disabled():
        off = net(x)
    plain = net.unload()
    assert "LoRA" not in type(plain.layer).__name__
    assert parametrize.is_parametrized(plain.layer, "weight")
    assert torch.allclose(plain(x), off, atol=1e-6)


def test_a_computed_table_and_convolution_carry_adapters_and_its_rows_are_refused() -> None:
    for layer, x in ((nn.Embedding(5, 4), torch.tensor([[1, 2]])), (nn.Conv1d(4, 4, 3), torch.randn(1, 4, 6))):
        prune.l1_unstructured(layer, "weight", 0.5)
        net = OnlyCalling(layer=layer)
        base = net(x).detach()
        assert (add_lora(net, _config())(x) - base).abs().max() > 1e-2
    table = nn.Embedding(5, 4)
    prune.l1_unstructured(table, "weight", 0.5)
    with pytest.raises(TargetError, match="layer, whose weight is computed .*prune"):
        add_lora(OnlyCalling(layer=table), LoRAConfig(target_modules=None, trainable_token_indices={"layer": [1]}))


def test_the_layer_and_not_its_parametrization_is_what_a_number_names() -> None:
    net = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)))
    assert list(add_lora(net, LoRAConfig(target_modules=["0"]))._lora.layers) == ["0"]
