"""A compressed model holds the best factors of each weight, is smaller, trains, is saved and loaded, and adapted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertPreTrainedModel, Trainer, TrainingArguments

from hf_lora import LoRAConfig, LoRAModel, compress, compression_error, load_compressed
from hf_lora.errors import ArgumentError, BaseLoadError, ModelError, TargetError

from .tiny import inputs, tiny


def logits(model: nn.Module, name: str = "llama") -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(name))[0]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_weight_becomes_its_best_approximation_and_the_report_says_what_is_lost(name: str) -> None:
    model, original = tiny(name, noisy=True), tiny(name, noisy=True)
    parameters = sum(p.numel() for p in model.parameters())
    report = compress(model, rank=3)
    assert report.model is model
    assert report.layers
    for row in report.layers:
        layer, weight = model.get_submodule(row.layer), original.get_submodule(row.layer).weight.detach()
        matrix = weight.T if name == "gpt2" else weight
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        assert torch.allclose(layer.weight.double(), (u[:, :3] * s[:3]) @ vh[:3], atol=1e-5)
        assert row.error == pytest.approx(float((s[3:].square().sum() / s.square().sum()).sqrt()), rel=1e-4)
        assert torch.equal(layer.bias, original.get_submodule(row.layer).bias) if name == "gpt2" else layer.bias is None
    saved = sum(row.before - row.after for row in report.layers)
    assert saved > 0
    assert sum(p.numel() for p in model.parameters()) == parameters - saved
    again = compression_error(original, model)
    assert [row.error for row in again.layers] == pytest.approx([row.error for row in report.layers], abs=1e-4)
    assert "all" in str(report)


def test_all_of_the_energy_computes_the_same_and_what_would_not_be_smaller_is_left() -> None:
    model = tiny("llama", noisy=True)
    with torch.no_grad():  # of rank 3, but for one layer
        for module in model.modules():
            if isinstance(module, nn.Linear):
                u, s, vh = torch.linalg.svd(module.weight, full_matrices=False)
                module.weight.copy_((u[:, :3] * s[:3]) @ vh[:3])
        nn.init.normal_(model.model.layers[0].mlp.up_proj.weight)
    want = logits(model)
    report = compress(model, energy=1 - 1e-9)
    assert report.left == ("model.layers.0.mlp.up_proj",)
    assert {row.rank for row in report.layers} == {3}
    assert torch.allclose(logits(model), want, atol=1e-4)


def test_factors_are_tuned_and_saved_and_loaded_as_the_class_that_they_were(tmp_path: Path) -> None:
    model, original = tiny("llama", noisy=True), tiny("llama", noisy=True)
    compress(model, rank=2, target_modules=["up_proj", "q_proj"])
    rows = [{**{k: v[0] for k, v in inputs("llama").items()}, "labels": inputs("llama")["input_ids"][0]}] * 8
    arguments = TrainingArguments(tmp_path / "run", max_steps=8, learning_rate=1e-2, report_to=[], save_strategy="no")
    before = compression_error(original, model).error
    Trainer(model, arguments, train_dataset=rows).train()
    model.eval()
    assert compression_error(original, model).error != before
    model.save_pretrained(tmp_path / "small")
    again = load_compressed(tmp_path / "small").eval()
    assert type(again) is type(model)
    assert torch.equal(logits(again), logits(model))
    headless = load_compressed(tmp_path / "small", auto_class=AutoModel).eval()
    assert torch.equal(logits(headless), model.model(**inputs("llama"))[0])


def test_an_adapter_sits_on_the_factors_and_finds_its_base_again(tmp_path: Path) -> None:
    model = tiny("llama", noisy=True)
    compress(model, rank=3, target_modules="attention")
    model.save_pretrained(tmp_path / "small")
    adapted = LoRAModel.from_pretrained(
        str(tmp_path / "small"), LoRAConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    assert any(name.endswith("q_proj.down") for name in adapted._lora.layers)
    adapted.save_pretrained(tmp_path / "adapter")
    again = LoRAModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(adapted))
    with pytest.raises(ModelError, match="carries adapters"):
        compress(adapted, rank=2)
    plain = adapted.merge_and_unload()
    assert torch.allclose(logits(plain), logits(again), atol=1e-4)


def test_half_precision_and_flags_are_kept() -> None:
    model = tiny("llama", noisy=True).to(torch.bfloat16).requires_grad_(False).train()
    compress(model, rank=2, target_modules=["q_proj"])
    layer = model.model.layers[0].self_attn.q_proj
    assert (layer.up.weight.dtype, layer.down.weight.requires_grad, layer.training) == (torch.bfloat16, False, True)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({}, ArgumentError, "give one of them"),
        ({"rank": 10_000}, ArgumentError, "would be smaller"),
        ({"rank": 2, "target_modules": ["embed_tokens"]}, TargetError, "only linear layers"),
        ({"rank": 2, "target_modules": ["nothing"]}, TargetError, "nothing"),
        ({"rank": 2, "target_modules": ["lm_head"]}, TargetError, "shares its weight"),
    ],
)
def test_what_cannot_be_is_refused_with_the_model_unchanged(
    arguments: dict[str, object], error: type[Exception], told: str
) -> None:
    model = tiny("gpt2" if "lm_head" in str(arguments) else "llama", noisy=True)
    keys = model.state_dict().keys()
    with pytest.raises(error, match=told):
        compress(model, **arguments)
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize(("name", "left"), [("mixtral", "mlp.experts"), ("siglip", "vision_model.head.attention")])
def test_what_a_preset_reaches_besides_linear_layers_is_left_and_told(name: str, left: str) -> None:
    model, before = tiny(name, noisy=True), tiny(name, noisy=True)
    report = compress(model, rank=2)
    kept = [each for each in report.left if left in each]
    assert report.layers
    assert kept
    assert f"left as they are: {report.left[0]}" in str(report)
    assert all(left not in row.layer for row in report.layers)
    there = dict(before.named_parameters())
    assert all(torch.equal(p, there[n]) for n, p in model.named_parameters() if left in n)
    with pytest.raises(TargetError, match=re.escape(kept[0])):
        compress(tiny(name), rank=2, target_modules=[kept[0]])


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj has values that are not finite"):
        compress(model, rank=2)


def test_a_layer_of_a_head_that_another_class_lacks_is_left_out(tmp_path: Path) -> None:
    model = tiny("bert_mlm", noisy=True)
    compress(model, rank=2, target_modules=["query", "cls.predictions.transform.dense"])
    model.save_pretrained(tmp_path)
    other = LoRAModel.from_pretrained(tmp_path, LoRAConfig(r=2, task_type="SEQ_CLS"), num_labels=3).eval()
    with torch.no_grad():
        got = other.bert(**inputs("bert"))[0]
        assert torch.equal(got, model.bert(**inputs("bert"))[0])
    with pytest.raises(ModelError, match="none of the compressed layers"):
        load_compressed(tmp_path, auto_class=BertEmbeddingsOnly)


class BertEmbeddingsOnly(BertPreTrainedModel):
    """A class without any of the layers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = nn.ModuleDict({"pooler": nn.Linear(config.hidden_size, config.hidden_size)})


def test_the_error_is_of_the_weights_alone_and_the_original_has_to_have_them() -> None:
    original, model = tiny("llama", noisy=True, hidden_size=64).bfloat16(), tiny("llama", hidden_size=64, noisy=True)
    model = model.bfloat16()
    report = compress(model, rank=8, target_modules=["q_proj"])
    assert compression_error(original, model).error == pytest.approx(report.error, abs=1e-5)
    for other in (original.model, tiny("llama", noisy=True), tiny("gpt2"), model):
        with pytest.raises(ArgumentError, match=r"model\.layers\.0\.self_attn\.q_proj holds a \(16, 64\) weight"):
            compression_error(other, model)
    adapted = LoRAModel.from_model(model, LoRAConfig(r=2, target_modules=["q_proj.down"], init_lora_weights=False))
    with pytest.raises(ModelError, match="carries adapters"):
        compression_error(original, adapted)
    assert compression_error(original, adapted.merge_and_unload()).error > report.error


def test_other_models_are_no_compressed_ones(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no compressed model"):
        load_compressed(tmp_path)
    with pytest.raises(BaseLoadError):
        load_compressed(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="no compressed layers"):
        compression_error(tiny("llama"), AutoModelForCausalLM.from_pretrained(tmp_path))
