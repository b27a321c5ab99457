"""Training a part: some layers, named modules in full, everything after merging, an adapter on new data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import BertForSequenceClassification

from hf_lora import LoRAConfig, LoRAModel, resolve_targets
from hf_lora.errors import ConfigError, TargetError

from .tiny import tiny
from .trainings import bert, gpt2, same, trainer, weights


def t5(encoder: int, decoder: int) -> Any:
    return tiny("t5", num_layers=encoder, num_decoder_layers=decoder)


def adapted(model: LoRAModel) -> set[str]:
    return {n.split(".adapters.")[0] for n, p in model.named_parameters() if p.requires_grad and "lora_" in n}


def _moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that are not what they were."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("targets", ["auto", ["query", "value"]])
@pytest.mark.parametrize(("layers", "kept"), [([-1], {1}), (-2, {0}), ([-1, 0, 1], {0, 1}), ([1], {1})])
def test_the_last_layers_are_counted_from_the_end(targets: object, layers: object, kept: set[int]) -> None:
    model = bert(target_modules=targets, layers_to_transform=layers)
    every = adapted(bert(target_modules=targets))
    assert adapted(model) == {n for n in every if any(f"layer.{i}." in n for i in kept)} != set()


def test_what_is_saved_names_the_layers_as_peft_does(tmp_path: Path) -> None:
    model = bert(target_modules=["query"], layers_to_transform=[-1], task_type=None)
    model.save_pretrained(tmp_path)
    assert LoRAConfig.from_pretrained(tmp_path).layers_to_transform == [1]
    plain = copy.deepcopy(model).unload()
    theirs = peft.get_peft_model(plain, peft.LoraConfig.from_pretrained(tmp_path))
    assert {n for n, _ in theirs.named_modules() if n.endswith("lora_A")} == {
        "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A"
    }


def test_a_layer_that_there_is_not_is_an_error_with_the_model_unchanged() -> None:
    for layers in ([-3], [0, 2], 7):
        model = bert()
        with pytest.raises(TargetError, match=r"no layers .*2 in bert\.encoder\.layer"):
            model.add_adapter(LoRAConfig(target_modules=["query"], layers_to_transform=layers), "other")
        assert list(model.peft_config) == ["default"]


def test_the_end_of_two_stacks_is_one_number_only_where_they_are_as_deep() -> None:
    config = LoRAConfig(target_modules=["q"], layers_to_transform=[-1])
    same = LoRAModel.from_model(t5(2, 2), config)
    assert same.peft_config["default"].layers_to_transform == [1]
    with pytest.raises(TargetError, match=r"3 in decoder\.block, 2 in encoder\.block.*layers_pattern"):
        LoRAModel.from_model(t5(2, 3), config)
    assert adapted(LoRAModel.from_model(t5(2, 3), config.copy(layers_to_transform=[2]))) == {
        n for n in resolve_targets(t5(2, 3), ["q"]) if n.startswith("decoder.block.2.")
    }


def test_files_never_count_from_the_end(tmp_path: Path) -> None:
    config = LoRAConfig(target_modules=["query"], layers_to_transform=[-1])
    with pytest.raises(ConfigError, match=r"layers_to_transform=\[-1\].*PEFT"):
        config.save_pretrained(tmp_path)
    values = {**config.copy(layers_to_transform=None).to_dict(), "layers_to_transform": [-1]}
    with pytest.raises(ConfigError, match=r"layers_to_transform=\[-1\]"):
        LoRAConfig.from_dict(values)


def test_named_modules_train_in_full_beside_lora_on_the_others(tmp_path: Path) -> None:
    model = bert(modules_to_save=["layer.1.output", "classifier"], target_modules="all-linear")
    before = weights(model)
    trainer(model, tmp_path, max_steps=3).train()
    moved = _moved(model, before)
    saved = {n.split(".adapters.")[0] for n in moved if "saved_" in n}
    assert saved == {"bert.encoder.layer.1.output.dense", "bert.encoder.layer.1.output.LayerNorm", "classifier"}
    assert all("adapters" in n for n in moved)
    assert not {n for n in moved if "lora_" in n and "layer.1.output" in n}


@pytest.mark.parametrize("frozen", [(), ("bert.embeddings.word_embeddings.weight",)], ids=["whole", "part"])
def test_after_merging_what_trained_before_attaching_trains_again(frozen: tuple[str, ...], tmp_path: Path) -> None:
    base = bert().unload()
    for name in frozen:
        base.get_parameter(name).requires_grad_(False)
    model = LoRAModel.from_model(base, LoRAConfig(r=2, task_type="SEQ_CLS"))
    trainer(model, tmp_path / "lora", max_steps=2).train()
    merged = model.merge_and_unload()
    assert type(merged) is BertForSequenceClassification
    assert {n for n, p in merged.named_parameters() if not p.requires_grad} == set(frozen)
    before = weights(merged)
    trainer(merged, tmp_path / "full", max_steps=2, learning_rate=0.01).train()
    assert before.keys() - _moved(merged, before) == set(frozen)
    assert (tmp_path / "full" / "checkpoint-2" / "model.safetensors").is_file()


def test_an_adapter_goes_on_training_on_new_data_with_the_same_tensors_to_start_from(tmp_path: Path) -> None:
    model = gpt2()
    base = copy.deepcopy(model).unload()
    trainer(model, tmp_path / "first", max_steps=2).train()
    model.save_pretrained(tmp_path / "adapter")
    again = LoRAModel.from_pretrained(tmp_path / "adapter", base_model=base, is_trainable=True)
    same(again, model)
    trainer(again, tmp_path / "second", max_steps=2).train()
    assert _moved(again, weights(model)) == {n for n, p in again.named_parameters() if "lora_" in n}
