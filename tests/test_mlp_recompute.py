"""Gated MLPs that keep less for backward: the same bits come out, and fewer bytes are held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from benchmarks.saved import Allocated
from hf_lora import LoRAConfig, LoRAModel

from .peek import gated, gated_form, mlp
from .test_memory import adapted
from .tiny import DECODER, floats, inputs

GATED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "deepseek_v3", "qwen3_next"]
Grads = dict[str, Tensor]


def step(model: nn.Module, name: str = "llama") -> tuple[list[Tensor], Grads]:
    """Return outputs and gradients of one training step, with the same random numbers each time."""
    model.zero_grad()
    torch.manual_seed(3)
    outputs = floats(model(**inputs(name)))
    torch.stack([t.float().sin().sum() for t in outputs]).sum().backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_same(model: LoRAModel, run: Callable[[], tuple[list[Tensor], Grads]]) -> None:
    """Check that a step gives the same bits with the switch on, and off again."""
    outputs, grads = run()
    assert grads
    for switch in (model.enable_mlp_recompute, model.disable_mlp_recompute):
        switch()
        again, regrads = run()
        assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
        assert grads.keys() == regrads.keys()
        assert all(torch.equal(g, regrads[n]) for n, g in grads.items())


def held_after_forward(model: nn.Module, name: str = "llama") -> int:
    """Return the bytes that a forward leaves behind for its backward."""
    with Allocated(iter(())) as held:
        outputs = floats(model(**inputs(name)))
        count = held.now
    del outputs
    return count


@pytest.mark.parametrize("name", GATED)
def test_outputs_and_gradients_keep_their_bits(name: str) -> None:
    model = adapted(name)
    check_same(model, lambda: step(model, name))


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.3}, {"use_dora": True}, {"target_modules": ["down_proj"]}, {"target_modules": ["q_proj"]}, {"modules_to_save": ["mlp"]}])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whatever_the_adapter_is_the_bits_stay(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = adapted(**changes).to(dtype)
    check_same(model, lambda: step(model))


@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh", "relu2", "silu"])
def test_every_activation_is_recomputed_under_autocast_as_it_was_computed(act: str) -> None:
    config = tf.LlamaConfig(**DECODER, hidden_act=act)
    model = LoRAModel.from_model(tf.LlamaForCausalLM(config), LoRAConfig(target_modules="all-linear")).train()

    def run() -> tuple[list[Tensor], Grads]:
        with torch.autocast("cpu", torch.bfloat16):
            return step(model)

    check_same(model, run)


def test_an_activation_that_autocast_narrows_is_narrowed_again_in_backward() -> None:
    def act(gate: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(gate, torch.eye(5)))

    x, weight = torch.randn(2, 10, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    gate, up = x.sin().chunk(2, -1)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = gated(act, gate, up, lambda p: p @ weight.T), (act(gate) * up) @ weight.T
    grads = [torch.autograd.grad(y.sum(), (x, weight), retain_graph=True) for y in (ours, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_a_layer_holds_the_activation_and_the_product_no_longer(name: str) -> None:
    model = adapted(name)
    before = held_after_forward(model, name)
    model.enable_mlp_recompute()
    tokens, intermediate, layers = inputs(name)["input_ids"].numel(), 32, 2
    assert before - held_after_forward(model, name) == layers * 2 * tokens * intermediate * 4
    model = adapted(name, target_modules=["down_proj"], layers_to_transform=[0])  # neither branch trains
    before = held_after_forward(model, name)
    model.enable_mlp_recompute()
    assert held_after_forward(model, name) <= before


def test_offloading_what_is_saved_goes_on_working_and_nothing_slips_past_it() -> None:
    model = adapted()

    def offloaded() -> tuple[list[Tensor], Grads]:
        with save_on_cpu():
            return step(model)

    def held_where_hooks_drop_all() -> int:
        with saved_tensors_hooks(lambda t: None, lambda none: none):
            return held_after_forward(model)

    check_same(model, offloaded)
    before = held_where_hooks_drop_all()
    model.enable_mlp_recompute()
    assert held_where_hooks_drop_all() <= before


def test_evaluation_takes_the_plain_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    model.enable_mlp_recompute()
    monkeypatch.setattr(mlp, "gated", None)
    model.eval()(**inputs("llama"))
    with torch.no_grad():
        model.train()(**inputs("llama"))
    with pytest.raises(TypeError, match="not callable"):
        model(**inputs("llama"))


def test_hooks_on_the_children_are_called_as_before() -> None:
    model, calls = adapted(), []
    model.enable_mlp_recompute()
    for child in ("gate_proj", "up_proj", "down_proj"):
        layer = model.get_submodule(f"model.layers.0.mlp.{child}")
        layer.register_forward_hook(lambda m, args, out, child=child: calls.append(child))
    step(model)
    assert calls == ["gate_proj", "up_proj", "down_proj"]


def test_the_gradient_can_be_differentiated_again() -> None:
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    gate, up = (torch.randn(2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def f(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        return gated(nn.functional.silu, gate, up, lambda p: p @ weight.T)

    assert torch.autograd.gradcheck(f, (gate, up, weight))
    assert torch.autograd.gradgradcheck(f, (gate, up, weight))


def test_a_layer_that_writes_into_its_input_gets_its_own_gradient() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    gate, up = (torch.randn(2, 5, requires_grad=True) for _ in range(2))
    results = []
    for product in (lambda down: gated(torch.tanh, gate, up, down), lambda down: down(torch.tanh(gate) * up)):
        product(lambda p: p.mul_(2.0) @ weight.T).sum().backward()
        results.append([t.grad.clone() for t in (gate, up, weight)])
        gate.grad = up.grad = weight.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- which modules qualify --------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A gated MLP, with whatever else a test puts into it."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 6)
        self.act = act or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)) * self.w3(x))


class Fused(nn.Module):
    """A gated MLP whose first layer gives up, then gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.act = nn.Linear(4, 12), nn.Linear(6, 4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.first(x).chunk(2, dim=-1)
        return self.last(self.act(gate) * up)


def changed(**parts: Any) -> nn.Module:
    """A gated MLP with further children or parameters, or with a forward in the object."""
    module = Gated()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "scaled gate": lambda m, x: m.w2(m.act(m.w1(x) * 0.9) * m.w3(x)),
    "clamped gate": lambda m, x: m.w2(m.act(m.w1(x).clamp(max=20.0)) * m.w3(x)),
    "dropout": lambda m, x: m.w2(nn.functional.dropout(m.act(m.w1(x)) * m.w3(x), 0.5, m.training)),
    "a weight read": lambda m, x: m.w2(m.act(nn.functional.linear(x, m.w1.weight)) * m.w3(x)),
}
NEARLY: dict[str, Callable[[], nn.Module]] = {
    **{name: type("Nearly", (Gated,), {"forward": forward}) for name, forward in FORWARDS.items()},
    "a parameter of its own": lambda: changed(scale=nn.Parameter(torch.ones(()))),
    "a replaced forward": lambda: changed(forward=lambda x: x),
    "a fourth child": lambda: changed(drop=nn.Dropout(0.0)),
    "halves the other way round": Fused,
    "an activation in place": lambda: Gated(nn.SiLU(inplace=True)),
    "an activation with parameters": lambda: Gated(nn.PReLU()),
    "an activation by chance": lambda: Gated(nn.RReLU()),
}


