"""Loading, switching and merging: what they touch, what they keep, and what they must not grow with. Never timings."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import MergeError

from .cases import KIND_CASES, PAIRS, adapted, move
from .peek import LF, LoRA, adding, read_tensors, targets

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
LINEARS = ["c_attn", "c_fc", "c_proj"]


def gpt2(layers: int = 2) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=layers, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=1,
        )
    ).eval()  # fmt: skip


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2, target_modules=LINEARS))
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def factors(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {key: p for key, p in model.named_parameters() if f".adapters.{name}." in key}


def calls(action: Callable[[], object]) -> int:
    """Return how many Python functions an action calls."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    gc.collect()
    gc.disable()  # what others left would be cleared away, and counted, at any moment
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_loaded_adapter_holds_the_files_own_tensors_and_initialises_none(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LoRAModel.from_pretrained(adapter, base_model=gpt2())
    started = []
    monkeypatch.setattr(LoRA, "initialise", lambda *_: started.append(1))
    tensors = read_tensors(adapter / "adapter_model.safetensors")
    adding.load(model, model._lora, LoRAConfig.from_pretrained(adapter), tensors, "b", trainable=True)
    model.set_adapter("b")
    assert not started
    assert {p.data_ptr() for p in factors(model, "b").values()} == {t.data_ptr() for t in tensors.values()}
    assert all(p.is_leaf and p.requires_grad for p in factors(model, "b").values())


def test_a_file_that_is_written_over_after_loading_changes_nothing(adapter: Path) -> None:
    model = LoRAModel.from_pretrained(adapter, base_model=gpt2(), is_trainable=True)
    before = model(IDS).logits
    file = adapter / "adapter_model.safetensors"
    with open(file, "r+b") as opened:
        opened.write(b"\xff" * file.stat().st_size)
    os.truncate(file, 3)
    assert torch.equal(model(IDS).logits, before)
    model(IDS).logits.sum().backward()
    torch.optim.SGD(factors(model, "default").values(), lr=0.1).step()
    assert not torch.equal(model(IDS).logits, before)


def test_every_loaded_tensor_is_a_storage_of_its_own(adapter: Path) -> None:
    """What saves or moves a model tells tied tensors by their storage; here none are."""
    pickled = {k: v[:] for k, v in safetensors.torch.load_file(adapter / "adapter_model.safetensors").items()}
    whole = torch.cat([t.reshape(-1) for t in pickled.values()])
    parts = whole.split([t.numel() for t in pickled.values()])
    views = {k: part.view(t.shape) for (k, t), part in zip(pickled.items(), parts, strict=True)}
    torch.save(views, adapter / "adapter_model.bin")
    for file in ("adapter_model.safetensors", "adapter_model.bin"):
        tensors = read_tensors(adapter / file).values()
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)
        assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


def test_files_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    content = {str(d): torch.arange(6).view(2, 3).to(d) for d in dtypes}
    content |= {"a number": torch.tensor(3.5), "nothing": torch.empty(0, 4), "after it": torch.ones(5)}
    safetensors.torch.save_file(content, tmp_path / "x.safetensors", metadata={"format": "pt"})
    got = read_tensors(tmp_path / "x.safetensors")
    assert got.keys() == content.keys()
    for name, want in content.items():
        assert got[name].dtype is want.dtype
        assert torch.equal(got[name], want), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_file_becomes_float32_masters(adapter: Path, dtype: torch.dtype) -> None:
    file = adapter / "adapter_model.safetensors"
    halved = {k: v.to(dtype) for k, v in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(halved, file)
    model = LoRAModel.from_pretrained(adapter, base_model=gpt2())
    got = model.get_adapter_state_dict()
    assert {t.dtype for t in got.values()} == {torch.float32}
    assert all(torch.equal(t, halved[f"base_model.model.{k}"].float()) for k, t in got.items())


def test_loading_and_computing_do_not_grow_with_the_adapters_that_are_there(adapter: Path) -> None:
    model = LoRAModel.from_pretrained(adapter, base_model=gpt2())
    forward = calls(lambda: model(IDS))
    counts = [calls(lambda name=name: model.load_adapter(adapter, name)) for name in "abcdefgh"]
    assert counts[-1] <= 1.02 * counts[1]
    assert calls(lambda: model(IDS)) <= forward


def test_switching_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    counts = []
    for layers in (1, 4):
        model = LoRAModel.from_model(gpt2(layers), LoRAConfig(r=2, target_modules=LINEARS))
        model.save_pretrained(tmp_path)
        model.load_adapter(tmp_path, "a")
        model.load_adapter(tmp_path, "b")
        counts.append(calls(lambda model=model: model.set_adapter("a")))
    assert counts[0] == counts[1]


def test_adding_by_a_preset_asks_for_the_structure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, original = [], targets.preset_targets
    monkeypatch.setattr(targets, "preset_targets", lambda *args: asked.append(args) or original(*args))
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2, target_modules="auto"))
    assert len(asked) == 1
    assert model.peft_config["default"].target_modules == ["c_attn"]


