"""DoRA's norm is computed once while nothing trains, and again after anything that may have changed it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora

from .cases import move
from .peek import low_rank

CONFIG = LoRAConfig(r=2, lora_alpha=3, target_modules=["0"], use_dora=True)


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seed in (("one", 3), ("two", 4)):
        model = add_lora(base(), CONFIG)
        move(model, seed)
        model.save_pretrained(tmp_path / name)
    return tmp_path


@pytest.fixture
def model(folder: Path) -> LoRAModel:
    """A loaded adapter, which does not train."""
    return LoRAModel.from_pretrained(folder / "one", base_model=base()).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The norms that were computed."""
    found, norm = [], low_rank.row_norm
    monkeypatch.setattr(low_rank, "row_norm", lambda matrix: found.append(1) or norm(matrix))
    return found


def adapter(model: Any) -> Any:
    return model[0].adapters["default"]["weight"]


def forget(model: Any) -> Any:
    """Return a copy that knows no norm."""
    return copy.deepcopy(model)


def test_it_is_computed_once_while_nothing_trains(model: LoRAModel, x: Tensor, counted: list[int]) -> None:
    first = model(x)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            assert torch.equal(model(x), first)
    assert len(counted) == 1


def test_it_is_computed_each_time_while_something_trains(x: Tensor, counted: list[int]) -> None:
    model = add_lora(base(), CONFIG)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.5, fused=True)
    for _ in range(2):
        model.eval()(x).sum().backward()
        optimizer.step()  # fused: the tensors' versions stay
    with torch.no_grad():
        assert torch.equal(model(x), forget(model)(x))
    counted.clear()
    with torch.no_grad():
        model(x)
        model(x)
    assert len(counted) == 2


def test_one_known_from_inference_mode_serves_a_forward_that_is_differentiated(model: LoRAModel, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)
    adapter(model).magnitude.requires_grad_()
    model(x).sum().backward()
    assert adapter(model).magnitude.grad.abs().sum() > 0


def _moved(model: Any) -> None:
    """Give the weight the memory that it had before the last forward, with other numbers."""
    weight = model[0].weight
    weight.data = weight.data * 2
    weight.data = weight.data * 2


CHANGES: dict[str, Callable[[Any, Path], object]] = {
    "weight in place": lambda m, _: m[0].weight.detach().mul_(torch.linspace(1, 2, 6)),
    "weight replaced": lambda m, _: _moved(m),
    "weight another object": lambda m, _: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach() * 3, False)),
    "A in place": lambda m, _: adapter(m).lora_A.detach().add_(1),
    "B in place": lambda m, _: adapter(m).lora_B.detach().add_(1),
    "B replaced": lambda m, _: setattr(adapter(m).lora_B, "data", torch.randn(10, 2)),
    "scaling": lambda m, _: setattr(adapter(m), "scaling", 7.0),
    "state dict": lambda m, _: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "hot swap": lambda m, f: m.load_adapter(f / "two", adapter_name="default", hotswap=True),
    "merged and unmerged": lambda m, _: (m.merge_adapter(), m[0](torch.ones(6)), m.unmerge_adapter()),
    "dtype": lambda m, _: m.double().float().half().float(),
    "trained a step": lambda m, _: (adapter(m).lora_A.requires_grad_(), adapter(m).lora_A.data.add_(1)),
    "written through .data, then told": lambda m, _: (m[0].weight.data.mul_(torch.linspace(1, 2, 6)), m.eval()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_it_is_that_of_the_new_numbers(change: str, model: LoRAModel, folder: Path, x: Tensor) -> None:
    before = model(x)
    CHANGES[change](model, folder)
    with torch.no_grad():
        want = forget(model)(x)
        assert torch.equal(model(x), want)
        assert torch.equal(model(x), want)
    if change != "merged and unmerged":
        assert not torch.equal(want, before)


def test_a_freed_weights_memory_with_other_numbers_is_another_weight(model: LoRAModel, x: Tensor) -> None:
    """The same address, version and shape: only the storage tells."""
    model(x)
    weight, address = model[0].weight, model[0].weight.data_ptr()
    held = weight.data.clone()
    for _ in range(200):
        weight.data = torch.empty(0)
        weight.data = torch.full((10, 6), 0.5)
        if weight.data_ptr() == address:
            break
    assert torch.equal(model(x), forget(model)(x))
    assert not torch.equal(weight, held)


def test_autocast_has_a_norm_of_its_own(model: LoRAModel, x: Tensor, counted: list[int]) -> None:
    plain = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
        assert torch.equal(half, forget(model)(x))
    assert torch.equal(model(x), plain)
    assert len(counted) == 4


def test_threads_that_begin_at_once_and_a_write_between_them_get_the_numbers_of_their_time(
    model: LoRAModel, x: Tensor
) -> None:
    for factor in (1.0, 2.0):
        with torch.no_grad():
            model[0].weight[:, 0].mul_(factor)
        want = forget(model)(x)
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(got, want) for got in pool.map(model, [x] * 16))


def test_copies_and_pickles_leave_it_behind(model: LoRAModel, x: Tensor) -> None:
    want = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert adapter(copied).known is None
        assert torch.equal(copied(x), want)
    assert adapter(model).known is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Converting a tensor")
@pytest.mark.parametrize("trace", ["export", "jit"])
def test_what_was_traced_computes_it_each_time(trace: str, model: LoRAModel, x: Tensor) -> None:
    before = model(x)
    with torch.no_grad():
        traced = torch.export.export(model, (x,)).module() if trace == "export" else torch.jit.trace(model, (x,))
        model[0].weight.mul_(torch.linspace(1, 2, 6))  # which the traced one reads
    assert torch.allclose(traced(x), model(x), atol=1e-6)
    assert not torch.allclose(traced(x), before, atol=1e-3)
