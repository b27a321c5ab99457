"""A variant and a kind are one class and one row each: toys of both, which the package has never heard of."""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import hf_lora
from hf_lora import LoRAConfig, LoRAModel, add_lora, inspect_adapter, parameter_groups
from hf_lora.errors import ConfigError, TargetError

from . import test_laws
from .cases import KIND_CASES, LAYER, VARIANTS, KindCase, Named, adapted, allowed, config_of, example, network
from .peek import (  # fmt: skip
    ADAPTERS,
    FORMULAS,
    KINDS,
    PAPERS,
    SCALINGS,
    Kind,
    LoRA,
    Reference,
    Row,
    Scaling,
    Stored,
    lora_scalars,
    write_card,
)

PACKAGE = Path(hf_lora.__file__).parent


# --- the toy variant: one class and one row -----------------------------------------------------------------------


class Gated(LoRA):
    """W' = W + scaling * gate * B A: a number of its own to train for each weight."""

    role: ClassVar[str] = "gated"
    exclusive: ClassVar[bool] = True
    gate: nn.Parameter

    @classmethod
    def shapes(cls, spec: Any, own: Tensor | None) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(spec, own), "gate": (1,)}

    @classmethod
    def refusal(cls, spec: Any, raw: bool) -> str:
        return "a convolution of three dimensions, which this toy does not like" if len(spec.shape) == 5 else ""

    def initialise(self, layer: nn.Module) -> None:
        super().initialise(layer)
        nn.init.ones_(self.gate)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.gate * self.lora_B

    def measured(self, row_lengths: Tensor) -> dict[str, Tensor]:
        return {"gate": self.gate.double()}


GATED = Row(
    name="gated",
    title="Gated LoRA",
    code="tests.test_rows:Gated",
    tensors=(*FORMULAS["lora"].tensors, Stored("gate", "lora_gate")),
    low_rank=True,
    switch="use_gate",
    paper=type(PAPERS["lora"])("Gated LoRA", "Gates on Ranks", "Doe, Jane and Roe, Richard", 2031, "3101.00001"),
    own_tensor="a gate",
)


# --- the toy kind: one class and one row --------------------------------------------------------------------------


class Negated(nn.Module):
    """A linear layer that stores its weight with the other sign."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.randn(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, -self.weight, self.bias)


class NegatedKind(Kind):
    """The matrix is the weight with the other sign."""

    layer = Negated
    is_matrix = True

    def matrix(self, weight: Tensor) -> Tensor:
        return -weight

    def weight(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        return -matrix

    def merge(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        return super().merge(weight, a, -b, scaling)


class Quantised(nn.Module):
    """A linear layer of some library's, in whole numbers."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.randint(-7, 8, (in_features, out_features), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.numbers.to(x.dtype) / 7)


class QuantisedKind(Kind):
    """Where its numbers are is the library's own affair."""

    layer = Quantised
    is_quantised = True

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, Quantised)

    def weight_shape(self, module: nn.Module) -> tuple[int, ...]:
        return tuple(module.numbers.shape[::-1])


@pytest.fixture(autouse=True, scope="module")
def no_toy_is_left() -> Iterator[None]:
    """What waits for its first step is asked of its rows, which are gone after these tests."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMULAS, "gated", GATED)
    monkeypatch.setitem(KINDS, "negated", NegatedKind())
    monkeypatch.setitem(KINDS, "some library's", QuantisedKind())
    monkeypatch.setitem(VARIANTS, "gated", {"other": {"use_gate": True}})
    monkeypatch.setitem(
        KIND_CASES, "negated", KindCase(lambda: Named(Negated(6, 10)), lambda: torch.randn(4, 3, 6), LAYER, matrix=True)
    )


def weight_of(model: LoRAModel) -> Any:
    """The adapter of a model's only layer."""
    (layer,) = model._lora.layers.values()
    return layer.carried("default")["weight"]


PAIRS = [
    *((kind, "gated") for kind in ("linear", "embedding", "conv2d", "experts", "linear-read", "attention", "negated")),
    *(("negated", variant) for variant in VARIANTS if allowed("linear", variant)),
]


def _calls() -> Iterator[Any]:
    """Yield every law of the law suite with every further argument that it is asked with."""
    for name, law in vars(test_laws).items():
        marks = {mark.args[0]: mark.args[1] for mark in getattr(law, "pytestmark", ()) if mark.name == "parametrize"}
        of_pairs = next((names for names in marks if names[:2] == ("kind", "variant")), None)
        if of_pairs is not None:
            del marks[of_pairs]
            marks |= {"dtype": test_laws.DTYPES} if "dtype" in of_pairs else {}
            for values in itertools.product(*marks.values()):
                more = dict(zip(marks, values, strict=True))
                yield pytest.param(law, more, id="-".join([name.removeprefix("test_"), *map(str, values)]))


