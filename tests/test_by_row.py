"""Batches whose rows have adapters of their own: every row computes, and trains, what its adapters alone would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterNameError, AdapterStateError, ArgumentError

from . import tiny
from .cases import FIRST, FLOATS, KIND_CASES, adapted, config_of, data_of, example, move

# A weight that its parent reads, where nothing tells the rows, and inputs that have no rows.
CASES = [(k, v) for k, v in FLOATS if not k.startswith(("linear-read", "experts", "conv1d-unbatched"))]
laws = pytest.mark.parametrize(("kind", "variant"), CASES, ids=[f"{k}-{v}" for k, v in CASES])


def several(kind: str, variant: str, **changes: object) -> LoRAModel:
    """Return a case's network with three adapters, "default", "wide" of another rank and "plain" LoRA."""
    model = adapted(kind, variant, torch.float64, **changes)
    model.add_adapter(config_of(kind, variant, r=4, **changes), "wide", **data_of(kind, variant))
    move(model, 4)
    model.add_adapter(LoRAConfig(r=2, **KIND_CASES[kind].targets), "plain")
    move(model, 5)
    return model


def batch(kind: str, rows: int) -> torch.Tensor:
    """Return a case's input with so many rows."""
    x = example(kind, torch.float64)
    x = torch.cat([x] * rows)[:rows]
    return x + torch.arange(rows).reshape(-1, *(1 for _ in x.shape[1:])) / 7 if x.is_floating_point() else x


def alone(model: LoRAModel, x: torch.Tensor, names: list) -> torch.Tensor:
    """Return what each row gives when its adapter alone computes it."""
    outputs = []
    for row, name in zip(x.split(1), names, strict=True):
        with model.adapters_disabled() if name == "__base__" else model.adapters_active(name):
            outputs.append(model(row))
    return torch.cat(outputs)


NAMES = ["wide", "default", "__base__", "plain", "wide"]


@pytest.mark.parametrize("kind", FIRST)
def test_each_row_on_a_packed_layer_computes_what_its_adapter_alone_would(kind: str) -> None:
    model = adapted(kind, "lora")
    model.add_adapter(config_of(kind, "lora", r=4), "wide")
    move(model, 4)
    x, names = torch.cat([example(kind)] * 2)[:5], ["wide", "default", "__base__", "wide", "default"]
    want = alone(model, x, names)
    with torch.no_grad():
        got = model(x, adapter_names=names)
    assert (got - want).abs().max() < (0.1 if kind == "bnb-int8" else 1e-4)  # which rounds its inputs by the batch
    assert (want[0] - want[1]).abs().max() > 0.2


@laws
def test_each_row_computes_what_its_adapter_alone_would(kind: str, variant: str) -> None:
    model, x = several(kind, variant), batch(kind, 5)
    want = alone(model, x, NAMES)
    with torch.no_grad():
        for _ in range(2):  # the second time from what the first made
            got = model(x, adapter_names=NAMES)
            assert (got - want).abs().max() < 1e-10
    assert (want[0] - want[1]).abs().max() > 1e-3
    with model.adapters_active(rows=NAMES):
        assert (model(x) - want).abs().max() < 1e-10


@laws
def test_a_mixed_batch_gives_each_adapter_the_gradient_that_it_gets_alone(kind: str, variant: str) -> None:
    model, x = several(kind, variant), batch(kind, 5)
    model.set_requires_grad(["default", "wide", "plain"])
    shape = alone(model, x, NAMES).shape
    weights = torch.randn(shape, dtype=torch.float64)

    def gradients() -> dict[str, torch.Tensor | None]:
        found = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        return found

    model.train()
    (model(x, adapter_names=NAMES) * weights).sum().backward()
    got = gradients()
    model.eval()
    (alone(model, x, NAMES) * weights).sum().backward()
    want, trained = gradients(), {name for name, p in model.named_parameters() if p.requires_grad}
    for name in want:
        assert (got[name] is None) == (want[name] is None) == (name not in trained), name
        if got[name] is not None:
            assert (got[name] - want[name]).abs().max() <= 1e-10 * (1 + want[name].abs().max()), name


