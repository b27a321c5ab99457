"""Quantised bases: how a packed weight is read and packed, what variants make of it, and merging into it.

The laws run over the same layers (`tests/cases.py`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig

from hf_lora import LoRAConfig, LoRAModel, add_lora
from hf_lora.errors import AdapterStateError, ArgumentError, BaseMismatchError, MergeError, MissingExtraError

from .cases import LAYER, Named, adapted, config_of, example, move, network, readable
from .peek import KINDS, base_of, card_parameters, kind_of, lora_scalars, rounding
from .quantising import PACKED, bits_of, is_here, read, same_bits
from .tiny import IDS, tiny

formats = pytest.mark.parametrize("name", PACKED)
FEW = {"nf4", "bnb-int8", "torchao-int8", "torchao-float8", "quanto-int4"}
some_formats = pytest.mark.parametrize("name", [name for name in PACKED if name in FEW])
bnb = pytest.mark.skipif(not is_here("bitsandbytes"), reason="bitsandbytes is not installed")


def _layer(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    layer: Any = network(name, dtype).layer
    return layer, kind_of(layer)


def _effect(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the base that the library reads, what a case's plain LoRA makes of it, and B A, in float64."""
    adapter = model.layer.adapters["default"]["weight"]
    base = read(model.layer).double()
    change = adapter.scaling * adapter.lora_B.detach().double() @ adapter.lora_A.detach().double()
    return base, base + change, change


def _small(name: str, scale: float = 0.02) -> Any:
    """Return a case with an adapter that changes the weight by a share of it, as training does."""
    model = adapted(name, "lora")
    base, _, change = _effect(model)
    with torch.no_grad():
        model.layer.adapters["default"]["weight"].lora_B.mul_(scale * base.norm() / change.norm())
    return model


# --- reading and packing --------------------------------------------------------------------------------------------


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_is_the_grid_that_its_library_reads_and_is_put_together_again(
    name: str, dtype: torch.dtype
) -> None:
    layer, kind = _layer(name, dtype)
    grid, want = kind.grid(layer, layer.weight), read(layer).float()
    assert torch.equal(kind.numbers(layer, layer.weight).float(), want)
    close = 1e-6 if dtype is torch.float32 else 2**-7  # the library computes in the weight's dtype
    assert (grid.levels[grid.index] * grid.scale + grid.shift - want).abs().max() <= close * want.abs().max()
    assert (grid.levels.diff() > 0).sum() >= len(grid.levels) - 2  # of FP4, two are zero
    again = kind.on_grid(layer, layer.weight, grid.index)
    assert type(again) is type(layer.weight)
    assert same_bits(bits_of({"": again}), bits_of({"": layer.weight}))
    moved = torch.where(grid.index > 0, grid.index - 1, grid.index)
    other = kind.on_grid(layer, layer.weight, moved)
    assert torch.equal(kind.grid(layer, other).index, moved) or name == "fp4"  # which has two zeros
    layer.weight = other
    assert (layer(example(name, dtype)).float() - network(name, dtype)(example(name, dtype)).float()).abs().max() > 1e-3


@formats
def test_packing_is_what_the_library_does_with_the_same_settings(name: str) -> None:
    layer, kind = _layer(name)
    torch.manual_seed(5)
    values = 0.1 * torch.randn(layer.out_features, layer.in_features)
    source = nn.Linear(layer.in_features, layer.out_features)
    source.weight.data.copy_(values)
    made = kind.packed(layer, layer.weight, values)
    assert type(made) is type(layer.weight)
    assert not made.requires_grad
    assert torch.equal(kind.numbers(layer, made), read(PACKED[name](source)))


