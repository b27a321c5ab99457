"""What cannot work is refused when it is asked for, by name, with the way out; the model is left as it was."""

from __future__ import annotations

import abc
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora, errors, inspect_adapter
from hf_lora.errors import AdapterStateError, LoRAError, MergeError, TargetError

from .cases import KIND_CASES, VARIANTS, Named, allowed, config_of, data_of, example, move, network

LESS = [v for v in VARIANTS if v != "bias-trained"]  # biases are trained where there are any
UNDEFINED = [(k, v) for k in KIND_CASES for v in LESS if not allowed(k, v) and not k.startswith("linear-no-bias")]


def flags(model: nn.Module) -> list[bool]:
    return [p.requires_grad for p in model.parameters()]


def untouched(model: nn.Module, before: list[bool] | None = None) -> bool:
    is_plain = not any("_lora" in m.__dict__ for m in model.modules())
    return is_plain and (all(flags(model)) if before is None else flags(model) == before)


@pytest.mark.parametrize(("kind", "variant"), UNDEFINED, ids=[f"{k}-{v}" for k, v in UNDEFINED])
def test_a_variant_that_a_kind_cannot_carry_is_refused_by_name(kind: str, variant: str) -> None:
    model = network(kind)
    before = flags(model)
    name = KIND_CASES[kind].targets.get("target_modules", ["layer"])[0].split(".")[0]
    with pytest.raises(TargetError, match=name):
        add_lora(model, config_of(kind, variant), **data_of(kind, variant))
    assert untouched(model, before)


