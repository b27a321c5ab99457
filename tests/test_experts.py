"""Adapters on fused experts: (x A') B' on the tokens that each expert gets, in every way that Transformers computes them.

The reference is torch's own: the same module, called with weights that have the products inside.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.integrations import moe
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterStateError

from . import peek, tiny
from .cases import move
from .peek import LowRankSum

WAYS = ["eager", "grouped_mm", "batched_mm"]
# Gated, without a gate, transposed, transposed with biases and gate and up in turns.
CLASSES = {c.__name__: c for c in (MixtralExperts, NemotronHExperts, AriaExperts, GptOssExperts)}
SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_local_experts", "n_routed_experts", "moe_num_experts"), 4), "hidden_size": 6,
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 8), "moe_latent_size": None, "swiglu_alpha": 1.7,
    "swiglu_limit": 7.0, **dict.fromkeys(("hidden_act", "mlp_hidden_act"), "silu"),
}  # fmt: skip
ROWS = ["b", "a", "__base__", ["a", "b"], {"a": 0.5, "b": -2.0}]


class Block(nn.Module):
    """A mixture's block: tokens (batch, length, hidden) go to two experts each, which are given beside them."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor, index: Tensor, shares: Tensor) -> Tensor:
        flat = (each.reshape(-1, each.shape[-1]) for each in (x, index, shares))
        return self.experts(*flat).reshape(x.shape)


def block(name: str, way: str) -> LoRAModel:
    """Return a block of experts in float64 with "a" on all their stacks and "b", of another rank, on the last one."""
    torch.manual_seed(0)
    experts = CLASSES[name](SimpleNamespace(**SIZES, _experts_implementation=way))
    _fill(experts)
    stacks = [f"experts.{key}" for key, p in experts.named_parameters() if p.ndim == 3]
    model = add_lora(Block(experts.double().eval()), config(stacks, r=2), "a")
    model.add_adapter(config(stacks[-1:], r=3), "b")
    model.set_requires_grad(["a", "b"])
    move(model)
    return model.eval()


def _fill(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)


def config(stacks: list[str], r: int) -> LoRAConfig:
    """Return a config of such parameters alone."""
    return LoRAConfig(r=r, target_modules=[], target_parameters=stacks)


def batch(rows: int) -> list[Tensor]:
    """Return what a block is given: tokens, two experts for each, never the last one, and their shares."""
    torch.manual_seed(1)
    index = torch.rand(rows, 3, 3).argsort(-1)[..., :2]
    return [torch.randn(rows, 3, 6).double(), index, torch.rand(rows, 3, 2).double()]


def gradients(model: nn.Module, y: Tensor) -> dict[str, Tensor]:
    """Return the gradients of every parameter that has one."""
    model.zero_grad()
    (y * torch.linspace(-1, 2, y.shape[-1]).double()).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def merged(model: Any, names: list[str], given: list[Tensor]) -> Tensor:
    """Return what experts give whose weights have the products of some adapters inside, by torch's functional call."""
    layer = model.experts
    weights = {key: own for key, own in layer.named_parameters() if "." not in key}
    for key, adapter in ((k, a) for name in names for k, a in layer.adapters[name].items()):
        delta = adapter.scaling * torch.einsum("eor,eri->eoi", adapter.lora_B, adapter.lora_A)
        weights[key] = weights[key] + (delta.mT if layer.is_transposed else delta)
    base = Block(CLASSES[type(layer).__name__.removeprefix("LoRA")](layer.config).double())
    return functional_call(base, {f"experts.{key}": weight for key, weight in weights.items()}, tuple(given))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Transformers group products in float64, which torch's own operation does not take."""
    monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda *args: False)