@bnb
def test_a_weight_that_a_forward_packed_for_the_cpu_reads_the_same() -> None:
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    for name in ("nf4", "nf4-double"):
        layer, kind = _layer(name)
        before, grid = kind.numbers(layer, layer.weight), kind.grid(layer, layer.weight)
        state = layer.weight.quant_state
        layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(layer.weight.data, state)
        assert layer.weight.quant_state.packing_format_for_cpu
        again = kind.grid(layer, layer.weight)
        assert torch.equal(again.index, grid.index)
        # The library rounds the scales to bfloat16 then.
        torch.testing.assert_close(kind.numbers(layer, layer.weight), before, rtol=2**-8, atol=0)


@bnb
def test_eight_bits_are_read_the_same_before_and_after_a_forward() -> None:
    layer, kind = _layer("bnb-int8")
    before = kind.numbers(layer, layer.weight)
    layer(example("bnb-int8"))
    assert layer.weight.SCB is None, "the layer takes the scales, else this test proves nothing"
    assert torch.equal(kind.numbers(layer, layer.weight), before)


# --- merging --------------------------------------------------------------------------------------------------------


@formats
def test_a_merge_that_packs_again_is_the_librarys_and_unmerging_gives_the_same_tensor(name: str) -> None:
    model, x = adapted(name, "lora"), example(name)
    cls, own, live = type(model.layer), model.layer.weight, model(x)
    before = bits_of(model.state_dict())
    _, want, _ = _effect(model)
    source = nn.Linear(64, 32)
    source.weight.data.copy_(want.float())
    model.merge_adapter(requantize=True)
    assert type(model.layer) is cls
    merged = bits_of({"w": model.layer.weight})
    apart = (read(model.layer) - read(PACKED[name](source))).abs() > 1e-5  # but for a value half way between two
    assert apart.float().mean() < 5e-3
    model(x)
    model.unmerge_adapter()
    assert model.layer.weight is own
    assert torch.equal(model(x), live)
    assert same_bits(bits_of(model.state_dict()), before)
    plain = model.merge_and_unload(requantize=True)
    assert type(plain.layer).__module__.partition(".")[0] != "hf_lora"
    assert same_bits(bits_of({"w": plain.layer.weight}), merged)
    assert torch.isfinite(plain(x)).all()


@some_formats
@pytest.mark.parametrize("requantize", [False, True])
def test_the_report_is_what_packing_takes_of_the_effect(name: str, requantize: bool) -> None:
    model = adapted(name, "lora")
    report = model.merge_report(requantize=requantize)
    _, want, change = _effect(model)
    model.merge_adapter(requantize=requantize)
    stored = read(model.layer) if requantize else model.layer.weight.detach()
    lost = float((stored.double() - want).norm() / change.norm())
    assert report.losses == {"layer.weight": pytest.approx(lost, rel=1e-3, abs=1e-6)}
    assert report.total_kept is None
    assert lost < 1e-6 if not requantize else lost > 1e-3


@some_formats
def test_a_packing_that_loses_more_than_allowed_is_refused_with_nothing_merged(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = _small(name), example(name)
    live, own = model(x), model.layer.weight
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"verify=0\.001.*calibration=batches"):
            merge(requantize=True, verify=1e-3)
    assert model.layer.weight is own
    assert torch.equal(model(x), live)
    with caplog.at_level(logging.WARNING, "hf_lora"):
        model.merge_adapter(requantize=True)
    assert "% of the effect" in caplog.text
    model.unmerge_adapter()
    model.merge_adapter(verify=1e-3)