# --- merging --------------------------------------------------------------------------------------------------------


def merged_weights(model: LoRAModel) -> dict[str, torch.Tensor]:
    model.merge_adapter()
    values = {f"{n}.{p}": layer._parameters[p].clone() for n, layer in model._lora.layers.items() for p in ("weight",)}
    model.unmerge_adapter()
    return values


@pytest.mark.parametrize(
    "kind", [k for k, case in KIND_CASES.items() if "target_modules" in case.targets and k != "attention"]
)
def test_a_weight_with_memory_of_its_own_is_merged_for_good_in_place(kind: str) -> None:
    model = adapted(kind, "lora")
    want = merged_weights(model)
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    plain = model.merge_and_unload()
    for name, value in want.items():
        parameter = plain.get_parameter(name)
        assert parameter.data_ptr() == before[name]
        assert torch.allclose(parameter, value, rtol=1e-6, atol=1e-6)


def test_two_adapters_are_merged_for_good_in_place_one_after_the_other() -> None:
    model = adapted("linear", "lora")
    model.add_adapter(LoRAConfig(r=3, target_modules=["layer"]), "b")
    move(model)
    model.set_adapter(["default", "b"])
    want = merged_weights(model)["layer.weight"]
    assert torch.allclose(model.merge_and_unload().layer.weight, want, rtol=1e-6, atol=1e-6)


def test_a_weight_that_shares_memory_is_replaced_and_the_other_keeps_its_values() -> None:
    """Tied as one parameter, as two parameters on one storage, and to a buffer."""
    for tie in (
        lambda one, other: setattr(other, "weight", one.weight),
        lambda one, other: setattr(other, "weight", nn.Parameter(one.weight.data)),
        lambda one, other: one.register_buffer("seen", one.weight.data),
    ):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        tie(*model)
        adapted_model = add_lora(model, LoRAConfig(r=2, target_modules=["0"]))
        move(adapted_model)
        others = {n: p for n, p in model.state_dict(keep_vars=True).items() if n != "0.weight" and "adapters" not in n}
        before = {n: p.clone() for n, p in others.items()}
        own, want = model[0].weight.clone(), merged_weights(adapted_model)["0.weight"]
        plain = adapted_model.merge_and_unload()
        assert torch.equal(plain[0].weight, want)
        assert not torch.equal(want, own)
        assert all(torch.equal(p, before[n]) for n, p in others.items())


def test_memory_that_torch_did_not_allocate_for_the_weight_alone_is_never_written(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(6, 6)}, tmp_path / "w.pt")
    safetensors.torch.save_file({"w": torch.randn(6, 6)}, tmp_path / "w.safetensors")
    files = [(f, f.read_bytes()) for f in sorted(tmp_path.iterdir())]
    array = torch.randn(6, 6).numpy()
    for weight in (
        torch.from_numpy(array),
        torch.load(tmp_path / "w.pt", mmap=True)["w"],
        safetensors.torch.load_file(tmp_path / "w.safetensors")["w"],
        torch.randn(6, 6).share_memory_(),
        torch.randn(12, 6)[6:],
    ):
        model = nn.Sequential(nn.Linear(6, 6))
        model[0].weight = nn.Parameter(weight)
        before = weight.clone()
        model = add_lora(model, LoRAConfig(r=2, target_modules=["0"]))
        move(model)
        assert not torch.equal(model.merge_and_unload()[0].weight, before)
        assert torch.equal(weight, before)
    assert all(f.read_bytes() == content for f, content in files)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("step", ["merge_adapter", "merge_and_unload"])
