"""The first steps of a training tell what does not train: no gradient, or no optimizer that holds it."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterStateError

from .tiny import tiny
from .trainings import trainer

SEEN, UNSEEN = "sees", "is_blind"


class Net(nn.Module):
    """Layers that are called, one that is not, a table, and of three experts and two blocks one that is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.sees, self.head = nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.is_blind, self.experts = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.checkpoints = False

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            x = self.table(x)
        x = checkpoint(self.sees, x, use_reentrant=False) if self.checkpoints else self.sees(x)
        return self.head(self.blocks[0](self.experts[1](x)))


class Around(nn.Module):
    """A module of one's own that only has a LoRAModel inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def net(targets: list[str] | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    return add_lora(Net(), LoRAConfig(r=2, target_modules=targets, **settings))


def optimizer_of(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, **options)


def floats() -> Tensor:
    return torch.ones(2, 4)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 1, x: Tensor | None = None) -> None:
    for _ in range(count):
        model(floats() if x is None else x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@contextmanager
def told(*names: str) -> Iterator[None]:
    """Expect one warning, which names these; none where there are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(each.message) for each in caught]
    assert len(texts) == bool(names), texts
    assert all(name in texts[0] for name in names), texts


def _without_experts() -> Any:
    return net([SEEN, "experts.0", "experts.2"])


def _off() -> Any:
    model = net([SEEN], modules_to_save=["head"])
    model.disable_adapters()
    model.head.requires_grad_(True)
    return model


DEAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a layer that is never called": (lambda: net([SEEN, UNSEEN]), (UNSEEN, "1 adapters")),
    "a saved module": (lambda: net([SEEN], modules_to_save=[UNSEEN]), (f"{UNSEEN}.weight", f"{UNSEEN}.bias")),
    "token rows of a table that is not read": (lambda: net([SEEN], trainable_token_indices={"table": [1]}), ("table",)),
    "one of several blocks": (lambda: net(["blocks.0", "blocks.1"]), ("blocks.1", "1 adapters")),
    "inside a module of one's own": (lambda: Around(net([SEEN, UNSEEN])), (UNSEEN,)),
    "all experts": (_without_experts, ("experts.0", "experts.2")),
    "adapters that are switched off": (_off, (SEEN,)),
}


@pytest.mark.parametrize("case", DEAD)
def test_what_got_no_gradient_in_the_first_step_is_named_once(case: str) -> None:
    make, names = DEAD[case]
    model = make()
    optimizer = optimizer_of(model)
    with told(*names):
        steps(model, optimizer, 4)


def _frozen_beside() -> Any:
    model = net([SEEN])
    model.add_adapter(LoRAConfig(r=2, target_modules=[SEEN, UNSEEN]), "other")
    model.set_adapter("default")
    return model


def _frozen_by_hand() -> Any:
    model = net([SEEN, UNSEEN])
    model.is_blind.requires_grad_(False)
    return model


def _dropping_layers() -> Any:
    model = net([SEEN, "blocks.0", "blocks.1"])
    model.layerdrop = 0.1
    return model


def _checkpointing() -> Any:
    model = net([SEEN])
    model.checkpoints = True
    return model


def _numbered_experts() -> Any:
    base = Net()
    base.expert_0, base.expert_1 = base.experts[0], base.experts[1]
    del base.experts
    base.experts = (base.expert_0, base.expert_1)
    return add_lora(base, LoRAConfig(r=2, target_modules=["expert_0", "expert_1"]))