def test_settings_without_effect_and_wrong_forms_are_refused() -> None:
    plain = adapted("linear", "lora")
    for call, match in (
        (lambda: plain.merge_adapter(requantize=True), "no adapted layer is quantised"),
        (lambda: plain.merge_and_unload(calibration=[torch.ones(1, 6)]), "requantize=True"),
    ):
        with pytest.raises(ArgumentError, match=match):
            call()
    name = next(iter(PACKED), None)
    if name is None:
        return
    model = adapted(name, "lora")
    refused: dict[str, tuple[type[Exception], dict[str, Any]]] = {
        "leave one of them out": (ArgumentError, {"requantize": True, "dtype": torch.float32}),
        "which requantize=True asks for": (ArgumentError, {"calibration": [example(name)]}),
        "holds no batch": (ArgumentError, {"requantize": True, "calibration": []}),
        "layer: .*not finite": (MergeError, {"requantize": True, "calibration": [torch.full((1, 64), torch.nan)]}),
        "dtype=torch.int8": (MergeError, {"dtype": torch.int8}),
    }
    for match, (error, given) in refused.items():
        with pytest.raises(error, match=match):
            model.merge_and_unload(**given)
    model.merge_adapter()
    for late in ({"requantize": True}, {"dtype": torch.float32}):
        with pytest.raises(AdapterStateError, match="unmerge_adapter"):
            model.merge_and_unload(**late)
    assert type(model.merge_and_unload().layer) is nn.Linear


@some_formats
def test_adapters_merge_on_top_of_others_in_either_form(name: str) -> None:
    x = example(name)
    for requantize in (False, True):
        model = adapted(name, "lora")
        model.add_adapter(LoRAConfig(r=2, **LAYER), "b")  # type: ignore[arg-type]
        model.set_adapter("b")
        move(model, seed=4)
        model.set_adapter(["default", "b"])
        live = model(x)
        model.merge_adapter(["default", "b"], requantize=requantize)
        want = model(x)
        model.unmerge_adapter()
        model.merge_adapter("default", requantize=requantize)
        model.merge_adapter("b", requantize=requantize)
        assert torch.equal(model(x), want)
        model.unmerge_adapter()
        assert torch.equal(model(x), live)


# --- error feedback -------------------------------------------------------------------------------------------------


def test_feedback_with_inputs_that_have_nothing_in_common_rounds_to_the_nearest() -> None:
    torch.manual_seed(0)
    weight, levels = torch.randn(5, 300), torch.linspace(-2, 2, 9)
    scale, shift = 0.5 + torch.rand(5, 1), 0.1 * torch.randn(5, 300)
    index = rounding.fed_back(weight, torch.diag(torch.rand(300) + 0.5), levels, scale, shift)
    assert torch.equal(index, rounding.nearest((weight - shift) / scale, levels))
    every = (levels * scale[..., None] + shift[..., None] - weight[..., None]).abs()
    assert torch.equal(index, every.argmin(-1))


