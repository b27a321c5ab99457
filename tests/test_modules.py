"""Adapters are modules: traced, replicated, offloaded, moved and cast with their layer, and not lost where it goes."""

from __future__ import annotations

import copy
import importlib
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_ready
from hf_lora.errors import AdapterStateError, MergeError

from .tiny import IDS, tiny


class Raw(nn.Module):
    """A stack of matrices that its forward multiplies with, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.stack:
            x = torch.tanh(x @ matrix)
        return x


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Tied(nn.Module):
    """A table and a layer that are called, and read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.layer(self.table(ids)) @ self.layer.weight
        return x @ self.table.weight.T


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def ids() -> Tensor:
    return torch.randint(9, (3, 5))


# What carries adapters: the base, an input, and the config's own settings.
MEMBERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "linear": (lambda: nn.Linear(4, 4), numbers(3, 4), {}),
    "called and read": (Tied, ids, {"target_modules": ["table", "layer"]}),
    "linear with dropout in eval mode": (lambda: nn.Linear(4, 4), numbers(3, 4), {"lora_dropout": 0.5}),
    "linear with a bias of LoRA's": (lambda: nn.Linear(4, 4), numbers(3, 4), {"lora_bias": True}),
    "DoRA": (lambda: nn.Linear(4, 4), numbers(3, 4), {"use_dora": True}),
    "conv1d": (lambda: Conv1D(4, 4), numbers(2, 3, 4), {}),
    "embedding": (lambda: nn.Embedding(9, 4), ids, {}),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), numbers(2, 3, 5, 5), {}),
    "raw parameter": (Raw, numbers(3, 4), {"target_modules": None, "target_parameters": ["0.stack"]}),
    "attention": (Attends, numbers(2, 3, 4), {"target_modules": ["attention"]}),
    "saved module": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        numbers(3, 4),
        {"target_modules": ["0.0"], "modules_to_save": ["0.1"]},
    ),
    "token rows": (
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)),
        ids,
        {"target_modules": ["0.1"], "trainable_token_indices": {"0.0": [1, 5]}},
    ),
}
members = pytest.mark.parametrize("member", MEMBERS)


def adapted(member: str, names: str = "a") -> tuple[Any, Callable[[], Tensor]]:
    """Return a network whose adapters do something, in eval mode, and what makes inputs of it."""
    base, example, settings = MEMBERS[member]
    torch.manual_seed(0)
    config = LoRAConfig(r=2, **{"target_modules": ["0"], **settings})
    model: Any = add_lora(nn.Sequential(base()), config, names[0])
    for name in names[1:]:
        model.add_adapter(config, name)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn_like(parameter))
    return model.eval(), example


def adapter_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if ".adapters." in name}


@members
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_a_traced_model_computes_as_the_model_on_other_inputs(member: str, gradients: bool) -> None:
    model, example = adapted(member)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, example(), check_trace=False)
        x = example()
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_a_language_model_is_traced_with_what_saves_memory_switched_on(trains: bool, gradients: bool) -> None:
    model: Any = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False)).train(trains)
    model.enable_mlp_recompute()
    model.enable_linear_cross_entropy()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            out = self.model(input_ids=ids, labels=ids, use_cache=False)
            return out.loss, out.logits

    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(Both().train(trains), IDS, check_trace=False, strict=False)
        other = (IDS + 3) % 20
        torch.testing.assert_close(traced(other), Both()(other))


@members
def test_a_replica_computes_with_its_own_adapters(member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    model, example = adapted(member)
    doubled = {id(p) for p in adapter_parameters(model).values()}

    def broadcast(tensors: Any, devices: Any, detach: bool = False) -> Any:  # a copy on another device, so to say
        return [[t * 2 if id(t) in doubled else t * 1 for t in tensors]]

    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", broadcast)
    monkeypatch.setattr(replicate, "_get_device_index", lambda *_: 0)
    replica, x = replicate.replicate(model, [0])[0], example()
    twice = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in adapter_parameters(twice).values():
            parameter.mul_(2)
    assert not torch.allclose(twice(x), model(x))
    torch.testing.assert_close(replica(x), twice(x))
    replica(x).sum().backward()  # to the model's own parameters
    assert any(p.grad is not None for p in adapter_parameters(model).values())


OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "cpu_offload": lambda model, at: cpu_offload(model, execution_device=torch.device("cpu")),
    "disk_offload": lambda model, at: disk_offload(model, str(at), execution_device=torch.device("cpu")),
    "dispatch_model": lambda model, at: dispatch_model(
        model, {"": "cpu"}, main_device="cpu", force_hooks=True, offload_dir=str(at)
    ),
}


