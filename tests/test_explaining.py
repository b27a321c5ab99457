"""Suggested ranks explain what a full decomposition of the layers' inputs says, and leave the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAModel, suggest_rank
from hf_lora.errors import ArgumentError, TargetError

from .cases import move
from .peek import Sketch
from .tiny import HIDDEN, inputs, tiny


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    found = []
    for seed in range(count):
        ids = torch.randint(4, 48, (2, 7), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def collected(
    model: nn.Module, name: str, data: list[dict[str, torch.Tensor]], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """All inputs of a layer at positions that count, in float64; mask: which those are, unless the attended ones."""
    rows: list[torch.Tensor] = []
    for batch in data:
        counts = (batch["attention_mask"] if mask is None else mask).bool()
        keep = lambda _, args, counts=counts: rows.append(args[0][counts].double())  # noqa: E731
        hook = model.get_submodule(name).register_forward_pre_hook(keep)
        with torch.no_grad():
            model(**batch)
        hook.remove()
    return torch.cat(rows)


def _shares(rows: torch.Tensor) -> torch.Tensor:
    squares = torch.linalg.svdvals(rows).square()
    return squares.cumsum(0) / squares.sum()


def test_each_layers_shares_are_those_of_a_full_decomposition() -> None:
    model, data = tiny("llama", noisy=True), batches()
    found = suggest_rank(model, data, ranks=(2, 4, 8))
    assert len(found.layers) == 14
    for row in found.layers:
        want = _shares(collected(model, row.layer, data))
        assert row.positions == 36
        for rank in (1, 2, 4, 8):
            assert row.at(rank) == pytest.approx(float(want[rank - 1]), abs=1e-3)
        wanted = int((want < 0.8).sum()) + 1
        assert found.rank_pattern(0.8)[row.layer] == min(wanted, 8)


# Where a model of each family has a layer of its encoder, and of its decoder on itself and on the encoder's output.
SIDES = {
    "t5": ("encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.0.SelfAttention.q",
           "decoder.block.1.layer.1.EncDecAttention.k"),
    "bart": ("model.encoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.self_attn.q_proj",
             "model.decoder.layers.0.encoder_attn.k_proj"),
}  # fmt: skip
TEXTS = torch.randint(4, 48, (3, 2, 7), generator=torch.Generator().manual_seed(5))
READ, WRITTEN = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)
READ[0, 3:], WRITTEN[1, 2:] = 0, 0
PAIRED = {"input_ids": TEXTS[0], "attention_mask": READ}
# What a batch says of the decoder: which positions count there.
OF_DECODER = {
    "labels": ({"labels": TEXTS[1].where(WRITTEN.bool(), torch.tensor(-100))}, WRITTEN),
    "a mask": (
        {"decoder_input_ids": TEXTS[1], "decoder_attention_mask": WRITTEN, "labels": TEXTS[2]}, WRITTEN,
    ),
    "inputs alone": ({"decoder_input_ids": TEXTS[1]}, torch.ones(2, 7)),
}  # fmt: skip


@pytest.mark.parametrize("said", OF_DECODER)
@pytest.mark.parametrize("name", SIDES)
def test_an_encoders_mask_counts_in_the_encoder_and_where_its_output_is_read_alone(name: str, said: str) -> None:
    batch, written = {**PAIRED, **OF_DECODER[said][0]}, OF_DECODER[said][1]
    model = tiny(name, noisy=True)
    found = {row.layer: row for row in suggest_rank(model, [batch], target_modules=list(SIDES[name])).layers}
    eva = LoRAConfig(r=2, target_modules=list(SIDES[name]), init_lora_weights="eva", eva_config={"rho": 1})
    begun = LoRAModel.from_model(tiny(name, noisy=True), eva, data=[batch])
    for layer, mask, other in zip(SIDES[name], (READ, written, READ), (written, READ, written), strict=True):
        rows, wrong = (collected(model, layer, [batch], each) for each in (mask, other))
        shares, not_those = (_shares(each)[:4].tolist() for each in (rows, wrong))
        assert found[layer].positions == len(rows)
        assert found[layer].shares[:4] == pytest.approx(shares, abs=1e-3)
        assert found[layer].shares[:4] != pytest.approx(not_those, abs=3e-3)
        adapter = next(each.adapter for each in begun._lora.carried("default") if each.module == layer)
        spanned = torch.linalg.qr(adapter.lora_A.detach().double().mT).Q
        main = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[: len(adapter.lora_A)]
        assert (main @ spanned).norm().square() == pytest.approx(len(main), abs=1e-3)


def test_a_sketch_narrower_than_the_rows_finds_their_leading_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=generator)).Q
    rows = torch.randn(400, 60, generator=generator) * 0.7 ** torch.arange(60) @ basis.mT
    sketch = Sketch(6)
    for part in rows.split(90):
        sketch.update(part)
    squares = torch.linalg.svdvals(rows.double()).square()
    assert sketch.sums.shape == (60, 24)
    assert sketch.shares() == pytest.approx((squares / squares.sum())[:6], rel=1e-3)
    assert sketch.total == pytest.approx(float(squares.sum()), rel=1e-5)


def test_ranks_go_into_a_config_and_are_what_the_adapter_has() -> None:
    found = suggest_rank(tiny("llama", noisy=True), batches(), ranks=(4, 8))
    pattern = found.rank_pattern(0.9, most=6)
    assert {*pattern.values()} <= {*range(1, 7)}
    assert len({*pattern.values()}) > 1
    config = LoRAConfig(target_modules="all-linear", rank_pattern=pattern)
    model = LoRAModel.from_model(tiny("llama"), config)
    for each in model._lora.carried("default"):
        assert each.adapter.lora_A.shape[0] == pattern[each.module]


def test_rows_of_a_dataset_are_computed_one_by_one_and_columns_of_no_use_are_left_out() -> None:
    model = tiny("llama", noisy=True)
    rows = [{"input_ids": b["input_ids"][i].tolist(), "text": "x"} for b in batches() for i in (0, 1)]
    whole = [{"input_ids": batch["input_ids"]} for batch in batches()]
    by_row, by_batch = (suggest_rank(model, data, ranks=(4,)) for data in (rows, whole))
    for one, other in zip(by_row.layers, by_batch.layers, strict=True):
        assert one.positions == other.positions == 42
        assert one.shares == pytest.approx(other.shares, abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "vit"])
def test_other_architectures_show_all_of_their_linear_layers(name: str) -> None:
    found = suggest_rank(tiny(name, noisy=True), [inputs(name)], ranks=(4, 64))
    assert not found.left
    assert all(row.at(64) == pytest.approx(1.0, abs=1e-4) for row in found.layers)
    assert all(row.limit <= 2 * HIDDEN for row in found.layers)


def test_the_model_stays_as_it_was_and_its_adapters_are_left_out() -> None:
    model = LoRAModel.from_model(tiny("llama", noisy=True), LoRAConfig(r=2)).train()
    move(model)
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = suggest_rank(model, batches(), ranks=(4,))
    want = suggest_rank(tiny("llama", noisy=True), batches(), ranks=(4,))
    assert [row.shares for row in found.layers] == [row.shares for row in want.layers]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.active_adapters() == ["default"]


def test_the_table_has_a_line_for_layers_that_differ_in_numbers() -> None:
    lines = str(suggest_rank(tiny("llama", noisy=True), batches(), ranks=(4, 8))).splitlines()
    assert lines[0].split() == ["layer", "layers", "r=4", "r=8", "rank", "for", "90%"]
    assert len(lines) == 8
    assert lines[1].startswith("model.layers.*.")
    assert lines[1].split()[1] == "2"


def test_layers_that_are_never_called_are_told() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.a(x)

    found = suggest_rank(Half(), [torch.randn(3, 4)], target_modules=["a", "b"], ranks=(2,))
    assert found.left == ("b",)
    assert "not seen: b" in str(found)
    with pytest.raises(ArgumentError, match="shows nothing of b"):
        suggest_rank(Half(), [torch.randn(3, 4)], target_modules=["b"])


def test_a_convolution_whose_inputs_are_no_rows_is_told_as_not_seen() -> None:
    net = nn.Sequential(nn.Conv1d(3, 5, 2), nn.Linear(7, 2))
    found = suggest_rank(net, [torch.randn(4, 3, 8)], target_modules=["0", "1"], ranks=(2,))
    assert (found.left, [each.layer for each in found.layers]) == (("0",), ["1"])


def test_what_cannot_be_is_refused() -> None:
    model = tiny("llama")
    found = suggest_rank(model, batches(1), target_modules=["q_proj"], ranks=(4,))
    for arguments, told in (({"share": 0}, "a share"), ({"share": 1.5}, "a share"), ({"most": 5}, "up to 4")):
        with pytest.raises(ArgumentError, match=told):
            found.rank_pattern(**arguments)
    with pytest.raises(ArgumentError, match="positive integers"):
        suggest_rank(model, batches(1), ranks=(0,))
    with pytest.raises(ArgumentError, match="positive integers"):
        suggest_rank(model, batches(1), ranks=4)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="labels='x', which is no tensor"):
        suggest_rank(model, [{"input_ids": [1, 2], "labels": "x"}])
    with pytest.raises(ArgumentError, match=r"nn\.Module"):
        suggest_rank("name", batches(1))  # type: ignore[arg-type]
    with pytest.raises(TargetError):
        suggest_rank(model, batches(1), target_modules=["nothing"])
    with pytest.raises(ArgumentError, match="shows nothing"):
        suggest_rank(model, [])