QUIET: dict[str, Callable[[], Any]] = {
    "every adapter has one": lambda: net([SEEN, "head"]),
    "an expert without a token": lambda: net([SEEN, "experts.0", "experts.1"]),
    "an expert with its number in its name": _numbered_experts,
    "gradient checkpointing": _checkpointing,
    "an adapter that is not selected": _frozen_beside,
    "a layer that was frozen by hand": _frozen_by_hand,
    "layers that are dropped by chance": _dropping_layers,
    "a compiled model": lambda: torch.compile(net([SEEN]), backend="eager"),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_gets_its_gradients_elsewhere_or_later_is_no_matter_for_a_warning(case: str) -> None:
    model = QUIET[case]()
    with told():
        steps(model, optimizer_of(model), 4)


def _accumulates(model: Any) -> None:
    optimizer = optimizer_of(model)
    for _ in range(2):
        model(floats()).sum().backward()
    steps(model, optimizer)


def _takes_a_closure(model: Any) -> None:
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], max_iter=1)

    def loss() -> float:
        optimizer.zero_grad()
        found = model(floats()).square().sum()
        found.backward()
        return float(found.detach())

    for _ in range(3):
        optimizer.step(loss)


def _takes_a_closure_that_zeroes_nothing(model: Any) -> None:
    optimizer = optimizer_of(model)

    def loss() -> float:
        found = model(floats()).square().sum()
        found.backward()
        return float(found.detach())

    for _ in range(9):
        optimizer.zero_grad()
        optimizer.step(loss)


def _steps_before_the_first_backward(model: Any) -> None:
    optimizer = optimizer_of(model)
    optimizer.step()
    steps(model, optimizer, 2)


def _trains_a_critic_first(model: Any) -> None:
    critic = nn.Linear(2, 1)
    of_critic, of_model = optimizer_of(critic), optimizer_of(model)
    for i in range(1, 13):
        critic(model(floats())).sum().backward()
        of_critic.step()
        if i % 5 == 0:
            of_model.step()


def _steps_in_the_backward(model: Any) -> None:
    for p in [p for p in model.parameters() if p.requires_grad]:
        optimizer = torch.optim.SGD([p], lr=0.1)
        p.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    for _ in range(4):
        model(floats()).sum().backward()


def _splits_between_two(model: Any) -> None:
    split = [[p for n, p in model.named_parameters() if p.requires_grad and f"lora_{each}" in n] for each in "AB"]
    optimizers = [torch.optim.SGD(each, lr=0.1) for each in split]
    for _ in range(4):
        model(floats()).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def _steps_on_copies(model: Any) -> None:
    own = [p for p in model.parameters() if p.requires_grad]
    masters = [p.detach().clone().requires_grad_() for p in own]
    optimizer = torch.optim.SGD(masters, lr=0.1)
    for _ in range(4):
        model(floats()).sum().backward()
        for master, p in zip(masters, own, strict=True):
            master.grad = p.grad
        optimizer.step()
        for master, p in zip(masters, own, strict=True):
            p.data.copy_(master.data)


def _trains_two_models(model: Any) -> None:
    other = nn.Linear(2, 2)
    optimizers = [optimizer_of(other), optimizer_of(model)]
    for _ in range(4):
        other(model(floats())).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def _alternates(model: Any) -> None:
    model.add_adapter(LoRAConfig(r=2, target_modules=["head"]), "b")
    optimizers = dict.fromkeys(("default", "b"))
    for name in ["default", "b"] * 3:
        model.set_adapter(name)
        optimizers[name] = optimizers[name] or optimizer_of(model)
        steps(model, optimizers[name])


def _compiles_the_step(model: Any) -> None:
    optimizer = optimizer_of(model)
    for _ in range(3):
        model(floats()).sum().backward()
        torch.compile(optimizer.step, backend="eager")()


LOOPS = [
    _accumulates, _takes_a_closure, _takes_a_closure_that_zeroes_nothing, _steps_before_the_first_backward,
    _trains_a_critic_first, _steps_in_the_backward, _splits_between_two, _steps_on_copies, _trains_two_models,
    _alternates, _compiles_the_step,
]  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_of_every_kind_hear_nothing_where_all_trains(loop: Callable[[Any], None]) -> None:
    with told():
        loop(net([SEEN]))


# Whose optimizers never step a parameter without a gradient, or have none yet, hold copies, or run no Python meanwhile.
DEAF = (_steps_in_the_backward, _takes_a_closure_that_zeroes_nothing, _steps_on_copies, _compiles_the_step)