class Halved(nn.Conv1d):
    """A convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


LAYERS = {
    "a rank that does not fit a grouped convolution": (
        nn.Conv2d(3, 6, 3, groups=3),
        "groups=3.*r=8.*rank_pattern={'layer': 3}",
    ),
    "a grouped convolution with a forward of its own": (Halved(4, 8, 3, groups=2), "groups that computes"),
    "a transposed convolution": (nn.ConvTranspose1d(4, 8, 3), "transposed"),
    "an embedding with a norm": (nn.Embedding(4, 8, max_norm=1.0), "max_norm=1.0"),
    "attention with other key sizes": (nn.MultiheadAttention(8, 2, kdim=4), "MultiheadAttention"),
    "a layer without a weight": (nn.ReLU(), "ReLU"),
    "a container": (nn.Sequential(nn.Linear(2, 2)), r"Sequential.*\b0\b"),
    "a norm": (nn.LayerNorm(4), "LayerNorm"),
}


def _with_parameters() -> nn.Module:
    model = Named(nn.Linear(2, 2))
    model.layer.raw = nn.Parameter(torch.zeros(1, 1, 1, 1))
    model.layer.packed = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    return model


# The model, the config's settings, what the error says.
SETTINGS: dict[str, tuple[nn.Module, dict[str, Any], str]] = {
    "four dimensions": (_with_parameters(), {"target_parameters": ["layer.raw"]}, "2-D"),
    "packed numbers": (_with_parameters(), {"target_parameters": ["layer.packed"]}, "int8"),
    "no such parameter": (_with_parameters(), {"target_parameters": ["layer.gone"]}, r"'layer\.gone'"),
    "rows outside the table": (Named(nn.Embedding(4, 2)), {"target_modules": ["layer"], "trainable_token_indices": {"layer": [4]}}, r"\[4\]"),
    "rows of no table": (Named(nn.Embedding(4, 2)), {"target_modules": ["layer"], "trainable_token_indices": {"other": [1]}}, "'other'"),
    "rows of a table that nobody names": (Named(nn.Embedding(4, 2)), {"target_modules": ["layer"], "trainable_token_indices": [1]}, "name.of.the"),
    "every problem at once": (nn.Sequential(nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 4)), {"target_modules": ["0", "1", "2"], "modules_to_save": ["missing"]}, "missing.*ReLU.*LayerNorm"),
    **{what: (Named(layer), {"target_modules": ["layer"]}, match) for what, (layer, match) in LAYERS.items()},
}  # fmt: skip


@pytest.mark.parametrize("what", SETTINGS)
def test_what_cannot_carry_an_adapter_is_refused_by_name_and_left_as_it_was(what: str) -> None:
    model, settings, match = SETTINGS[what]
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(LoRAError, match=match):
        add_lora(model, LoRAConfig(**settings))
    assert not any("_lora" in m.__dict__ for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == before


class Int8Linear(nn.Linear):
    """A quantised linear layer as libraries make them: an nn.Linear whose weight is packed integers."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features)
        scale = source.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((source.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.bias = source.bias
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def adapt_from_outside(build: Callable[[], nn.Module], tmp_path: Path, *merges: dict[str, Any]) -> Any:
    """Hold an adapter on a packed layer to what it can do, and return the plain network that it leaves.

    merges: the arguments of `merge_and_unload` that are refused, as `merge_adapter` is.
    """
    x, base = torch.randn(4, 6), build()
    want = base(x)
    model = add_lora(base, LoRAConfig(r=2, target_modules=["layer"]))
    assert torch.equal(model(x), want)
    move(model)
    live = model(x)
    live.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=build())
    assert torch.equal(again(x), live)
    again.eval().prepare_hotswap(4)
    again.load_adapter(tmp_path, hotswap=True)
    torch.testing.assert_close(again(x), live)
    for merge in (model.merge_adapter, *(partial(model.merge_and_unload, **given) for given in merges)):
        with pytest.raises(MergeError, match=r"layer: .*packed"):
            merge()
    assert torch.equal(model(x), live)
    assert torch.equal(model.unload()(x), want)
    return base


def test_a_packed_linear_is_adapted_from_outside_and_never_merged(tmp_path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Named(Int8Linear(nn.Linear(6, 10)))

    adapt_from_outside(build, tmp_path, {})
    for config in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises(TargetError, match="layer"):
            add_lora(build(), LoRAConfig(r=2, target_modules=["layer"], **config))


class PackedTensor(Tensor):
    """A weight as torchao and quanto make them: it says that it holds floats, and knows a linear layer alone."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)

    def __init__(self, weight: Tensor) -> None:
        self.scale = weight.abs().max() / 127
        self.numbers = (weight / self.scale).round().to(torch.int8)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> Any:
        return PackedTensor(inner["numbers"] * inner["scale"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, *bias = args
            return func(x, weight.numbers.to(x.dtype) * weight.scale, *bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"PackedTensor dispatch: {func}")


class Mixed(abc.ABC):  # noqa: B024 (as quanto's is)
    """What comes first in quanto's layers: a class whose own base has no place for attributes."""


class MixedLinear(Mixed, nn.Linear):
    """A linear layer as quanto makes them."""


@pytest.mark.parametrize("cls", [nn.Linear, MixedLinear])
def test_a_weight_in_a_librarys_tensor_class_is_adapted_from_outside_and_never_read(cls: Any, tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        layer = cls(6, 10)
        layer.weight = nn.Parameter(PackedTensor(layer.weight.detach()), requires_grad=False)
        return Named(layer)

    assert type(adapt_from_outside(build, tmp_path, {}, {"dtype": torch.float64}).layer) is cls
    targets = {"target_modules": ["layer"]}
    for refused in (
        {**targets, "use_dora": True}, {**targets, "init_lora_weights": "pissa"}, {"target_parameters": ["layer.weight"]},
        {"target_modules": ["other"], "modules_to_save": ["layer"]},
        {"target_modules": ["other"], "trainable_token_indices": {"layer": [1]}},
    ):  # fmt: skip
        with pytest.raises(TargetError, match=r"layer.*(quantised|plain matrix)"):
            add_lora(nn.ModuleDict({"layer": build().layer, "other": nn.Linear(2, 2)}), LoRAConfig(r=2, **refused))


def test_a_grouped_convolution_merges_where_its_weight_has_a_place(tmp_path: Path) -> None:
    """PEFT's adapter reads every group's inputs: of one that changes nothing yet the weight has a place, else none."""
    model = add_lora(network("conv2d-grouped"), config_of("conv2d-grouped", "lora"))
    x = example("conv2d-grouped")
    fresh = model(x)
    model.merge_adapter()
    model.unmerge_adapter()
    move(model)
    live = model(x)
    model.save_pretrained(tmp_path)
    assert not [finding for finding in inspect_adapter(tmp_path).findings if finding.fatal]
    for merge in (model.merge_adapter, model.merge_report, model.merge_and_unload):
        with pytest.raises(MergeError, match="layer: .*groups=2.*without merging"):
            merge()
    assert torch.equal(model(x), live)
    assert torch.equal(model.unload()(x), fresh)


def test_two_adapters_that_cannot_act_at_once_are_refused_together() -> None:
    model = add_lora(network("linear"), config_of("linear", "dora"))
    model.add_adapter(config_of("linear", "lora"), "b")
    with pytest.raises(AdapterStateError, match=r"layer\.weight .*DoRA .*LoRA "):
        model.set_adapter(["default", "b"])
    assert model.active_adapters() == ["b"]


def test_a_lora_bias_on_a_layer_without_a_bias_works_and_cannot_be_merged() -> None:
    model, x = add_lora(network("linear-no-bias"), config_of("linear-no-bias", "lora-bias")), example("linear-no-bias")
    move(model)
    live = model(x)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match="bias"):
            merge()
    assert torch.equal(model(x), live)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["linear-no-bias", "linear", "conv1d", "conv2d"])
def test_a_lora_bias_computes_in_the_base_s_dtype_with_a_bias_there_or_without(kind: str, dtype: torch.dtype) -> None:
    model, x = add_lora(network(kind), config_of(kind, "lora-bias")).to(dtype), example(kind).to(dtype)
    move(model)
    y = model(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    want = model.to(torch.float64)(x.double())
    assert torch.allclose(y.double(), want, rtol=0.03, atol=0.03 * float(want.detach().abs().max()))


def test_every_error_refines_a_builtin_and_survives_pickling() -> None:
    for name in errors.__all__:
        cls = getattr(errors, name)
        assert issubclass(cls, LoRAError)
        if cls is not LoRAError:
            assert any(base in cls.__mro__ for base in (ValueError, OSError, RuntimeError, ImportError))
        again = pickle.loads(pickle.dumps(cls("what happened")))
        assert type(again) is cls
        assert str(again) == "what happened"
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in errors.__all__)


def test_a_container_with_a_parameter_of_its_own_is_refused() -> None:
    """Its code goes over its modules, adapters among them."""
    net = nn.Sequential(nn.Linear(4, 4))
    net.register_parameter("bias", nn.Parameter(torch.zeros(4)))
    with pytest.raises(TargetError, match="the model is a Sequential with a parameter of its own"):
        add_lora(net, LoRAConfig(r=2, target_modules=["0"], bias="all"))
    assert type(net) is nn.Sequential