# torch's attention reads its output projection without calling it: accelerate cannot offload it, adapters or not.
# accelerate brings a weight in for its layer's forward alone: bases that read it elsewhere compute nothing of sense.
@pytest.mark.parametrize("member", sorted(MEMBERS.keys() - {"attention", "called and read"}))
@pytest.mark.parametrize("way", OFFLOADS)
def test_adapters_are_offloaded_with_their_layer(member: str, way: str, tmp_path: Path) -> None:
    model, example = adapted(member)
    x = example()
    with torch.no_grad():
        want, saved = model(x), model.get_adapter_state_dict()
        OFFLOADS[way](model, tmp_path)
        assert torch.equal(model(x), want)
        assert torch.equal(model(x), want)
        if "offload" in way:
            assert {p.device.type for p in adapter_parameters(model).values()} == {"meta"}
            with pytest.raises(AdapterStateError, match="offloaded"):
                check_ready(model)
        got = model.get_adapter_state_dict()
        assert all(torch.equal(got[key], value) for key, value in saved.items())
        remove_hook_from_submodules(model)


def test_an_offloaded_model_saves_and_refuses_values_that_would_be_lost(tmp_path: Path) -> None:
    model: Any = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False)).eval()
    with torch.no_grad():
        want = model(IDS).logits
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert torch.equal(model(IDS).logits, want)
    model.save_pretrained(tmp_path)
    assert torch.equal(LoRAModel.from_pretrained(tmp_path, base_model=tiny("llama"))(IDS).logits, want)
    with pytest.raises(AdapterStateError, match="take no values in place"):
        model.load_weights(tmp_path)


@pytest.mark.parametrize("member", ["linear", "DoRA", "embedding", "raw parameter"])
@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.bfloat16(), lambda m: m.to("meta")])
def test_what_merging_set_aside_moves_with_the_model(member: str, change: Callable[[Any], Any]) -> None:
    model, _ = adapted(member)
    plain = copy.deepcopy(model)
    model.merge_adapter()
    change(model)
    model.unmerge_adapter()
    for (name, got), want in zip(model.named_parameters(), change(plain).parameters(), strict=True):
        assert (got.dtype, got.device) == (want.dtype, want.device), name
        assert got.is_meta or torch.equal(got, want), name


def test_tied_weights_are_tied_again_after_a_cast_while_merged() -> None:
    model: Any = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, target_modules=["wte"], init_lora_weights=False))
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert model.lm_head.weight is model.transformer.wte._parameters["weight"]
    assert model.lm_head.weight.dtype is torch.bfloat16


def test_a_model_that_is_offloaded_while_merged_is_not_unmerged_by_halves() -> None:
    model: Any = add_lora(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoRAConfig(target_modules=["0", "1"]))
    model.merge_adapter()
    cpu_offload(model[1], execution_device=torch.device("cpu"))
    before = model[0].weight
    with pytest.raises(MergeError, match="remove_hook_from_submodules"):
        model.unmerge_adapter()
    assert model[0].weight is before
    remove_hook_from_submodules(model)
    model.unmerge_adapter()


def test_hooks_on_an_adapter_run_in_each_of_its_forwards() -> None:
    for member in MEMBERS:
        model, example = adapted(member)
        seen: list[str] = []
        for name, module in model.named_modules():
            if ".adapters.a." in name:
                module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append("before"))
                module.register_forward_hook(lambda module, args, out, seen=seen: seen.append("after"))
        model(example())
        assert seen[:2] == ["before", "after"], member


@members
@pytest.mark.parametrize("between", ["set_adapter", "delete_adapter", "both at once"])
def test_switching_between_a_forward_and_its_backward_loses_no_gradient(member: str, between: str) -> None:
    model, example = adapted(member, "ab")
    x = example()
    model.train()
    want = {}
    for name in "ab":
        model.set_adapter(name)
        torch.manual_seed(1)
        model(x).square().mean().backward()
        want |= {key: p.grad.clone() for key, p in adapter_parameters(model).items() if p.grad is not None}
        model.zero_grad()
    model.set_adapter("a")
    torch.manual_seed(1)
    loss = model(x).square().mean()
    parameters = adapter_parameters(model)
    if between == "delete_adapter":
        model.delete_adapter("a")
        want = {key: grad for key, grad in want.items() if ".a." in key}
    else:
        model.set_adapter("b")
    if between == "both at once":
        torch.manual_seed(1)
        loss = loss + model(x).square().mean()
    else:
        want = {key: grad for key, grad in want.items() if ".a." in key}
    loss.backward()
    got = {key: p.grad for key, p in parameters.items() if p.grad is not None}
    assert got.keys() == want.keys()
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad)
    assert not any(p.requires_grad for key, p in parameters.items() if ".a." in key and between != "delete_adapter")


