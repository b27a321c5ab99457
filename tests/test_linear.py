"""The fused linear: its values and gradients against the formula, and what it keeps and computes, counted."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hf_lora import LoRAConfig, add_lora

from .peek import Draw, MaskDraw, add_up, down, dropout, lora_linear

IN, OUT, R, SCALING = 6, 10, 2, 1.5
layouts = pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
every_p = pytest.mark.parametrize("p", [0.0, 0.3, 0.8])


@pytest.fixture(params=[Draw, MaskDraw])
def _either_draw(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute on the CPU with a CPU's draw, and with a GPU's."""
    monkeypatch.setattr(dropout, "Draw", request.param)


either_draw = pytest.mark.usefixtures("_either_draw")


def adapted_layer(layer: nn.Module | None = None, **changes: Any) -> Any:
    """Return a network of one layer with a random adapter."""
    config = {"r": R, "target_modules": ["0"], "init_lora_weights": False, **changes}
    return add_lora(nn.Sequential(layer or nn.Linear(IN, OUT)), LoRAConfig(**config))


def tensors(x: Tensor, transposed: bool = False, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Return (x, weight, bias, a, b), every one a leaf that wants a gradient."""
    torch.manual_seed(4)
    shapes = ((IN, OUT) if transposed else (OUT, IN), (OUT,), (R, IN), (OUT, R))
    rest = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return tuple(t.detach().to(dtype or torch.float64).requires_grad_() for t in (x, *rest))


def reference(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, transposed: bool) -> Tensor:
    """Return the output of the merged weight."""
    matrix = weight.t() if transposed else weight
    return x @ (matrix + SCALING * b @ a).t() + bias


def seeded(p: float, transposed: bool) -> Callable[..., Tensor]:
    def call(*args: Tensor) -> Tensor:
        torch.manual_seed(0)
        return lora_linear(*args, SCALING, p, transposed)

    return call


INPUTS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "1-D": lambda new: new(IN),
    "2-D": lambda new: new(4, IN),
    "3-D": lambda new: new(4, 3, IN),
    "4-D": lambda new: new(2, 3, 2, IN),
    "empty batch": lambda new: new(0, 3, IN),
    "transposed": lambda new: new(3, 4, IN).transpose(0, 1),
    "features strided": lambda new: new(4, 3, 2 * IN)[..., ::2],
    "expanded": lambda new: new(1, IN).expand(5, IN),
    "features first": lambda new: new(IN, 4).t(),
}
DTYPES = [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]


@layouts
@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["float64", "float32", "bfloat16"])
def test_values_and_gradients_equal_the_float64_reference(
    shape: str, transposed: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(1)
    x = INPUTS[shape](partial(torch.randn, dtype=dtype)).requires_grad_()
    args = (x, *tensors(torch.empty(0), transposed, dtype)[1:])
    wide = [t.detach().double().requires_grad_() for t in args]
    y, want = lora_linear(*args, SCALING, 0.0, transposed), reference(*wide, transposed)
    assert (y.shape, y.dtype) == (want.shape, dtype)
    weights = torch.randn(y.shape, dtype=torch.float64)
    (y.double() * weights).sum().backward()
    (want * weights).sum().backward()
    for got, right in zip((y, *(t.grad for t in args)), (want, *(t.grad for t in wide)), strict=True):
        assert got.dtype is dtype
        assert got.numel() == 0 or (got.double() - right).abs().max() <= tolerance * right.abs().max()


@layouts
@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize("dtype", [d for d, _ in DTYPES])
def test_without_an_effect_the_output_is_the_base_layers_to_the_bit(
    shape: str, transposed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    x = INPUTS[shape](partial(torch.randn, dtype=dtype))
    _, weight, bias, a, b = tensors(torch.empty(0), transposed, dtype)
    base = (
        torch.addmm(bias, x.reshape(-1, IN), weight).view(*x.shape[:-1], OUT)
        if transposed
        else F.linear(x, weight, bias)
    )
    assert torch.equal(lora_linear(x, weight, bias, a, 0 * b, SCALING, 0.0, transposed), base)


@layouts
@pytest.mark.parametrize("shape", INPUTS)
def test_the_output_may_be_written_in_place(shape: str, transposed: bool) -> None:
    args = (INPUTS[shape](torch.randn).double(), *tensors(torch.empty(0), transposed)[1:])
    y = lora_linear(*args, SCALING, 0.0, transposed)
    y = y.unsqueeze(0).transpose(0, -1)
    y /= 2  # DeBERTa does so
    y.sum().backward()
    want = torch.autograd.grad((lora_linear(*args, SCALING, 0.0, transposed) / 2).sum(), args[1:])
    torch.testing.assert_close([t.grad for t in args[1:]], list(want))


def general(p: float) -> Callable[..., Tensor]:
    """The way in of layers with a forward of their own."""

    def call(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(0)
        return add_up(F.linear(x, weight, bias), down(x, a, p, F.linear), b, SCALING)

    return call


@either_draw
@every_p
@pytest.mark.parametrize("way", ["linear", "conv1d", "general"])
def test_first_and_second_derivatives_pass_gradcheck(way: str, p: float) -> None:
    torch.manual_seed(1)
    args = tensors(torch.randn(3, 2, IN, dtype=torch.float64), way == "conv1d")
    call = general(p) if way == "general" else seeded(p, way == "conv1d")
    assert torch.autograd.gradcheck(call, args)
    assert torch.autograd.gradgradcheck(call, args)
    if way == "general":
        torch.testing.assert_close(call(*args), seeded(p, False)(*args))


@either_draw
def test_dropout_scales_what_is_kept_and_leaves_the_frozen_branch_alone() -> None:
    x = torch.ones(2000, IN, dtype=torch.float64)
    _, weight, bias, a, b = tensors(x)
    mean = lora_linear(x, weight, bias, a, b, SCALING, 0.4, False).mean(0)
    torch.testing.assert_close(mean, reference(x, weight, bias, a, b, False)[0], rtol=0.1, atol=0.3)
    torch.testing.assert_close(lora_linear(x, weight, bias, a, 0 * b, SCALING, 0.4, False), F.linear(x, weight, bias))


class Counting(TorchDispatchMode):
    """Counts operations, and the tensors they return that are new and of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.made: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls[func._schema.name] += 1
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            self.made[out.untyped_storage().nbytes()] += 1
        return out


@contextmanager
def saving() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        yield saved


@layouts
@every_p
def test_only_the_input_itself_and_its_small_projection_are_saved(transposed: bool, p: float) -> None:
    x, weight, bias, a, b = tensors(torch.randn(100, IN, dtype=torch.float64), transposed)
    with saving() as saved:
        y = lora_linear(x, weight.detach(), bias.detach(), a, b, SCALING, p, transposed)
    own = {t.data_ptr() for t in (x, weight, a, b)}
    others = [t for t in saved if t.data_ptr() not in own]
    assert [t.shape for t in others] == [(100, R)]
    held = [v for v in vars(y.grad_fn).values() if isinstance(v, Tensor)]
    assert not held, "what hangs on the context is memory that saved_tensors_hooks do not see"


def test_a_gpus_dropout_keeps_a_byte_an_element_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "Draw", MaskDraw)
    x, weight, bias, a, b = tensors(torch.randn(100, IN, dtype=torch.float64))
    with saving() as saved:
        lora_linear(x, weight.detach(), bias.detach(), a, b, SCALING, 0.3, False)
    own = {t.data_ptr() for t in (x, weight, a, b)}
    others = [t for t in saved if t.data_ptr() not in own]
    assert [(t.shape, t.element_size()) for t in others] == [((100, R), 8), ((100, IN), 1)]


