"""An adapter of a full fine-tune holds the best factors of each change, and in full what has no factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_lora import LoRAConfig, LoRAModel, extract
from hf_lora.errors import ArgumentError, ModelError

from .quantising import PACKED, is_here
from .tiny import floats, inputs, tiny


def tuned(name: str, only: str = "", scale: float = 0.05, **settings: Any) -> nn.Module:
    """A copy of a tiny model whose parameters (those with a word in their names) moved in every direction."""
    model, generator = tiny(name, noisy=True, **settings), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if only in key:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def outputs(model: nn.Module, name: str) -> list[torch.Tensor]:
    with torch.no_grad():
        return floats(model(**inputs(name)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "vit", "mixtral", "gpt_oss"])
def test_all_of_the_energy_computes_what_the_fine_tune_does_also_after_saving(name: str, tmp_path: Path) -> None:
    other = tuned(name)
    report = extract(tiny(name, noisy=True), other, energy=1.0)
    want = outputs(other, name)
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(outputs(report.model, name), want, strict=True))
    report.model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=tiny(name, noisy=True))
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(outputs(again, name), want, strict=True))
    with report.model.adapters_disabled():
        pristine = outputs(tiny(name, noisy=True), name)
        assert all(torch.equal(a, b) for a, b in zip(outputs(report.model, name), pristine, strict=True))


def test_each_change_becomes_its_best_approximation_and_the_report_says_what_is_lost() -> None:
    base, other = tiny("llama", noisy=True), tuned("llama", "proj")
    report = extract(base, other, rank=2)
    assert report.model.peft_config["default"].modules_to_save is None
    for row in report.layers:
        change = other.get_submodule(row.layer).weight - tiny("llama", noisy=True).get_submodule(row.layer).weight
        u, s, vh = torch.linalg.svd(change.detach().double(), full_matrices=False)
        adapter = report.model.get_submodule(row.layer).carried("default")["weight"]
        made = adapter.scaling * adapter.lora_B.double() @ adapter.lora_A.double()
        assert torch.allclose(made, (u[:, :2] * s[:2]) @ vh[:2], atol=1e-6)
        assert row.error == pytest.approx(float((s[2:].square().sum() / s.square().sum()).sqrt()), rel=1e-4)


def test_only_what_changed_is_adapted_and_energies_give_ranks_of_their_own() -> None:
    base, other = tiny("llama", noisy=True), tiny("llama", noisy=True)
    with torch.no_grad():
        q, k = (getattr(other.model.layers[1].self_attn, f"{each}_proj").weight for each in "qk")
        q += torch.outer(torch.randn(len(q)), torch.randn(q.shape[1]))
        k += torch.randn(k.shape)
        other.model.norm.weight += 1
    report = extract(base, other, energy=0.999999)
    ranks = {row.layer.rpartition(".")[2]: row.rank for row in report.layers}
    assert ranks["q_proj"] == 1 < ranks["k_proj"]
    assert len(report.layers) == 2
    config = report.model.peft_config["default"]
    assert (config.modules_to_save, config.bias) == (["model.norm"], "none") or config.modules_to_save == ["norm"]
    assert torch.allclose(outputs(report.model, "llama")[0], outputs(other, "llama")[0], atol=1e-3)


def test_what_cannot_be_extracted_is_refused_with_the_base_unchanged() -> None:
    base = tiny("llama", noisy=True)
    with pytest.raises(ArgumentError, match="nothing to extract"):
        extract(base, tiny("llama", noisy=True), rank=2)
    with pytest.raises(ArgumentError, match="give one of them"):
        extract(base, tuned("llama"))
    with pytest.raises(ModelError, match="not of one kind"):
        extract(base, tiny("gpt2"), rank=2)
    with pytest.raises(ArgumentError, match=r"only model\.norm\.weight"):
        extract(base, tuned("llama", "model.norm"), rank=2)
    with pytest.raises(ModelError, match="carries adapters"):
        extract(base, LoRAModel.from_model(tuned("llama"), LoRAConfig()), rank=2)
    assert type(base) is type(tiny("llama"))


def with_buffer(model: nn.Module) -> nn.Module:
    model.model.norm.register_buffer("seen", torch.ones(1))
    return model


def with_value(value: float, *names: str) -> nn.Module:
    model = tuned("llama")
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).view(-1)[0] = value
    return model


@pytest.mark.parametrize(
    ("base", "other", "told"),
    [
        (lambda: with_buffer(tiny("llama")), lambda: tuned("llama"), r"model\.norm\.seen"),
        (lambda: tiny("llama"), lambda: with_buffer(tuned("llama")), r"model\.norm\.seen"),
        (lambda: tiny("llama"), lambda: tiny("llama", vocab_size=60), r"resize_token_embeddings\(60\)"),
        (lambda: tiny("llama"), lambda: tuned("llama", tie_word_embeddings=True), "tied to"),
        (lambda: tiny("llama"), lambda: with_value(float("nan"), "model.norm.weight"), r"norm\.weight of the tuned"),
        (lambda: tiny("siglip"), lambda: tuned("siglip"), "logit_"),
        (lambda: tiny("wav2vec2"), lambda: tuned("wav2vec2", "parametrizations"), "weight norm"),
    ],
    ids=["buffer", "tuned-buffer", "vocabulary", "tied", "nan", "root", "computed"],
)
def test_models_that_are_not_alike_are_told_by_name(base: Any, other: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        extract(base(), other(), rank=2)


def test_new_heads_and_resized_tables_are_saved_in_full_and_come_back(tmp_path: Path) -> None:
    tiny("bert", "BertModel", noisy=True).save_pretrained(tmp_path / "base")
    ids = torch.tensor([[50, 59, 3, 55]])

    def loaded(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3).eval()
        model.resize_token_embeddings(60, mean_resizing=False)
        return model

    other = loaded(1)
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight += 0.1
        want = other(input_ids=ids).logits
    report = extract(loaded(2), other, rank=1)
    assert set(report.whole) == {"classifier", "bert.embeddings.word_embeddings"}
    assert "in full: bert.embeddings.word_embeddings, classifier (1,011 parameters)" in str(report)
    report.model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="resized from 48 to 60"):
        again = LoRAModel.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, want, atol=1e-5)


def test_changes_finer_than_the_bases_dtype_are_seen() -> None:
    base, other = tiny("llama", noisy=True).bfloat16(), tiny("llama", noisy=True).bfloat16().float()
    with torch.no_grad():
        other.model.norm.weight += 1e-4
        other.model.layers[0].mlp.up_proj.weight += 1e-4
    report = extract(base, other, rank=1)
    assert set(report.whole) == {"model.norm"}
    (copy,) = (each.tensors()["value"] for each in report.model.model.norm.carried("default").values())
    assert torch.equal(copy, other.model.norm.weight)


def test_other_settings_than_the_bases_are_told() -> None:
    other = tuned("llama", rms_norm_eps=0.5)
    with pytest.warns(UserWarning, match=r"rms_norm_eps=0\.5 \(base: 1e-06\)"):
        extract(tiny("llama", noisy=True), other, rank=2)


@pytest.mark.skipif(not is_here("bitsandbytes"), reason="bitsandbytes is not installed")
def test_quantised_models_are_refused() -> None:
    base = nn.Sequential(PACKED["bnb-int8"](nn.Linear(8, 8)))
    with pytest.raises(ModelError, match="Load both models in float"):
        extract(base, nn.Sequential(nn.Linear(8, 8)), rank=2)


def test_convolutions_and_embeddings_have_factors_and_grouped_ones_are_saved_whole() -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        parts = (nn.Embedding(9, 4), nn.Conv1d(4, 6, 3), nn.Conv1d(6, 6, 3, groups=2), nn.BatchNorm1d(6))
        return nn.ModuleDict({"net": nn.Sequential(*parts)}).eval()

    def run(model: nn.Module) -> torch.Tensor:
        parts = model["net"]
        return parts[3](parts[2](parts[1](parts[0](torch.arange(9)).T[None])))

    base, other = net(1), net(2)
    other["net"][3].running_mean += 1
    report = extract(base, other, energy=1.0)
    assert [row.layer for row in report.layers] == ["net.0", "net.1"]
    assert torch.allclose(run(report.model), run(other), atol=1e-5)