# --- layers that others replace or patch ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_dequantising_the_base_keeps_the_adapters_which_merge_then(bits: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}": True}), device_map={"": "cpu"}
    )
    model: Any = LoRAModel.from_model(quantised, LoRAConfig(r=2, init_lora_weights=False)).eval()
    before = adapter_parameters(model)
    model.dequantize()
    after = adapter_parameters(model)
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    check_ready(model)
    with torch.no_grad():
        live = model(IDS).logits
        with model.adapters_disabled():
            assert not torch.allclose(model(IDS).logits, live)
        model.merge_adapter()
        torch.testing.assert_close(model(IDS).logits, live, atol=1e-3, rtol=1e-3)
        model.unmerge_adapter()
        assert torch.equal(model(IDS).logits, live)


def test_a_dequantize_that_fails_leaves_the_adapters_where_they_were() -> None:
    model: Any = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False)).eval()
    want = model(IDS).logits
    with pytest.raises(ValueError, match="quantize"):
        model.dequantize()
    assert torch.equal(model(IDS).logits, want)


USES: dict[str, Callable[[Any, Path], Any]] = {
    "save_pretrained": lambda model, at: model.save_pretrained(at),
    "merge_adapter": lambda model, at: model.merge_adapter(),
    "merge_and_unload": lambda model, at: model.merge_and_unload(),
    "check_ready": lambda model, at: check_ready(model),
}


@pytest.mark.parametrize("use", USES)
def test_adapters_whose_layer_is_gone_are_told_and_not_saved(use: str, tmp_path: Path) -> None:
    model: Any = add_lora(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoRAConfig(target_modules=["0", "1"]))
    model[1] = nn.Linear(4, 4)
    with pytest.raises(AdapterStateError, match=r"1 layers .* no part of the model any more \(1\)"):
        USES[use](model, tmp_path)
    assert not [*tmp_path.iterdir()]


def half(layer: nn.Module, x: Tensor) -> Tensor:
    """A forward that somebody gave a layer itself."""
    return nn.functional.linear(x, layer.weight, layer.bias) / 2


def changed(model: Any, x: Tensor) -> Tensor:
    lora = model[0].adapters["default"]["weight"]
    return lora.scaling * (x @ lora.lora_A.T @ lora.lora_B.T)


def attached(base: nn.Module) -> Any:
    return add_lora(base, LoRAConfig(r=2, target_modules=["0"], init_lora_weights=False)).eval()


@pytest.mark.parametrize("hooked", [False, True])
def test_adapters_act_behind_a_forward_that_a_layer_has_of_its_own(hooked: bool) -> None:
    base, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    base[0].forward = mine = types.MethodType(half, base[0])
    if hooked:
        cpu_offload(base[0], execution_device=torch.device("cpu"))
    want = half(base[0], x) if not hooked else None
    model = attached(base)
    with model.adapters_disabled():
        alone = model(x)
    assert want is None or torch.equal(alone, want)
    if hooked:
        remove_hook_from_submodules(model)
    torch.testing.assert_close(model(x), alone + changed(model, x))
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    assert torch.equal(model.unload()(x), alone)
    assert base[0].forward == mine


GIVEN: dict[str, Callable[[Any, Any], Any]] = {
    "a function": lambda layer, forward: partial(forward, layer).__call__,
    "a method": lambda layer, forward: types.MethodType(forward, layer),
    "a partial": lambda layer, forward: partial(forward, layer),
}


@pytest.mark.parametrize("then", ["train", "eval", "check"])
@pytest.mark.parametrize("given", GIVEN)
def test_adapters_act_behind_a_forward_that_a_layer_is_given_afterwards(given: str, then: str) -> None:
    base, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    model = attached(base)
    base[0].forward = GIVEN[given](base[0], half)
    for _ in range(2):
        check_ready(model) if then == "check" else getattr(model, then)()
    with model.adapters_disabled():
        alone = model(x)
    assert torch.equal(alone, half(base[0], x))
    torch.testing.assert_close(model(x), alone + changed(model, x))
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert torch.equal(model.unload()(x), alone)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("settings", [{}, {"lora_bias": True}, {"use_dora": True}], ids=str)
def test_a_forward_that_a_class_is_given_counts_with_adapters_too(
    when: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, own = [], nn.Linear.forward
    base, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    config = LoRAConfig(r=2, target_modules=["0"], **settings)
    model = add_lora(base, config) if when == "after" else base
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (seen.append(1), own(self, x))[1])
    model = add_lora(base, config) if when == "before" else model
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn_like(parameter))
    live = model(x)
    assert seen
    model.merge_adapter()
    torch.testing.assert_close(model(x), live)