@layouts
def test_nothing_of_the_outputs_size_is_made_twice(transposed: bool) -> None:
    tokens, size = 100, 100 * OUT * 8
    x, weight, bias, a, b = tensors(torch.randn(tokens, IN, dtype=torch.float64), transposed)
    weight.requires_grad_(False), bias.requires_grad_(False)
    with Counting() as forward:
        y = lora_linear(x, weight, bias, a, b, SCALING, 0.0, transposed)
    assert forward.made[size] == 1
    dy = torch.randn_like(y)
    with Counting() as backward:
        y.backward(dy)
    assert backward.made[size] == 0
    assert backward.made[x.numel() * 8] == 1


def test_the_gradient_of_the_input_is_computed_only_where_something_wants_it() -> None:
    products = []
    for wanted in (True, False):
        x, weight, bias, a, b = tensors(torch.randn(7, IN, dtype=torch.float64))
        y = lora_linear(x.detach().requires_grad_(wanted), weight.detach(), bias.detach(), a, b, SCALING, 0.0, False)
        with Counting() as counted:
            y.sum().backward()
        products.append(
            sum(n for name, n in counted.calls.items() if name in ("aten::mm", "aten::addmm", "aten::addmm_"))
        )
    assert products == [5, 3]  # dS, dB, dA; dX and what is added to it


def test_dropping_makes_no_tensor_of_the_inputs_size_beyond_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "_CHUNK", 10 * IN)
    x, weight, bias, a, b = tensors(torch.randn(400, IN, dtype=torch.float64))
    with Counting() as counted:
        y = lora_linear(x, weight.detach(), bias.detach(), a, b, SCALING, 0.05, False)
        y.backward(torch.ones_like(y))
    assert counted.made[x.numel() * 8] == 1  # dX