FAMILIES = ["gpt2", "llama", "gemma3", "t5", "bart", "bert", "wav2vec2", "detr", "mixtral", "gpt_oss"]
MIXTURES = FAMILIES[-2:]
ROWS = ["a", "__base__", "b", "a"]


def of_family(name: str) -> LoRAModel:
    """Return a family's tiny model with "a" on its attention and "b", of another rank, on every linear layer."""
    base = tiny.tiny(name, noisy=True).double()
    if name in MIXTURES:
        base.set_experts_implementation("batched_mm")  # torch groups no products in float64
    model = LoRAModel.from_model(base, LoRAConfig(r=2), "a")
    model.add_adapter(LoRAConfig(r=3, target_modules="all-linear"), "b")
    model.set_requires_grad(["a", "b"])
    move(model)
    return model


def four(name: str) -> dict[str, torch.Tensor]:
    """Return a family's example inputs for a batch of four."""
    twice = {key: torch.cat([value, value.flip(0)]) for key, value in tiny.inputs(name).items()}
    return {key: value.double() if value.is_floating_point() else value for key, value in twice.items()}


def picked(model: LoRAModel, compute: Callable[[], torch.Tensor], rows: Sequence[str] = ROWS) -> torch.Tensor:
    """Return of what each adapter computes for a whole batch the part of its own rows."""
    whole = {}
    for name in set(rows):
        with model.adapters_disabled() if name == "__base__" else model.adapters_active(name):
            whole[name] = compute()
    parts = [whole[name].chunk(len(rows))[i] for i, name in enumerate(rows)]
    return torch.cat(parts)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_row_of_a_family_is_answered_by_its_adapter(family: str) -> None:
    model, batch = of_family(family), four(family)
    for part in range(len(tiny.floats(model(**batch)))):
        want = picked(model, lambda: tiny.floats(model(**batch))[part])  # noqa: B023
        assert (tiny.floats(model(**batch, adapter_names=ROWS))[part] - want).abs().max() < 1e-10


HOW = {
    "greedily": {}, "with beams": {"num_beams": 3, "num_return_sequences": 2}, "without a cache": {"use_cache": False},
    "with a static cache": {"cache_implementation": "static"},
    "several samples": {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "mixtral"])
def test_every_row_is_generated_by_its_adapter(family: str, how: str) -> None:
    model = of_family(family)
    ids = torch.tensor([[4, 4, 5, 6, 7], [4, 4, 9, 10, 11], [0, 0, 12, 13, 14], [0, 15, 16, 17, 18]])  # padded left
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": 3, "pad_token_id": 0, **HOW[how]}

    def generate(**kwargs: object) -> torch.Tensor:
        return model.generate(input_ids=ids, attention_mask=(ids > 0).long(), **settings, **kwargs)

    want = picked(model, generate)
    assert torch.equal(generate(adapter_names=ROWS), want)
    with model.adapters_active(rows=ROWS):
        assert torch.equal(generate(), want)
    assert not torch.equal(want, picked(model, generate, ["b", "a", "__base__", "b"]))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_what_checkpointing_computes_again_takes_the_rows_of_the_first_time(use_reentrant: bool) -> None:
    model, batch = of_family("llama").train(), four("llama")

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**batch, labels=batch["input_ids"], adapter_names=ROWS).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    want = gradients()
    tiny.checkpointed(model, use_reentrant)
    for _ in range(2):  # the first time leaves as it was which adapters train
        assert all(torch.equal(a, b) for a, b in zip(gradients(), want, strict=True))


def test_a_row_may_name_several_adapters_with_weights() -> None:
    model, batch = of_family("llama"), four("llama")
    rows = [{"a": 0.7, "b": -0.3}, ["a", "b"], {"b": 1}, {"a": 0.0}]
    with torch.no_grad():
        got = model(**batch, adapter_names=rows).logits
    want = [model(**batch, adapter_names=[row] * 4).logits[i] for i, row in enumerate(rows[:1])]
    assert (got[0] - want[0]).abs().max() < 1e-10
    with model.adapters_active(["a", "b"]):
        assert (got[1] - model(**batch).logits[1]).abs().max() < 1e-10
    with model.adapters_active("b"):
        assert (got[2] - model(**batch).logits[2]).abs().max() < 1e-10
    with model.adapters_disabled():
        assert (got[3] - model(**batch).logits[3]).abs().max() < 1e-10
    for layer in model._lora.layers.values():
        for name, weight in (("a", 0.7), ("b", -0.3)):
            for adapter in layer.carried(name).values():
                adapter.lora_B.data *= weight
    with model.adapters_active(["a", "b"]):
        assert (got[0] - model(**batch).logits[0]).abs().max() < 1e-10


