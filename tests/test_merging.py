"""What merging loses to rounding: measured, told, limited, and avoided by float32; and what the methods refuse."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterStateError, MergeError

from .cases import move

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def _gpt2(dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).to(dtype).eval()


def _adapted(dtype: torch.dtype, scale: float, **settings: object) -> LoRAModel:
    """A GPT-2 whose adapters change its weights by about `scale` of them."""
    model = LoRAModel.from_model(_gpt2(dtype), LoRAConfig(r=4, target_modules=["c_attn", "c_fc"], **settings))
    move(model)
    with torch.no_grad():
        for layer in model._lora.layers.values():
            for adapter in layer.carried("default").values():
                weight = layer.weight.float()
                delta = adapter.effective(weight) - weight
                adapter.lora_B *= scale * weight.norm() / delta.norm()
    return model.eval()


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float64), (torch.float32, torch.float64)])
def test_the_report_is_what_rounding_takes_of_the_effect(dtype: torch.dtype, wide: torch.dtype) -> None:
    model = _adapted(dtype, 1e-2)
    report = model.merge_report()
    lost = effect = 0.0
    for name, layer in model._lora.layers.items():
        (adapter,) = layer.carried("default").values()
        base = layer.weight.to(wide)
        delta = adapter.scaling * (adapter.lora_B.to(wide) @ adapter.lora_A.to(wide)).T  # Conv1D
        delta, merged = delta.detach(), adapter.effective(layer.weight).detach().to(wide)
        own = (merged - base - delta).norm() / delta.norm()
        assert report.losses[f"{name}.weight"] == pytest.approx(float(own), rel=1e-2)
        lost, effect = lost + float((merged - base - delta).square().sum()), effect + float(delta.square().sum())
    assert report.total == pytest.approx((lost / effect) ** 0.5, rel=1e-2)
    assert 0.05 < report.total < 0.3 if dtype == torch.bfloat16 else report.total < 1e-4
    assert str(report).startswith(f"{report.total:.2%} ")


def test_a_lossy_merge_is_told_and_a_good_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_lora"):
        _adapted(torch.float32, 1e-3).merge_adapter()
        _adapted(torch.bfloat16, 1.0).merge_adapter()
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "hf_lora"):
        _adapted(torch.bfloat16, 1e-3).merge_and_unload()
    (record,) = caplog.records
    assert "%" in record.getMessage()
    assert "torch.float32" in record.getMessage()


@pytest.mark.parametrize("method", ["merge_adapter", "merge_and_unload"])
def test_a_merge_that_loses_more_than_allowed_is_refused_with_nothing_merged(method: str) -> None:
    model = _adapted(torch.bfloat16, 1e-3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(MergeError, match=r"verify=0\.01.*torch\.float32"):
        getattr(model, method)(verify=0.01)
    assert isinstance(model, LoRAModel)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    getattr(_adapted(torch.float32, 1e-3), method)(verify=0.01)


@pytest.mark.parametrize("dora", [False, True])
def test_float32_on_request_loses_nothing(dora: bool) -> None:
    model = _adapted(torch.bfloat16, 1e-3, use_dora=dora)
    exact = LoRAModel.from_model(_gpt2(torch.bfloat16).float(), model.peft_config["default"])
    exact.load_state_dict(model.state_dict())
    want = exact.eval()(IDS).logits
    merged = model.merge_and_unload(dtype=torch.float32, verify=1e-3)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert merged.config.dtype == torch.float32
    assert torch.allclose(merged(IDS).logits, want, atol=1e-5)


def test_a_dtype_that_would_lose_is_refused() -> None:
    model = _adapted(torch.float32, 1e-3)
    for dtype in (torch.bfloat16, torch.int8):
        with pytest.raises(MergeError, match=f"dtype={dtype}.*torch.float64"):
            model.merge_and_unload(dtype=dtype)
    model.merge_adapter()
    for call in (model.merge_report, lambda: model.merge_and_unload(dtype=torch.float32)):
        with pytest.raises(AdapterStateError, match="unmerge_adapter"):
            call()


def test_saved_modules_and_several_adapters_count_into_the_report() -> None:
    net = add_lora(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), LoRAConfig(r=2, target_modules=["0"], modules_to_save=["1"])
    )
    move(net)
    net.add_adapter(LoRAConfig(r=2, target_modules=["0"]), "b")
    move(net)
    report = net.merge_report(["default", "b"])
    assert report.losses.keys() == {"0.weight", "1.weight", "1.bias"}
    assert report.losses["1.weight"] == 0.0
    assert 0 < report.losses["0.weight"] < 1e-5
    assert net.merge_report([]).losses == {}


def test_a_refused_widening_merge_leaves_every_dtype_as_it_was() -> None:
    model = _adapted(torch.bfloat16, 1e-3)
    with pytest.raises(MergeError, match=r"verify=0\.0"):
        model.merge_and_unload(dtype=torch.float32, verify=0.0)
    assert model.transformer.wte.weight.dtype == torch.bfloat16
    assert model.config.dtype != torch.float32
    with pytest.raises(MergeError, match="wider"):
        _adapted(torch.float64, 1e-3).merge_and_unload(dtype=torch.float32)


def test_what_overflows_in_half_precision_merges_in_float32() -> None:
    model = _adapted(torch.float16, 1e7)
    with pytest.raises(MergeError, match="finite"):
        model.merge_and_unload()
    merged = model.merge_and_unload(dtype=torch.float32, verify=1e-3)
    assert all(p.isfinite().all() for p in merged.parameters())


def test_a_limit_that_comes_too_late_is_refused() -> None:
    model = _adapted(torch.bfloat16, 1e-3)
    model.merge_adapter()
    with pytest.raises(AdapterStateError, match="verify="):
        model.merge_and_unload(verify=0.5)