@either_draw
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_autocast_computes_as_it_does_without_adapters_and_saves_no_cast(p: float) -> None:
    x, weight, bias, a, b = tensors(torch.randn(50, IN), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), saving() as saved:
        y = lora_linear(x, weight.detach(), bias.detach(), a, 0 * b, SCALING, p, False)
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.linear(x, weight, bias)
    assert torch.equal(y, plain)
    assert y.dtype is torch.bfloat16
    assert {t.dtype for t in saved if t.numel() >= x.numel() and t.is_floating_point()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        y = lora_linear(x, weight, bias, a, b, SCALING, 0.0, False)
        y.float().square().sum().backward()  # inside autocast as well
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias, a, b)]
    reference(*wide, False).square().sum().backward()
    for got, want in zip((x, weight, bias, a, b), wide, strict=True):
        assert got.grad.dtype is torch.float32
        assert (got.grad - want.grad).norm() < 0.02 * want.grad.norm()


@either_draw
def test_a_dropped_convolution_computes_in_backward_as_autocast_had_it_in_forward() -> None:
    model = adapted_layer(nn.Conv1d(IN, OUT, 3), lora_dropout=0.3).train()
    x, seen = torch.randn(2, IN, 9), []
    model[0]._conv_forward = lambda x, weight, bias: seen.append((y := F.conv1d(x, weight, bias)).dtype) or y
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert seen == [torch.bfloat16] * 3  # the base, the half-step, the half-step again
    assert model[0].adapters.default.weight.lora_A.grad.dtype is torch.float32


@either_draw
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_draws_the_same_dropout_again(use_reentrant: bool) -> None:
    found = []
    for wrap in (lambda *args: checkpoint(*args, use_reentrant=use_reentrant), lambda f, *args: f(*args)):
        args = tensors(torch.randn(8, IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
        torch.manual_seed(6)
        y = wrap(lambda *t: lora_linear(*t, SCALING, 0.4, False), *args)
        y.square().sum().backward()
        found.append([y.detach(), *(t.grad for t in args)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_compiling_with_dropout_breaks_no_graph() -> None:
    model = adapted_layer(lora_dropout=0.5).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(7, IN)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    first.sum().backward()
    torch._dynamo.reset()


def test_functorch_transforms_see_the_plain_formula() -> None:
    model, x = adapted_layer(), torch.randn(5, IN)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (row,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trained, x)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in trained:
            torch.testing.assert_close(found[name].sum(0), parameter.grad)


def test_a_layer_whose_weight_trains_along_gets_its_gradient() -> None:
    model = adapted_layer().requires_grad_(True)
    wide = copy.deepcopy(model).double()
    x = torch.randn(5, IN)
    model(x).square().sum().backward()
    lora = wide[0].adapters["default"]["weight"]
    weight = wide[0].weight
    F.linear(x.double(), weight + lora.scaling * lora.lora_B @ lora.lora_A, wide[0].bias).square().sum().backward()
    for got, want in zip(model.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@layouts
@every_p
def test_a_gpu_computes_what_the_formula_says_and_draws_its_dropout_again(transposed: bool, p: float) -> None:
    args = [t.detach().cuda().requires_grad_() for t in tensors(torch.randn(64, IN), transposed)]
    torch.manual_seed(3)
    kept = (lora_linear(*args, 1.0, p, transposed) - lora_linear(*args[:4], 0 * args[4], 1.0, 0.0, transposed)).detach()
    torch.manual_seed(3)
    y = lora_linear(*args, 1.0, p, transposed)
    assert torch.equal((y - lora_linear(*args[:4], 0 * args[4], 1.0, 0.0, transposed)).detach(), kept)
    assert torch.autograd.gradcheck(seeded(p, transposed), args)


class Wrapped(torch.Tensor):
    """A weight of a class of its own, as quantising libraries put in the place of a layer's."""

    asked: ClassVar[list[object]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Wrapped.asked.append(func)
        plain = [a.as_subclass(torch.Tensor) if isinstance(a, Wrapped) else a for a in args]
        return func(*plain, **(kwargs or {}))


def test_a_weight_that_becomes_one_of_a_class_of_its_own_is_left_to_it() -> None:
    net, x = adapted_layer(), torch.randn(5, IN)
    want = net(x)
    net[0]._parameters["weight"] = net[0].weight.detach().as_subclass(Wrapped)
    Wrapped.asked.clear()
    got = net(x)
    assert nn.functional.linear in Wrapped.asked
    assert torch.allclose(got, want, atol=1e-6)
    got.sum().backward()
    assert net[0].adapters.default.weight.lora_B.grad is not None
