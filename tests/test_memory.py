"""The two switches that keep less for backward: on and off again, the model is the same one, and computes the same."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn

from benchmarks.saved import Allocated
from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import ModelError

from .peek import LazyHead, LazyLogits, RecomputingMLP
from .tiny import HIDDEN, VOCAB, checkpointed, inputs, tiny, without_dropout
from .trainings import trainer

MLP, LOSS = "mlp_recompute", "linear_cross_entropy"
SWITCHES = [MLP, LOSS]
both = pytest.mark.parametrize("switch", SWITCHES)
Result = tuple[Tensor, dict[str, Tensor]]


def switched_on(model: LoRAModel, *switches: str) -> None:
    for switch in switches:
        getattr(model, f"enable_{switch}")()


def adapted(name: str = "llama", **changes: Any) -> LoRAModel:
    """Return a model in training mode without dropout of its own."""
    torch.manual_seed(0)
    config = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, **changes}
    return LoRAModel.from_model(without_dropout(tiny(name, noisy=True)), LoRAConfig(**config)).train()


def labelled(name: str = "llama") -> dict[str, Tensor]:
    given = inputs(name)
    labels = given.get("decoder_input_ids", given.get("input_ids")).clone()
    labels[0, 1:3] = -100
    return {**given, "labels": labels}


def step(model: nn.Module, name: str = "llama", **more: Any) -> Result:
    """Return the loss and the gradients of a step, with the same random numbers each time."""
    model.zero_grad()
    torch.manual_seed(3)
    loss = model(**labelled(name), **more).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(a: Result, b: Result, tolerance: float = 1e-5) -> bool:
    """Return whether losses and gradients agree, relative to the norm of all gradients."""
    assert a[1]
    assert a[1].keys() == b[1].keys()
    norm = torch.stack([g.norm() for g in a[1].values()]).norm()
    apart = torch.stack([(g - b[1][n]).norm() for n, g in a[1].items()]).norm()
    assert norm > 0
    return bool((a[0] - b[0]).abs() <= tolerance * a[0].abs() and apart <= tolerance * norm)


def _classes(model: nn.Module) -> dict[str, Any]:
    return {n: (type(m), sorted(m.__dict__)) for n, m in model.named_modules()}


def _switched(model: Any, switch: str) -> nn.Module:
    """Return the module that a switch gives another class."""
    return model.lm_head if switch == LOSS else model.model.layers[0].mlp


@both
@pytest.mark.parametrize("leave", ["disable", "unload", "merge_and_unload"])
@pytest.mark.parametrize("targets", [["q_proj"], ["lm_head", "q_proj"]])
def test_names_keys_and_classes_are_given_back_exactly(switch: str, leave: str, targets: list[str]) -> None:
    plain = {n: type(m) for n, m in tiny("llama").named_modules()}
    model = adapted(target_modules=targets)
    before, keys, name = _classes(model), list(model.state_dict()), type(_switched(model, switch)).__name__
    switched_on(model, switch, switch)
    module = _switched(model, switch)
    assert isinstance(module, LazyHead if switch == LOSS else RecomputingMLP)
    assert type(module).__name__ == name
    assert list(model.state_dict()) == keys
    if leave != "disable":
        assert {n: type(m) for n, m in getattr(model, leave)().named_modules()} == plain
        return
    for _ in range(2):
        getattr(model, f"disable_{switch}")()
    assert _classes(model) == before


@both
@pytest.mark.parametrize("targets", [["gate_proj"], ["lm_head", "gate_proj"]])
def test_copies_pickles_and_saved_adapters_are_the_same_model(switch: str, targets: list[str], tmp_path: Path) -> None:
    model = adapted(target_modules=targets)
    switched_on(model, switch)
    want = step(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert type(_switched(again, switch)) is type(_switched(model, switch))
        assert (type(again(**inputs("llama")).logits) is LazyLogits) == (switch == LOSS)
        assert same(want, step(again), 0.0)
    model.merge_adapter()
    merged = model(**labelled()).loss
    model.unmerge_adapter()
    model.save_pretrained(tmp_path)
    base = without_dropout(tiny("llama", noisy=True))
    assert same(want, step(LoRAModel.from_pretrained(tmp_path, base_model=base, is_trainable=True).train()))
    assert torch.allclose(merged, want[0], rtol=1e-4)


@both
def test_a_dispatched_model_computes_with_the_switched_forward(switch: str) -> None:
    model = adapted()
    plain = step(model)
    dispatch_model(model, {"": "cpu"}, force_hooks=True)
    switched_on(model, switch)
    assert (type(model(**labelled()).logits) is LazyLogits) == (switch == LOSS)
    assert same(plain, step(model))


@both
def test_a_compiled_module_takes_the_plain_forward_in_one_graph(switch: str) -> None:
    model = adapted()
    switched_on(model, switch)
    module, x = _switched(model, switch), torch.randn(2, 3, HIDDEN, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="eager")(x)
    assert type(compiled) is Tensor
    assert torch.allclose(compiled, module(x), atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_around_the_layers_changes_nothing(reentrant: bool) -> None:
    model = adapted()
    plain = step(model)
    checkpointed(model, reentrant)
    model.enable_input_require_grads()
    held = []
    for switches in ([], SWITCHES):
        switched_on(model, *switches)
        assert same(plain, step(model))
        with Allocated(iter(())) as alive:
            loss = model(**labelled()).loss
            held.append(alive.now)
        del loss
    assert held[1] <= held[0]


def test_nothing_outlives_a_step_and_nothing_waits_for_the_garbage_collector() -> None:
    model = adapted()
    switched_on(model, *SWITCHES)
    gc.collect()
    gc.disable()
    try:
        with Allocated(iter(())) as held:
            step(model)
            first = held.now
            step(model)
            assert held.now == first
    finally:
        gc.enable()


# What has no logits over a vocabulary or no gated MLP, and what the error tells to do.
REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    *((MLP, lambda name=name: adapted(name), "checkpointing") for name in ("gpt2", "t5", "mixtral")),
    (LOSS, lambda: adapted("bert"), "get_output_embeddings"),
    (LOSS, lambda: add_lora(nn.Sequential(nn.Linear(2, 2)), LoRAConfig(target_modules=["0"])), "get_output_embeddings"),
]


@pytest.mark.parametrize(("switch", "make", "says"), REFUSED)
def test_a_model_that_a_switch_has_nothing_to_do_in_is_refused(switch: str, make: Callable[[], Any], says: str) -> None:
    model = make()
    with pytest.raises(ModelError, match=says):
        switched_on(model, switch)
    getattr(model, f"disable_{switch}")()


def _rows() -> list[dict[str, Tensor]]:
    """Token rows, half of whose labels are left out."""
    ids = torch.randint(4, VOCAB, (24, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": torch.where(torch.arange(6) < i % 4, -100, row)} for i, row in enumerate(ids)]


def _trained(switches: list[str], out: Path, **changes: Any) -> tuple[list[float], Tensor]:
    """Return the losses of a training and what its parameters are at the end."""
    model = adapted(lora_dropout=0.1)
    switched_on(model, *switches)
    changes = {
        "max_steps": 4, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.05,
        "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 2, **changes,
        "optim": "sgd",  # Adam's first steps are as long where a gradient is nothing but rounding
    }  # fmt: skip
    run = trainer(model, out, **changes)
    run.train_dataset = run.eval_dataset = _rows()
    run.train()
    losses = [row[k] for row in run.state.log_history for k in ("loss", "eval_loss") if k in row]
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("changes", "of_loss", "of_path"), [({}, 1e-5, 1e-4), ({"bf16": True}, 1e-2, 0.3)])
def test_the_stock_trainer_trains_the_same_model(changes: Any, of_loss: float, of_path: float, tmp_path: Path) -> None:
    start = torch.cat([p.detach().flatten() for p in adapted(lora_dropout=0.1).parameters()])
    (losses, plain), (again, switched) = (_trained(s, tmp_path, **changes) for s in ([], SWITCHES))
    assert len(losses) == 6
    assert losses == pytest.approx(again, rel=of_loss)
    assert (plain - switched).norm() <= of_path * (plain - start).norm()