def test_roles_are_found_by_trial_and_not_by_name() -> None:
    form = gated_form(Gated())
    assert form is not None
    assert (form.split, form.down, form.act) == (("w1", "w3"), "w2", "act")


@pytest.mark.parametrize("what", NEARLY)
def test_what_is_nearly_a_gated_mlp_is_left_alone_and_no_random_number_drawn(what: str) -> None:
    module = NEARLY[what]()
    state = torch.get_rng_state()
    assert gated_form(module) is None
    assert torch.equal(state, torch.get_rng_state())


def test_transformers_mlps_are_what_they_were() -> None:
    """Fails where upstream changes a forward that the switch replaces, or a name of its children."""
    straight, fused = (("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj")
    for model_type, cls, roles in (
        ("llama", "LlamaMLP", straight), ("mistral", "MistralMLP", straight), ("qwen2", "Qwen2MLP", straight),
        ("qwen3", "Qwen3MLP", straight), ("gemma", "GemmaMLP", straight), ("gemma2", "Gemma2MLP", straight),
        ("phi3", "Phi3MLP", fused), ("glm", "GlmMLP", fused),
    ):  # fmt: skip
        module = __import__(f"transformers.models.{model_type}.modeling_{model_type}", fromlist=[cls])
        form = gated_form(
            getattr(module, cls)(
                tf.AutoConfig.for_model(model_type, hidden_size=8, intermediate_size=12, num_attention_heads=2)
            )
        )
        assert form is not None, cls
        assert (form.split, form.down) == roles, cls


def test_sparse_layers_of_gemma3n_and_scaled_ones_of_falcon_are_left_alone() -> None:
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1MLP
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

    config = tf.Gemma3nTextConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=2, activation_sparsity_pattern=[0.9, 0.0])  # fmt: skip
    assert gated_form(Gemma3nTextMLP(config, 0)) is None
    assert gated_form(Gemma3nTextMLP(config, 1)) is not None
    assert gated_form(FalconH1MLP(tf.FalconH1Config(hidden_size=8, intermediate_size=12, mlp_multipliers=[0.5, 0.5]))) is None  # fmt: skip