CALLS = list(_calls())
assert len(CALLS) >= 20, "the suite of laws was not found"


@pytest.mark.parametrize(("kind", "variant"), PAIRS, ids=[f"{k}-{v}" for k, v in PAIRS])
@pytest.mark.parametrize(("law", "more"), CALLS)
def test_every_law_holds_for_a_toy(
    law: Callable[..., None], more: dict[str, Any], kind: str, variant: str, tmp_path: Path
) -> None:
    if "tmp_path" in inspect.signature(law).parameters:
        more = {**more, "tmp_path": tmp_path}
    law(kind, variant, **more)


def test_a_toys_file_has_its_key_is_read_by_its_older_ones_and_refused_without_it(tmp_path: Path) -> None:
    model, x = adapted("conv2d", "gated"), example("conv2d")
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    assert {key.removeprefix("base_model.model.layer.") for key in tensors} == {
        "lora_A.weight", "lora_B.weight", "lora_gate"
    }  # fmt: skip
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_gate"] is True
    save_file({re.sub(r"(lora_A|lora_B|lora_gate)", r"\1.mine", key): t for key, t in tensors.items()}, file)
    assert torch.equal(LoRAModel.from_pretrained(tmp_path, base_model=network("conv2d"))(x), model(x))
    save_file({key: t for key, t in tensors.items() if "gate" not in key}, file)
    with pytest.raises(hf_lora.errors.AdapterMismatchError, match=r"missing gate of layer\.weight"):
        LoRAModel.from_pretrained(tmp_path, base_model=network("conv2d"))


def test_a_toys_switch_is_checked_and_excludes_another_formula_and_places_that_it_refuses() -> None:
    assert config_of("linear", "gated").formula == "gated"
    with pytest.raises(ConfigError, match=r"use_gate='yes', but it is True or False"):
        LoRAConfig(other={"use_gate": "yes"})
    with pytest.raises(ConfigError, match=r"use_dora=True and use_gate=True exclude each other"):
        LoRAConfig(use_dora=True, other={"use_gate": True})
    with pytest.raises(ConfigError, match="unknown key =True"):
        LoRAConfig.from_dict({"peft_type": "LORA", "": True})  # no switch of plain LoRA's
    with pytest.raises(TargetError, match=r"three dimensions.*set use_gate=False"):
        add_lora(network("conv3d"), config_of("conv3d", "gated"))


def test_the_card_names_a_toys_paper_and_no_engine_that_its_row_does_not_name(tmp_path: Path) -> None:
    model = adapted("linear", "gated")
    write_card(tmp_path / "README.md", model, model.peft_config["default"], model.get_adapter_state_dict())
    text = (tmp_path / "README.md").read_text()
    assert GATED.paper is not None
    assert GATED.paper.link in text
    assert "| variant | LoRA, Gated LoRA |" in text
    assert re.search(r"^- gated$", text, re.MULTILINE)
    assert "vllm serve" not in text


def test_the_inspection_knows_a_toy(tmp_path: Path) -> None:
    adapted("linear", "gated").save_pretrained(tmp_path)
    seen = inspect_adapter(tmp_path)
    assert seen.variant == "Gated LoRA"
    assert {finding.code for finding in seen.findings} <= {"base"}
    assert sum(t.parameters for t in seen.targets) == seen.parameters
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"use_gate": true', '"use_gate": false'))
    found = {finding.code: finding.text for finding in inspect_adapter(tmp_path).findings}
    assert found["tensors"] == "1 of 1 layers have a gate, but use_gate is False"


def test_learning_rates_and_decay_take_a_toy() -> None:
    model = add_lora(network("linear"), config_of("linear", "gated"))
    model.set_learning_rates(loraplus_lr_ratio=16)
    names = {id(p): name.rpartition(".")[2] for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.001, weight_decay=0.1)
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {"lora_A": (0.001, 0.1), "lora_B": (0.016, 0.1), "gate": (0.001, 0.0)}