@pytest.mark.parametrize("loop", [each for each in LOOPS if each not in DEAF])
def test_loops_of_every_kind_hear_of_a_layer_that_is_never_called(loop: Callable[[Any], None]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop(net([SEEN, UNSEEN]))
    assert {UNSEEN in str(each.message) for each in caught} == {True}
    assert len(caught) <= 2  # one an optimizer


def test_the_stock_trainer_tells_as_well(tmp_path: Path) -> None:
    base = tiny("gpt2")
    base.unused = nn.Linear(4, 4)
    model = LoRAModel.from_model(base, LoRAConfig(r=2, target_modules=["c_attn", "unused"]))
    with told("unused"):
        trainer(model, tmp_path, save_strategy="no").train()


def test_a_model_that_waits_for_its_first_step_can_go() -> None:
    model, other = net([SEEN]), nn.Linear(2, 2)
    gone = weakref.ref(model)
    steps(other, optimizer_of(other), x=torch.ones(1, 2))
    del model
    gc.collect()
    assert gone() is None


def _of_another_model(model: Any) -> list[nn.Parameter]:
    return [p for p in net([SEEN]).parameters() if p.requires_grad]


def _of_a_copy(model: Any) -> list[nn.Parameter]:
    return [p for p in copy.deepcopy(model).parameters() if p.requires_grad]


def _of_the_base(model: Any) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if "lora_" not in n]


def _of_an_earlier_adapter(model: Any) -> list[nn.Parameter]:
    held = [p for p in model.parameters() if p.requires_grad]
    model.add_adapter(LoRAConfig(r=2, target_modules=[SEEN]), "late")
    return held


WRONG = [_of_another_model, _of_a_copy, _of_the_base, _of_an_earlier_adapter]


@pytest.mark.parametrize("held", WRONG)
def test_an_optimizer_that_holds_something_else_is_told_and_nothing_is_saved(held: Any, tmp_path: Path) -> None:
    model = net([SEEN])
    optimizer = torch.optim.SGD(held(model), lr=0.1)
    with told(SEEN, "no optimizer"):
        steps(model, optimizer, 6)
    with pytest.raises(AdapterStateError, match="still changes nothing"):
        model.save_pretrained(tmp_path, adapter_name=model.active_adapters()[0])


@pytest.mark.parametrize("held", WRONG)
def test_a_save_tells_of_gradients_that_nobody_used(held: Any, tmp_path: Path) -> None:
    model = net([SEEN])
    steps(model, torch.optim.SGD(held(model), lr=0.1))
    with told(SEEN, "no step"):
        model.save_pretrained(tmp_path, adapter_name=model.active_adapters()[0])


def test_an_adapter_that_trains_in_rows_alone_and_in_no_optimizer_is_told_and_not_saved(tmp_path: Path) -> None:
    model = net([SEEN])
    model.add_adapter(LoRAConfig(r=2, target_modules=[SEEN]), "other")
    early = optimizer_of(model)
    model.set_requires_grad(["default", "other"])
    with told(SEEN, "no optimizer"):
        for _ in range(6):
            model(floats(), adapter_names=["default"] + ["other"] * (len(floats()) - 1)).sum().backward()
            early.step()
    with pytest.raises(AdapterStateError, match="'default' is not saved"):
        model.save_pretrained(tmp_path)


def test_a_fresh_adapter_and_one_that_was_only_tried_are_saved_without_a_word(tmp_path: Path) -> None:
    model = net([SEEN])
    with told():
        model.save_pretrained(tmp_path)
        model(floats()).sum().backward()
        model.save_pretrained(tmp_path)


def test_a_step_long_after_the_first_asks_nobody() -> None:
    model = net([SEEN])
    optimizer = optimizer_of(model)
    steps(model, optimizer, 4)
    later = nn.Linear(4, 4)
    model.is_blind = later  # nothing looks again
    with told():
        steps(model, optimizer, 2)