WRONG = {
    "another number of rows": (["a"] * 3, AdapterStateError, "4 rows, with adapters named for 3"),
    "twice the rows": (["a"] * 2, AdapterStateError, "4 rows, with adapters named for 2"),
    "an unknown name": (["a", "a", "x", "b"], AdapterNameError, "no adapter 'x'"),
    "one name": ("a", ArgumentError, "an entry a row"),
    "no rows": ([], ArgumentError, "an entry a row"),
    "a number": (["a", 1, "b", "b"], ArgumentError, "1 for a row"),
    "a weight that is none": ([{"a": float("nan")}] * 4, ArgumentError, "finite"),
    "an unknown name with a weight": ([{"x": 1.0}] * 4, AdapterNameError, "no adapter 'x'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_rows_that_cannot_be_are_refused_and_nothing_is_left(what: str) -> None:
    model, batch = of_family("llama"), four("llama")
    given, error, words = WRONG[what]
    with pytest.raises(error, match=words):
        model(**batch, adapter_names=given)
    with pytest.raises(error, match=words):
        model.generate(batch["input_ids"], adapter_names=given, max_new_tokens=1)
    with pytest.raises(error, match=words), model.adapters_active(rows=given):
        model(**batch)
    with pytest.raises(error, match=words), model.adapters_active(rows=given):
        model.generate(**batch, max_new_tokens=1)
    assert not model._lora.is_routed


def test_training_a_row_whose_adapter_is_not_selected_is_refused_until_it_trains() -> None:
    model, batch = of_family("llama").train(), four("llama")
    model.set_adapter("a")
    with pytest.raises(AdapterStateError, match="set_requires_grad"):
        model(**batch, adapter_names=ROWS)
    with torch.no_grad():
        model(**batch, adapter_names=ROWS)
    model.set_requires_grad("b")
    model(**batch, adapter_names=ROWS).logits.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "adapters.b" in name)


def test_what_was_stacked_is_made_anew_when_an_adapter_changes() -> None:
    model, batch = of_family("llama"), four("llama")

    def differs() -> bool:
        with torch.no_grad():
            got = model(**batch, adapter_names=ROWS).logits
            return bool((got - picked(model, lambda: model(**batch).logits)).abs().max() > 1e-10)

    assert not differs()
    move(model, 7)
    assert not differs()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data * 2
    assert not differs()
    model.float().double()
    assert not differs()
    for trained in (["a", "b"], ["b"]):
        model.set_requires_grad(["a", "b"], False)
        assert not differs()
        model.set_requires_grad(trained)
        model(**batch, adapter_names=ROWS).logits.sum().backward()
        parameters = [p for p in model.parameters() if p.requires_grad]
        torch.optim.AdamW(parameters, 0.1, fused=True).step()  # writes unseen: no version changes
        assert not differs()
        torch.optim.AdamW(parameters, 0.1, fused=True).step()
        model.set_requires_grad(["a", "b"], False)
        assert not differs()
    model.delete_adapter("b")
    model.add_adapter(LoRAConfig(r=5, init_lora_weights=False), "b")
    assert not differs()


COMPILED: dict[str, Callable[[Any, Any], Any]] = {
    "in place": lambda model, backend: (model.compile(backend=backend), model)[1],
    "around": lambda model, backend: torch.compile(model, backend=backend),
}


class Graphs(list[object]):
    """A backend that keeps what it is given and compiles nothing; what others compiled is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        torch.compiler.reset()

    def __call__(self, graph: torch.fx.GraphModule, _: object, **settings: object) -> Callable[..., object]:
        self.append(graph)
        return graph.forward

    def __deepcopy__(self, _: object) -> Graphs:
        return self


@pytest.mark.parametrize("how", COMPILED)
@torch.no_grad()
def test_other_names_compile_nothing_anew_and_no_thread_sees_anothers(how: str) -> None:
    model, batch = of_family("llama"), four("llama")
    model.add_adapter(LoRAConfig(r=2, use_dora=True, init_lora_weights=False), "unused")
    model.set_adapter("a")
    choices = [ROWS, ["b", "a", "__base__", "b"], ["a"] * 4, ["__base__"] * 4]
    want = [model(**batch, adapter_names=names).logits for names in choices]
    plain, graphs = model(**batch).logits, Graphs()
    compiled = COMPILED[how](model, graphs)

    def ask(names: list[str] | None) -> torch.Tensor:
        with torch.no_grad():
            return compiled(**batch, adapter_names=names).logits if names else compiled(**batch).logits

    assert (ask(None) - plain).abs().max() < 1e-10
    alone, seen = len(graphs), set[int]()
    for names, logits in zip(choices, want, strict=True):
        assert (ask(names) - logits).abs().max() < 1e-10
        seen.add(len(graphs) - alone)
    assert len(seen) == 1  # whatever the first names compiled
    if how == "in place":
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(ask, [*choices, None] * 4))
        assert all((logits - [*want, plain][i % 5]).abs().max() < 1e-10 for i, logits in enumerate(got))
    compiled_so_far = len(graphs)  # each grad mode of a thread is compiled by itself
    move(model, 9)
    changed = ask(ROWS)
    assert len(graphs) == compiled_so_far
    model._compiled_call_impl = None
    assert (model(**batch, adapter_names=ROWS).logits - changed).abs().max() < 1e-10
    assert (changed - want[0]).abs().max() > 1e-3


@torch.no_grad()
def test_generate_compiles_its_steps_for_any_names() -> None:
    model, batch, graphs = of_family("llama"), four("llama"), Graphs()
    settings = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    choices, want, seen = [ROWS, ["b", "a", "__base__", "b"]], [], set[int]()
    for names in choices:
        want.append(model.generate(**batch, adapter_names=names, **settings))
    compiling = CompileConfig(backend=graphs)
    compiling._compile_all_devices = True
    for names, tokens in zip(choices, want, strict=True):
        got = model.generate(**batch, adapter_names=names, compile_config=compiling, **settings)
        assert torch.equal(got, tokens)
        seen.add(len(graphs))
    assert len(seen) == 1
    assert seen != {0}


@pytest.mark.parametrize("what", ["DoRA", "a weight"])
def test_what_a_compiled_model_cannot_tell_apart_is_refused(what: str) -> None:
    model, batch = of_family("llama"), four("llama")
    if what == "DoRA":
        model.add_adapter(LoRAConfig(r=2, use_dora=True), "c")
    model.compile(backend="eager")
    with pytest.raises(AdapterStateError, match="compiled model"):
        model(**batch, adapter_names=[{"a": 0.5}, "a", "a", "b"] if what == "a weight" else ["c", *ROWS[1:]])
    assert model._lora.told.of_row is None


def test_threads_with_rows_of_their_own_never_see_each_other() -> None:
    model, batch = of_family("llama"), four("llama")
    choices = [ROWS, ["b", "a", "__base__", "b"], ["__base__", "b", "a", "a"], ["a"] * 4]

    @torch.no_grad()
    def answer(names: list[str]) -> torch.Tensor:
        return model(**batch, adapter_names=names).logits

    want = [answer(names) for names in choices]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(answer, choices * 10))
    assert all(torch.equal(logits, want[i % 4]) for i, logits in enumerate(got))


@pytest.mark.parametrize(("family", "where"), [("deberta", "pos_proj"), ("wavlm", "attention")])
def test_a_layer_that_cannot_tell_the_rows_is_named(family: str, where: str) -> None:
    config = LoRAConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = LoRAModel.from_model(tiny.tiny(family), config, "a")
    with pytest.raises(AdapterStateError, match=rf"{where}.*adapters_active\(name\)"):
        model(**tiny.inputs(family), adapter_names=["a", "__base__"])