def test_an_overflow_in_the_last_layer_leaves_every_layer_as_it_was(dtype: torch.dtype, step: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).to(dtype)
    model = add_lora(model, LoRAConfig(r=2, target_modules=["0", "1", "2"]))
    move(model)
    top = torch.finfo(dtype).max
    with torch.no_grad():
        model[2].weight.fill_(top)
        for factor in model[2].adapters["default"].parameters():
            factor.fill_((top / 64) ** 0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objects = [layer.weight for layer in model]
    with pytest.raises(MergeError, match="^2: .*finite"):
        getattr(model, step)()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(layer.weight is weight for layer, weight in zip(model, objects, strict=True))


def test_the_largest_weight_takes_a_small_update() -> None:
    """Half a last bit cannot take the largest number past its end, so nothing needs to be tried."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        model = add_lora(nn.Sequential(nn.Linear(4, 4)).to(dtype), LoRAConfig(r=2, target_modules=["0"]))
        move(model)
        with torch.no_grad():
            model[0].weight.fill_(torch.finfo(dtype).max)
        assert torch.isfinite(model.merge_and_unload()[0].weight).all()


@pytest.mark.parametrize("step", ["merge_adapter", "merge_and_unload"])
def test_a_base_that_is_not_finite_is_not_merged_into(step: str) -> None:
    model = adapted("linear", "lora")
    with torch.no_grad():
        model.layer.weight[1, 2] = float("inf")
    with pytest.raises(MergeError, match="^layer: .*finite"):
        getattr(model, step)()


@pytest.mark.parametrize(("kind", "variant"), PAIRS, ids=[f"{k}-{v}" for k, v in PAIRS])
def test_the_factors_bound_what_changes_and_adding_in_place_gives_the_effective_weight(kind: str, variant: str) -> None:
    model = adapted(kind, variant)
    for layer in model._lora.layers.values():
        for adapter in (a for a in layer.adapters["default"].values() if isinstance(a, LoRA)):
            own = layer._parameters[adapter.parameter].detach()
            change = float((adapter.effective(own) - own).abs().max().detach())
            assert 0 < change <= adapter.largest_change()
            assert adapter.adds == math.isfinite(adapter.largest_change())
            assert adapter.adds or variant != "lora"
            if adapter.adds:
                written = own.clone()
                adapter.add_to(written)
                assert torch.allclose(written, adapter.effective(own), rtol=1e-6, atol=1e-6)


def test_finite_is_told_from_a_sum_that_overflows() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        values = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
        assert LF.is_finite(values)
        for bad in (float("inf"), float("-inf"), float("nan")):
            values[7] = bad
            assert not LF.is_finite(values)


def test_adding_a_product_leaves_the_weight_as_it_was() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        weight, left, right = torch.randn(5, 4).to(dtype), torch.randn(5, 2), torch.randn(2, 4)
        before, want = weight.clone(), weight.double() + 0.5 * left.double() @ right.double()
        terms = weight.double().abs() + 0.5 * left.double().abs() @ right.double().abs()  # a sum rounds as its terms do
        got = LF.add_product(weight, left, right, 0.5)
        assert got.dtype is dtype
        assert ((got.double() - want).abs() <= 4 * torch.finfo(dtype).eps * terms).all()
        assert torch.equal(weight, before)


def test_packed_weights_are_told_apart_before_any_layer_is_written() -> None:
    model = add_lora(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoRAConfig(r=2, target_modules=["0", "1"]))
    move(model)
    model[1].adapters["default"]["weight"].kind = "packed"
    before = [layer.weight.clone() for layer in model]
    with pytest.raises(MergeError, match=r"^1: .*packed"):
        model.merge_and_unload()
    assert all(torch.equal(layer.weight, b) for layer, b in zip(model, before, strict=True))
