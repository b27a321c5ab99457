"""Loading and switching: what they touch, what they keep, and what they must not grow with. Never timings."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAModel

from .cases import move
from .peek import LoRA, adding, opened, read_tensors
from .tiny import IDS, tiny

LINEARS = ["c_attn", "c_fc", "c_proj"]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, target_modules=LINEARS))
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def factors(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {key: p for key, p in model.named_parameters() if f".adapters.{name}." in key}


def calls(action: Callable[[], object], *counted: str) -> int:
    """Return how many Python functions an action calls, or how many events of a profile are counted."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in (counted or ("call",))

    gc.collect()
    gc.disable()  # what others left would be cleared away, and counted, at any moment
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def test_a_loaded_adapter_holds_the_files_own_tensors(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LoRAModel.from_pretrained(adapter, base_model=tiny("gpt2"))
    started = []
    monkeypatch.setattr(LoRA, "initialise", lambda *_: started.append(1))
    files = opened(adapter)
    adding.load(model, model._lora, files, "b", trainable=True)
    model.set_adapter("b")
    assert not started
    assert {p.data_ptr() for p in factors(model, "b").values()} == {t.data_ptr() for t in files.tensors.values()}
    assert all(p.is_leaf and p.requires_grad for p in factors(model, "b").values())


def test_a_file_that_is_written_over_after_loading_changes_nothing(adapter: Path) -> None:
    model = LoRAModel.from_pretrained(adapter, base_model=tiny("gpt2"), is_trainable=True)
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


def test_loading_and_computing_do_not_grow_with_the_adapters_that_are_there(adapter: Path) -> None:
    model = LoRAModel.from_pretrained(adapter, base_model=tiny("gpt2"))
    forward = calls(lambda: model(IDS))
    counts = [calls(lambda name=name: model.load_adapter(adapter, name)) for name in "abcdefgh"]
    assert counts[-1] <= 1.02 * counts[1]
    assert calls(lambda: model(IDS)) <= forward


def test_switching_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    counts = []
    for layers in (1, 4):
        model = LoRAModel.from_model(tiny("gpt2", n_layer=layers), LoRAConfig(r=2, target_modules=LINEARS))
        model.save_pretrained(tmp_path)
        model.load_adapter(tmp_path, "a")
        model.load_adapter(tmp_path, "b")
        counts.append(calls(lambda model=model: model.set_adapter("a")))
    assert counts[0] == counts[1]