@pytest.mark.parametrize("block", [128, 5])
def test_feedback_is_the_recursion_of_the_paper(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference removes one column after another from the inverse, as OBQ does, without a Cholesky factor."""
    monkeypatch.setattr(rounding, "_BLOCK", block)
    torch.manual_seed(1)
    x = torch.randn(40, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    weight, levels = torch.randn(7, 12), torch.arange(-3.0, 4.0) / 2
    moments = x.T @ x
    order = moments.diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(moments + 0.01 * moments.diagonal().mean() * torch.eye(12, dtype=torch.float64))
    w, want = weight.double().clone(), torch.zeros(7, 12, dtype=torch.int64)
    for j in order.tolist():
        want[:, j] = (w[:, j, None] - levels.double()).abs().argmin(-1)
        w -= ((w[:, j] - levels.double()[want[:, j]]) / inverse[j, j])[:, None] * inverse[j]
        inverse -= inverse[:, j, None] @ inverse[j, None] / inverse[j, j]
    assert torch.equal(rounding.fed_back(weight, moments.float(), levels, torch.ones(1, 1), 0.0), want)
    assert not torch.equal(want, rounding.nearest(weight, levels))


@formats
def test_feedback_keeps_more_of_the_outputs_and_says_how_much(name: str) -> None:
    model = _small(name)
    torch.manual_seed(7)
    mixing = torch.randn(64, 64)
    batches = [torch.randn(8, 64) @ mixing for _ in range(16)]
    x = torch.cat(batches).double()
    base, want, change = _effect(model)
    report = model.merge_report(requantize=True, calibration=batches)
    nearest = _nearest(model)
    plain = model.merge_and_unload(requantize=True, calibration=batches)
    kept, effect = report.kept["layer.weight"], (x @ change.T).square().sum()
    assert report.total_kept == kept
    for stored, share, lost in (
        (nearest, kept.nearest, kept.nearest_lost),
        (read(plain.layer), kept.fed_back, kept.lost),
    ):
        along = ((x @ (stored.double() - base).T) * (x @ change.T)).sum() / effect
        off = ((x @ (stored.double() - want).T).square().sum() / effect).sqrt()
        assert share == pytest.approx(float(along), rel=2e-3, abs=2e-3)
        assert lost == pytest.approx(float(off), rel=2e-3, abs=2e-3)
    assert report.losses["layer.weight"] == kept.lost
    assert kept.lost < 0.95 * kept.nearest_lost


def _nearest(model: Any) -> Tensor:
    """Return what the layer's weight reads while the adapter is merged and packed."""
    model.merge_adapter(requantize=True)
    found = read(model.layer)
    model.unmerge_adapter()
    return found


def test_layers_that_do_not_fit_at_once_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    if "nf4" not in PACKED:
        pytest.skip("bitsandbytes is not installed")
    found = []
    for most in (1 << 30, 1):
        monkeypatch.setattr("hf_lora.model.quantised._MOST_MOMENTS", most)
        torch.manual_seed(0)
        net = nn.Sequential(*(PACKED["nf4"](nn.Linear(32, 32)) for _ in range(3)))
        model = add_lora(net, LoRAConfig(r=2, target_modules=["0", "1", "2"]))
        move(model)
        model.train()
        found.append(
            bits_of(model.merge_and_unload(requantize=True, calibration=[torch.ones(4, 32).cumsum(1)]).state_dict())
        )
        assert all(module.training for module in net.modules())
    assert same_bits(*found)


# --- what is told of it ---------------------------------------------------------------------------------------------


@formats
def test_counts_are_of_the_numbers_that_a_packed_weight_stands_for(name: str) -> None:
    model, plain = adapted(name, "lora"), add_lora(readable(name), config_of(name, "lora"))
    assert model.get_nb_trainable_parameters() == plain.get_nb_trainable_parameters()
    assert f"of the model's {sum(p.numel() for p in readable(name).parameters()):,d}" in card_parameters(model, {})


@formats
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_trackers_get_norms_relative_to_the_numbers_of_a_packed_weight(name: str, variant: str) -> None:
    model = adapted(name, variant)
    scalars = lora_scalars(model)
    rows = read(model.layer).double().norm(dim=1)
    assert scalars["lora/default/relative_norm/layer"] == pytest.approx(
        scalars["lora/default/norm/layer"] / float(rows.norm()), rel=1e-5
    )
    if variant == "dora":
        lengths = model.layer.adapters["default"]["weight"].magnitude.detach().double()
        wanted = float((lengths / rows - 1).abs().mean())
        assert scalars["lora/default/magnitude/layer"] == pytest.approx(wanted, rel=1e-5, abs=1e-7)


# --- models of Transformers -----------------------------------------------------------------------------------------


def _settings() -> dict[str, Any]:
    found: dict[str, Any] = {}
    if is_here("bitsandbytes"):
        found["nf4"] = lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        found["int8"] = lambda: BitsAndBytesConfig(load_in_8bit=True)
    if is_here("torchao"):
        found["torchao"] = _torchao_int8
    if is_here("optimum.quanto"):
        found["quanto"] = lambda: QuantoConfig(weights="int4")
    return found


def _torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(quant_type=Int8WeightOnlyConfig())


SETTINGS = _settings()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layers every library takes."""
    path = tmp_path_factory.mktemp("base")
    tiny("llama", hidden_size=64, intermediate_size=128, num_key_value_heads=2, head_dim=32).save_pretrained(path)
    return path


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_quantised_base_merges_into_a_plain_model_that_saves_and_loads(
    how: str, dtype: torch.dtype | None, base: Path, tmp_path: Path
) -> None:
    config = LoRAConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, use_dora=True)
    model = LoRAModel.from_pretrained(base, config, quantization_config=SETTINGS[how]()).eval()
    with torch.no_grad():
        live = model(IDS).logits
    plain = model.merge_and_unload(dtype=dtype)
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert {p.dtype for p in plain.parameters()} == {dtype or torch.float32}
    assert not getattr(plain, "is_quantized", False)
    plain.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not hasattr(again.config, "quantization_config")
    assert again.dtype is (dtype or torch.float32)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, plain(IDS).logits)
        half = how in ("int8", "nf4") or dtype is torch.bfloat16  # some CPUs compute NF4 in bfloat16
        tolerance = 0.03 if half else 1e-3
        assert (plain(IDS).logits.float() - live).abs().max() < tolerance * live.abs().max()


@pytest.mark.parametrize("how", [h for h in SETTINGS if h != "quanto"])  # which Transformers does not save
def test_a_base_that_is_packed_again_saves_and_loads_as_a_quantised_one(how: str, base: Path, tmp_path: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = LoRAModel.from_pretrained(base, config, quantization_config=SETTINGS[how]()).eval()
    batches = [{"input_ids": IDS}]
    report = model.merge_report(requantize=True, calibration=batches)
    assert len(report.kept) == 4
    assert report.total_kept is not None
    assert report.total_kept.lost < report.total_kept.nearest_lost
    plain = model.merge_and_unload(requantize=True, calibration=batches)
    with torch.no_grad():
        want = plain(IDS).logits
    plain.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    assert again.is_quantized
    with torch.no_grad():
        assert (again(IDS).logits - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("requantize", [False, True])
@pytest.mark.parametrize("how", [h for h in SETTINGS if h != "quanto"])
def test_a_checkpoint_that_is_quantised_itself_merges_saves_and_loads(
    how: str, requantize: bool, base: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"quantization_config": SETTINGS[how](), "device_map": {"": "cpu"}}
    AutoModelForCausalLM.from_pretrained(base, **given).save_pretrained(tmp_path / "packed")
    config = LoRAConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = LoRAModel.from_pretrained(tmp_path / "packed", config).eval()
    plain = model.merge_and_unload(requantize=requantize)
    with torch.no_grad():
        want = plain(IDS).logits
        plain.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert getattr(again, "is_quantized", False) is requantize
        assert (again(IDS).logits - want).abs().max() < 0.02 * want.abs().max()


@bnb
def test_padding_says_nothing_of_how_weights_are_rounded(base: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = LoRAModel.from_pretrained(base, config, quantization_config=SETTINGS["int8"]()).eval()
    short, padded = IDS[1:, :2], IDS.clone()
    padded[1, 2:] = 0
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    apart, together = (
        model.merge_report(requantize=True, calibration=batches).total_kept
        for batches in (
            [{"input_ids": IDS[:1]}, lambda net: net(input_ids=short)],
            [{"input_ids": padded, "attention_mask": mask}],
        )
    )
    assert apart is not None
    assert together is not None
    assert together.lost == pytest.approx(apart.lost, rel=0.02)
    assert together.nearest_lost == pytest.approx(apart.nearest_lost, rel=1e-3)


@pytest.mark.parametrize("how", SETTINGS)
def test_a_new_head_stays_in_float_and_trains_on_a_quantised_base(how: str, tmp_path: Path) -> None:
    tiny("bert", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    config, given = LoRAConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"), SETTINGS[how]()
    before = given.to_dict()
    model = LoRAModel.from_pretrained(tmp_path / "base", config, num_labels=3, quantization_config=given).train()
    assert given.to_dict() == before
    assert base_of(type(model.classifier)) is nn.Linear
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert kind_of(query).is_quantised
    model(input_ids=IDS, labels=torch.tensor([2] * len(IDS))).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("classifier" in name for name in trained)
    assert all(p.grad is not None for p in trained.values())
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    again = LoRAModel.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


@bnb
def test_a_start_out_of_a_packed_weight_comes_back_on_that_weight_alone(base: Path, tmp_path: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    model = LoRAModel.from_pretrained(base, config, quantization_config=SETTINGS["nf4"]()).eval()
    adapter = model.model.layers[0].self_attn.q_proj.adapters["default"]["weight"]
    weight = read(model.model.layers[0].self_attn.q_proj)
    u, s, vh = torch.linalg.svd(weight)
    got = adapter.scaling * adapter.lora_B.detach() @ adapter.lora_A.detach()
    torch.testing.assert_close(got, (u[:, :2] * s[:2]) @ vh[:2], atol=1e-5, rtol=1e-3)
    move(model, scale=0.05)
    with torch.no_grad():
        live = model(IDS).logits
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(LoRAModel.from_pretrained(tmp_path).eval()(IDS).logits, live, atol=2e-3)
    for other in (None, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")):
        with pytest.raises(BaseMismatchError, match="other weights"):
            LoRAModel.from_pretrained(tmp_path, quantization_config=other)


def test_a_missing_package_is_an_error_with_its_command(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_quanto.is_optimum_quanto_available", lambda: False)
    with pytest.raises(MissingExtraError, match="pip install optimum-quanto"):
        LoRAModel.from_pretrained(base, LoRAConfig(r=2), quantization_config=QuantoConfig(weights="int8"))


def test_every_readable_kind_says_that_a_weight_elsewhere_cannot_be_read() -> None:
    layer = nn.Linear(4, 4, device="meta")
    for kind in KINDS.values():
        if kind.is_readable:
            with pytest.raises(ValueError, match="offloaded"):
                kind.numbers(layer, layer.weight)


def test_a_layer_that_no_file_knows_keeps_its_own_kind() -> None:
    net = Named(nn.Linear(4, 4))
    net.layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    assert kind_of(net.layer).is_opaque
    assert readable("linear").layer.weight.is_floating_point()


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("how", [h for h in SETTINGS if h != "quanto"])  # which PEFT does not adapt
def test_adapters_on_a_quantised_base_are_pefts_both_ways(
    how: str, variant: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    if how == "torchao" and variant:
        pytest.skip("PEFT has no DoRA on torchao's layers")
    settings: dict[str, Any] = {"quantization_config": SETTINGS[how](), "device_map": {"": "cpu"}}
    config = LoRAConfig(r=2, target_modules=["q_proj", "down_proj"], **variant)
    model = LoRAModel.from_pretrained(base, config, quantization_config=SETTINGS[how]())
    move(model)
    model.save_pretrained(tmp_path / "ours")

    def outputs(net: nn.Module) -> tuple[Tensor, list[Tensor]]:
        net.train()  # in which no library rounds its inputs or scales
        logits = net(input_ids=IDS).logits
        logits.square().sum().backward()
        return logits.detach(), [p.grad for _, p in sorted(net.named_parameters()) if p.grad is not None]

    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, **settings), tmp_path / "ours", is_trainable=True
    )
    want, got = outputs(theirs), outputs(model)
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5)
    assert len(got[1]) == len(want[1])
    sizes = [sorted(float(g.norm()) for g in grads) for grads in (got[1], want[1])]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)
    theirs.save_pretrained(tmp_path / "theirs")
    again = LoRAModel.from_pretrained(tmp_path / "theirs", base_model=str(base), is_trainable=True, **settings)
    torch.testing.assert_close(outputs(again)[0], want[0], rtol=1e-4, atol=1e-5)