def test_a_forward_that_a_class_is_given_and_gives_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own = nn.Linear.forward
    model = add_lora(nn.Sequential(nn.Linear(4, 4, bias=False)), LoRAConfig(r=2, target_modules=["0"]))
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * own(self, x))
    with pytest.raises(AdapterStateError, match="the forward of 0 multiplies by 2, not 1"):
        model.merge_adapter()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_forward_of_its_own_that_wraps_the_layer_s_gets_the_adapters_once(when: str) -> None:
    base, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    model = attached(base) if when == "after" else base
    inner = base[0].forward
    base[0].forward = lambda x: 2 * inner(x)  # type: ignore[method-assign]
    model = attached(base) if when == "before" else model
    with model.adapters_disabled():
        alone = model(x)
    times = 2 if when == "after" else 1  # a wrapper around the base's own forward knows nothing of adapters
    torch.testing.assert_close(model(x), alone + times * changed(model, x))


@pytest.mark.parametrize("leave", ["merge_and_unload", "unload"])
def test_a_compiled_model_goes_on_computing_when_its_adapters_left(leave: str) -> None:
    model = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False)).eval()
    compiled = torch.compile(model, backend="eager")
    compiled(input_ids=IDS)
    plain = getattr(model, leave)()
    torch.testing.assert_close(compiled(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_a_state_dict_brings_what_its_adapters_were_made_of() -> None:
    """PiSSA's product at birth and the numbers of token rows are in no state dict: the base and the config tell."""
    config = LoRAConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa", trainable_token_indices=[5, 9])
    model = LoRAModel.from_model(tiny("llama"), config).eval()
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn_like(parameter))
    other = LoRAModel.from_model(tiny("llama", seed=1), config).eval()
    empty, own = copy.deepcopy(model), dict(model.named_buffers())
    for tensor in [*empty.parameters(), *(b for n, b in empty.named_buffers() if ".adapters." in n)]:
        tensor.data.zero_()
    for again in (other, empty):
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert all(torch.equal(buffer, own[name]) for name, buffer in empty.named_buffers())


@pytest.mark.parametrize("merged", ["the one that gives", "the one that takes", "both"])
def test_a_state_dict_of_merged_weights_goes_to_a_merged_model_and_no_other(merged: str, tmp_path: Path) -> None:
    giving, taking = (LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False)) for _ in range(2))
    want = giving(input_ids=IDS).logits
    if merged != "the one that takes":
        giving.merge_adapter()
    if merged != "the one that gives":
        taking.merge_adapter()
    torch.save(giving.state_dict(), tmp_path / "all.pt")
    given = torch.load(tmp_path / "all.pt")
    if merged == "both":
        taking.load_state_dict(given)
        torch.testing.assert_close(taking(input_ids=IDS).logits, want)
        return
    before = {name: tensor.clone() for name, tensor in taking.state_dict().items()}
    for whole, its in ((taking, given), (nn.ModuleList([taking]), _below("0.", given))):
        with pytest.raises(AdapterStateError, match=r"unmerge_adapter\(\)"):
            whole.load_state_dict(its)
    assert all(torch.equal(tensor, before[name]) for name, tensor in taking.state_dict().items())


def _below(prefix: str, state_dict: Any) -> Any:
    """Return a state dict as that of a module that holds the one that gave it."""
    found = type(state_dict)((prefix + name, tensor) for name, tensor in state_dict.items())
    found._metadata = {prefix + name if name else prefix[:-1]: each for name, each in state_dict._metadata.items()}
    return found


@pytest.mark.parametrize("way", OFFLOADS)
def test_rows_of_a_tied_table_act_in_the_output_layer_of_an_offloaded_base_as_well(way: str, tmp_path: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["c_attn"], trainable_token_indices=[5, 9])
    model = LoRAModel.from_model(tiny("gpt2"), config).eval()
    base = tiny("gpt2")
    OFFLOADS[way](base, tmp_path)
    with torch.no_grad():
        base(input_ids=IDS)  # accelerate parts tied weights in a forward
    offloaded = LoRAModel.from_model(base, config).eval()
    rows = torch.randn(2, 16)
    with torch.no_grad():
        for each in (model, offloaded):
            next(p for n, p in each.named_parameters() if n.endswith("tokens_weight.value")).copy_(rows)
            for name, parameter in each.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        torch.testing.assert_close(offloaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