def test_trackers_and_reports_take_a_toy() -> None:
    model = adapted("negated", "gated")
    scalars = lora_scalars(model)
    adapter, layer = weight_of(model), model._lora.layers["layer"]
    assert scalars["lora/default/gate/layer"] == pytest.approx(adapter.gate.item())
    added = adapter.effective(layer._parameters["weight"]) - layer._parameters["weight"]
    assert scalars["lora/default/norm/layer"] == pytest.approx(added.norm().item(), rel=1e-5)
    assert "negated, r=2" in model.targets_report()


def test_a_quantised_library_is_one_class_and_one_row(tmp_path: Path) -> None:
    torch.manual_seed(1)
    base, x = nn.Sequential(Quantised(6, 10)), torch.randn(3, 6)
    plain = base(x)
    model = add_lora(base, LoRAConfig(r=2, target_modules=["0"], init_lora_weights=False))
    adapter = weight_of(model)
    assert torch.allclose(model(x), plain + adapter.scaling * x @ adapter.lora_A.T @ adapter.lora_B.T, atol=1e-6)
    assert lora_scalars(model)["lora/default/norm/N"] > 0
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = LoRAModel.from_pretrained(tmp_path, base_model=nn.Sequential(Quantised(6, 10)))
    assert torch.equal(again(x), model(x))
    for refused in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises(TargetError, match="quantised|plain matrix"):
            add_lora(nn.Sequential(Quantised(6, 10)), LoRAConfig(target_modules=["0"], **refused))


@pytest.mark.parametrize("layer", [lambda: Quantised(6, 10), lambda: nn.Linear(6, 10)], ids=["quantised", "bias"])
def test_a_fresh_adapter_on_a_quantised_layer_or_with_a_bias_is_its_own_reference(layer: Callable[[], Any]) -> None:
    base = nn.Sequential(layer())
    base.config = None  # type: ignore[assignment]
    model = add_lora(base, LoRAConfig(r=2, target_modules=["0"], lora_bias=isinstance(base[0], nn.Linear)))
    x = torch.randn(3, 6)
    with torch.no_grad(), model.adapters_disabled():
        alone = model(x)
    reference = Reference(model.eval())
    with torch.no_grad():
        *_, last = (p for p in model.parameters() if p.requires_grad)
        last.fill_(0.5)
        changed = model(x)
        assert not torch.allclose(changed, alone)
        assert torch.equal(reference(x), alone)
        assert "ref" not in model.peft_config
        trained = Reference(model)
        last.zero_()
        torch.testing.assert_close(trained(x), changed)  # a copy, of one that was trained before


def test_a_scaling_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALINGS, "cube", Scaling("cube", lambda a, r: a / r ** (1 / 3), "alpha / cbrt(r)", "use_cube"))
    model = add_lora(network("linear"), config_of("linear", "lora", r=8, other={"use_cube": True}))
    with torch.no_grad():
        weight_of(model).lora_B.fill_(0.5)
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=network("linear"))
    assert weight_of(again).scaling == pytest.approx(1.5)
    assert torch.equal(again(example("linear")), model(example("linear")))
    assert "unknown-keys" not in {finding.code for finding in inspect_adapter(tmp_path).findings}
    with pytest.raises(ConfigError, match="use_cube='yes', but it is True or False"):
        LoRAConfig(other={"use_cube": "yes"})
    with pytest.raises(ConfigError, match="use_rslora=True and use_cube=True exclude each other: choose one scaling"):
        LoRAConfig(use_rslora=True, other={"use_cube": True})


# --- nobody else knows --------------------------------------------------------------------------------------------

_NAMES = "|".join({*ADAPTERS, *KINDS})
FORBIDDEN = {
    "a formula or its tensors": re.compile(r"dora|magnitude(?!_prune)", re.IGNORECASE),
    "a variant's class": re.compile(r"\b(isinstance|type)\(.*\b(LoRA|DoRA|Saved|Tokens)\b"),
    "a role or a kind by its name": re.compile(rf"\b(role|kind|attribute) (==|!=|in|not in) .*[\"']({_NAMES})[\"']"),
}
# The switch is a key of PEFT's config, so it is a field; what else would name the formula is in variants/.
ALLOWED = {("config/keys.py", "    use_dora: bool = False")}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nobody_outside_of_the_variants_names(what: str) -> None:
    files = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".md", ".txt", ".jinja")]
    lines = [
        (place, line)
        for place, path in sorted((p.relative_to(PACKAGE).as_posix(), p) for p in files)
        if not place.startswith("variants/")
        for line in path.read_text().splitlines()
    ]
    assert [each for each in lines if FORBIDDEN[what].search(each[1]) and each not in ALLOWED] == []