@pytest.fixture
def never_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the products that are taken, and fail where the matrices of adapted experts are made."""
    taken: list[int] = []

    def made(self: Any) -> Tensor:
        raise AssertionError("matrices with adapters inside were made")

    def counted(product: Any) -> Any:
        return lambda *args, **kwargs: (taken.append(1), product(*args, **kwargs))[1]

    monkeypatch.setattr(LowRankSum, "dense", made)
    for name in ("_behind", "_before", "_linear"):
        monkeypatch.setattr(LowRankSum, name, counted(getattr(LowRankSum, name)))
    return taken


ways = pytest.mark.parametrize("way", WAYS)
classes = pytest.mark.parametrize("name", CLASSES)


@ways
@classes
@pytest.mark.parametrize("names", [["a"], ["a", "b"]], ids="+".join)
def test_experts_compute_and_train_as_if_the_products_were_inside(
    name: str, way: str, names: list[str], wide: None, never_made: list[int]
) -> None:
    model, given = block(name, way), batch(2)
    given[0].requires_grad_()
    with model.adapters_active(names):
        y = model(*given)
    assert never_made
    got = {**gradients(model, y), "x": given[0].grad.clone()}
    given[0].grad = None
    y_merged = merged(model, names, given)
    want = {**gradients(model, y_merged), "x": given[0].grad}
    assert (y - y_merged).abs().max() < 1e-10
    assert got.keys() == want.keys()
    assert len(got) > 2 * len(names)
    for key in want:
        assert (got[key] - want[key]).abs().max() <= 1e-10 * (1 + want[key].abs().max()), key
    with torch.no_grad(), model.adapters_disabled():
        assert (model(*given) - y).abs().max() > 1e-3


@ways
@classes
def test_each_row_computes_and_trains_as_its_adapters_alone_do(
    name: str, way: str, wide: None, never_made: list[int]
) -> None:
    model, given = block(name, way), batch(len(ROWS))

    def alone() -> Tensor:
        return torch.cat([model(*(t[i : i + 1] for t in given), adapter_names=[row]) for i, row in enumerate(ROWS)])

    want = alone()
    of_one = len(never_made)
    never_made.clear()
    got = model(*given, adapter_names=ROWS)
    assert (got - want).abs().max() < 1e-10
    assert (want[0] - want[2]).abs().max() > 1e-3
    if way != "eager":  # where every expert is a step of its own already
        assert len(never_made) == 2 < of_one, "all rows go through one product"
    mine, theirs = gradients(model, got), gradients(model, alone())
    assert mine.keys() == theirs.keys()
    assert all((mine[key] - theirs[key]).abs().max() <= 1e-10 * (1 + theirs[key].abs().max()) for key in theirs)
    with torch.no_grad():
        for _ in range(2):  # the second time from what the first made
            assert (model(*given, adapter_names=ROWS) - want).abs().max() < 1e-10
        move(model, 7)
        assert (model(*given, adapter_names=ROWS) - alone()).abs().max() < 1e-10


@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
def test_rows_are_followed_where_one_stack_alone_is_adapted_or_an_expert_is_saved_whole(way: str, wide: None) -> None:
    for name in ("MixtralExperts", "GptOssExperts"):
        model, given = block(name, way), batch(3)
        model.delete_adapter("a")
        rows = ["b", "__base__", "b"]
        for _ in range(2):
            with torch.no_grad():
                got = model(*given, adapter_names=rows)
                alone = [model(*(t[i : i + 1] for t in given), adapter_names=[row]) for i, row in enumerate(rows)]
            assert (got - torch.cat(alone)).abs().max() < 1e-10
            if "saved" not in model.peft_config:
                model.add_adapter(LoRAConfig(r=2, target_modules=[], modules_to_save=["experts"]), "saved")
                move(model)
                rows = ["b", "saved", "__base__"]


def test_experts_of_as_many_routes_as_there_may_be_are_counted_exactly() -> None:
    for many in range(1, peek.MANY_EXPERTS + 1, 7):  # as Transformers does
        assert bool((torch.histc(torch.arange(many).float(), bins=many, min=0, max=max(1, many - 1)) == 1).all())


def llama4() -> nn.Module:
    return Llama4TextExperts(SimpleNamespace(**SIZES))


def jetmoe() -> nn.Module:
    class Sorted(JetMoeParallelExperts):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, [len(x) // 4] * 4)

    return Sorted(4, 6, 6)


@pytest.mark.parametrize("build", [llama4, jetmoe])
def test_experts_that_are_given_sorted_tokens_compute_so_too_but_cannot_tell_rows(
    build: Any, never_made: list[int]
) -> None:
    torch.manual_seed(0)
    experts = build()
    _fill(experts)
    model = add_lora(
        nn.Sequential(nn.Flatten(0, 1), experts.double()), config([n for n, _ in experts.named_parameters()], r=2)
    )
    move(model.eval())
    x = torch.randn(2, 4, 6).double()
    got = model(x)
    assert len(never_made) >= len(list(experts.parameters(recurse=False)))
    with pytest.raises(AdapterStateError, match=r"^1: its experts.*adapters_active\(name\)"):
        model(x, adapter_names=["default", "__base__"])
    assert (model.merge_and_unload()(x) - got).abs().max() < 1e-10


def test_layers_of_single_experts_cannot_tell_rows_and_are_named() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.out = nn.ModuleList(nn.Linear(6, 6) for _ in range(2)), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.experts[0](x[1:]), self.experts[1](x[:1])]))

    model = add_lora(Mixture(), LoRAConfig(r=2, target_modules=["out"]), "a")
    model.add_adapter(LoRAConfig(r=2, target_modules=["experts.1"]), "b")
    x = torch.randn(4, 6)
    model.eval()(x, adapter_names=["a", "__base__"] * 2)
    with pytest.raises(AdapterStateError, match=r"experts\.1 belongs to one expert"):
        model(x, adapter_names=["a", "b"] * 2)
    with model.adapters_active("b"):
        want = model(x)
    assert torch.equal(model(x, adapter_names=["b"] * 4), want)


def test_a_kernel_that_takes_tensors_gets_them_and_that_is_told(monkeypatch: pytest.MonkeyPatch, wide: None) -> None:
    model, given = block("MixtralExperts", "eager"), batch(2)
    with model.adapters_active("a"):
        want = model(*given)
        monkeypatch.setitem(moe.ALL_EXPERTS_FUNCTIONS._local_mapping, "kernel", moe.batched_mm_experts_forward)
        model.experts.config._experts_implementation = "kernel"
        assert isinstance(model.experts.gate_up_proj, Tensor)
        with pytest.warns(UserWarning, match=r"'kernel'.*set_experts_implementation"):
            got = model(*given)
    assert (got - want).abs().max() < 1e-10


class Unusual(nn.Module):
    """Experts whose code does with their stack what no other's does."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.w = form, nn.Parameter(torch.randn(3, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        w = self.w
        assert (w.shape, len(w), w.ndim, w.size(-1), w.dtype) == ((3, 6, 6), 3, 3, 6, x.dtype)
        forms = {
            "einsum": lambda: torch.einsum("bi,eoi->bo", x, w), "sum": lambda: x @ w.sum(0), "scaled": lambda: x @ (w * 2)[0],
            "scaled from the left": lambda: x @ (2 * w)[0], "sliced": lambda: x @ w[1:].mean(0), "columns": lambda: x[:, :3] @ w[0][:3],
            "turned": lambda: x @ w.transpose(0, 2)[0], "mask": lambda: x @ w[torch.tensor([True, False, True])][0],
            "from the left": lambda: (w[0] @ x.T).T, "of a copy": lambda: nn.functional.linear(x, w[1].clone()),
            "batched from the left": lambda: (w @ x.T).sum(0).T, "negative": lambda: x @ w[-1], "transposed": lambda: x @ w.mT[1],
        }  # fmt: skip
        return forms[self.form]()

    FORMS = (
        "einsum", "sum", "scaled", "scaled from the left", "sliced", "columns", "turned", "mask", "from the left",
        "of a copy", "batched from the left", "negative", "transposed",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:experts. .* takes the matrices of all experts")
@pytest.mark.parametrize("form", Unusual.FORMS)
def test_whatever_code_does_with_a_stack_it_gets_what_the_merged_one_gives(form: str) -> None:
    torch.manual_seed(0)
    model = add_lora(nn.Sequential(Unusual(form).double()), config(["0.w"], r=2))
    move(model)
    x = torch.randn(4, 6).double()
    got = model(x)
    assert (model.merge_and_unload()(x) - got).abs().max() < 1e-10


def test_that_all_matrices_are_made_is_told() -> None:
    model = add_lora(nn.Sequential(Unusual("einsum")), config(["0.w"], r=2))
    with pytest.warns(UserWarning, match="einsum takes the matrices of all experts"):
        model(torch.randn(4, 6))


def of_family(name: str, **settings: Any) -> Any:
    """Return a tiny mixture with an adapter on all linear layers and experts, in training mode."""
    model = LoRAModel.from_model(tiny.tiny(name, noisy=True, **settings), LoRAConfig(r=2, target_modules="all-linear"))
    move(model)
    return model.train()


def trained(model: Any, compute: Any, name: str) -> list[Tensor]:
    """Return a training step's logits and gradients."""
    model.zero_grad()
    given = tiny.inputs(name)
    out = compute(**given, labels=given["input_ids"])
    out.loss.backward()
    return [out.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_experts_train_the_same(use_reentrant: bool, never_made: list[int]) -> None:
    model = of_family("mixtral")
    want = trained(model, model, "mixtral")
    tiny.checkpointed(model, use_reentrant)
    assert all(torch.equal(a, b) for a, b in zip(trained(model, model, "mixtral"), want, strict=True))


@pytest.mark.filterwarnings("ignore:.*lru_cache.*:UserWarning")  # Dynamo's, of Transformers' code
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_mixture_trains_the_same_in_one_graph(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_family("gpt_oss", num_hidden_layers=1).to(dtype)
    want = trained(model, model, "gpt_oss")
    if dtype == torch.float32:  # in bfloat16 Transformers takes torch's product, for which compilers want tensors
        monkeypatch.setattr(LowRankSum, "dense", None)
    torch.compiler.reset()
    got = trained(model, torch.compile(model, backend="eager", fullgraph=True), "gpt_oss")
    tolerance = 64 * torch.finfo(dtype).eps
    assert all((a - b).abs().max() < tolerance * (1 + b.abs().max()) for a, b in zip(got, want, strict=True))
