"""Added tokens: their rows, and only they, train, are saved and come back, without asking how large the base's was."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MobileBertConfig, MobileBertForMaskedLM

from hf_lora import LoRAConfig, LoRAError, LoRAModel
from hf_lora.errors import AdapterMismatchError, AdapterStateError, ConfigError

from .cases import move
from .tiny import VOCAB, edit_config, tiny
from .trainings import tokenizer, trainer

IDS = torch.tensor([[5, 33, 7, 32], [9, 34, 11, 2]])
ROWS = [32, 33, 34]


MAKERS = {"tied": lambda: tiny("gpt2", vocab_size=32), "untied": lambda: tiny("llama", vocab_size=32)}
TABLES = {"tied": ["transformer.wte"], "untied": ["model.embed_tokens", "lm_head"]}


def _grown(name: str, *sizes: int) -> Any:
    model = MAKERS[name]()
    for size in sizes:
        model.resize_token_embeddings(size, mean_resizing=False)
    return model


def _resized(name: str, when: str) -> LoRAModel:
    if when == "before":
        return LoRAModel.from_model(_grown(name, 35), LoRAConfig(r=2))
    model = LoRAModel.from_model(MAKERS[name](), LoRAConfig(r=2))
    model.resize_token_embeddings(35, mean_resizing=False)
    return model


def _saved(model: LoRAModel, folder: Path) -> torch.Tensor:
    """Save an adapter whose every trained value is away from its start, and return its model's logits."""
    move(model)
    model.eval().save_pretrained(folder)
    return model(IDS).logits


def _comes_back_larger(folder: Path, live: torch.Tensor, **given: Any) -> None:
    """Assert that an adapter, loaded for the base that it names, makes the room that it needs, and says so."""
    with pytest.warns(UserWarning, match="32 to 35"):
        again = LoRAModel.from_pretrained(folder, **given)
    torch.testing.assert_close(again.eval()(IDS).logits, live, rtol=0, atol=1e-5 if given else 0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", MAKERS)
def test_new_rows_train_and_only_they_are_saved(name: str, when: str, tmp_path: Path) -> None:
    model = _resized(name, when)
    assert model.peft_config["default"].trainable_token_indices == dict.fromkeys(TABLES[name], ROWS)
    model.train()(IDS, labels=IDS).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    rows = [p for n, p in trained.items() if "tokens_weight" in n]
    assert [tuple(p.shape) for p in rows] == [(3, 16)] * len(TABLES[name])
    assert all(p.grad.abs().sum() > 0 for p in rows)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {k: tuple(v.shape) for k, v in saved.items() if "lora_" not in k} == {
        f"base_model.model.{table}.token_adapter.trainable_tokens_delta": (3, 16) for table in TABLES[name]
    }


@pytest.mark.parametrize("name", MAKERS)
def test_new_rows_come_back_on_a_base_that_was_resized_by_somebody_else(name: str, tmp_path: Path) -> None:
    model = _resized(name, "before")
    live = _saved(model, tmp_path)
    base = MAKERS[name]()
    torch.manual_seed(7)
    base.resize_token_embeddings(35, mean_resizing=False)  # other random rows
    assert not torch.allclose(base(IDS).logits, live, atol=1e-2)
    again = LoRAModel.from_pretrained(tmp_path, base_model=copy.deepcopy(base))
    assert torch.equal(again(IDS).logits, live)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        there = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert torch.allclose(there(IDS).logits, live, atol=1e-5)


def test_rows_that_the_user_names_or_saves_whole_are_left_to_them_and_what_would_be_lost_is_refused() -> None:
    rows = LoRAModel.from_model(_grown("tied", 35), LoRAConfig(trainable_token_indices=[3, 33])).peft_config["default"]
    assert rows.trainable_token_indices == {"transformer.wte": [3, 33, 32, 34]}, "new rows are in no other file"
    every = LoRAModel.from_model(_grown("tied", 35), LoRAConfig(trainable_token_indices=ROWS)).peft_config["default"]
    assert every.trainable_token_indices == ROWS
    saved = LoRAModel.from_model(_grown("tied", 35), LoRAConfig(modules_to_save=["wte"])).peft_config["default"]
    assert (saved.trainable_token_indices, saved.modules_to_save) == (None, ["wte", "lm_head"])
    model = _grown("tied", 35)
    with pytest.raises(ConfigError, match=r"transformer\.wte .*modules_to_save"):
        LoRAModel.from_model(model, LoRAConfig(target_modules=["wte", "c_attn"]))
    assert not isinstance(model, LoRAModel)


@pytest.mark.parametrize(
    "rows", [ROWS, [3, 33], {"embed_tokens": ROWS}, {"embed_tokens": [33], "lm_head": [32]}], ids=str
)
def test_new_rows_of_an_untied_output_layer_come_back_whatever_rows_the_user_names(rows: Any, tmp_path: Path) -> None:
    MAKERS["untied"]().save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    model.delete_adapter("default")
    model.resize_token_embeddings(35)
    model.add_adapter(LoRAConfig(r=2, trainable_token_indices=rows))
    named = model.peft_config["default"].trainable_token_indices
    first = rows if isinstance(rows, list) else rows["embed_tokens"]
    assert [each[: len(first)] for name, each in named.items() if name != "lm_head"] == [first]
    assert all({*ROWS} <= {*each} for each in named.values())
    _comes_back_larger(tmp_path / "adapter", _saved(model, tmp_path / "adapter"))


def test_new_rows_of_an_adapted_output_layer_are_told(tmp_path: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["q_proj", "lm_head"], trainable_token_indices=[33, 34])
    with pytest.warns(UserWarning, match="rows 32 to 34 of lm_head are new: LoRA on it does not save them"):
        LoRAModel.from_model(_grown("untied", 35), config)


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [((32,), None), ((20,), None), ((40, 32), None), ((20, 20), None), ((20, 30, 40), range(20, 40))],
)
def test_shrinking_and_resizing_to_the_same_size_add_no_rows(sizes: tuple[int, ...], rows: range | None) -> None:
    config = LoRAModel.from_model(_grown("tied", *sizes), LoRAConfig()).peft_config["default"]
    assert config.trainable_token_indices == (None if rows is None else {"transformer.wte": list(rows)})


def test_an_adapter_loaded_for_inference_gets_no_new_rows(tmp_path: Path) -> None:
    LoRAModel.from_model(MAKERS["tied"](), LoRAConfig(r=2)).save_pretrained(tmp_path)
    model = LoRAModel.from_pretrained(tmp_path, base_model=MAKERS["tied"]())
    model.resize_token_embeddings(35, mean_resizing=False)
    assert model.peft_config["default"].trainable_token_indices is None
    assert not [n for n, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("name", MAKERS)
def test_a_base_that_is_loaded_for_the_adapter_gets_the_rows_it_lacks(name: str, tmp_path: Path) -> None:
    MAKERS[name]().save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    model.resize_token_embeddings(35, mean_resizing=False)
    _comes_back_larger(tmp_path / "adapter", _saved(model, tmp_path / "adapter"))
    base = MAKERS[name]()
    with pytest.raises(AdapterMismatchError, match=r"resize_token_embeddings\(35\)"):
        LoRAModel.from_pretrained(tmp_path / "adapter", base_model=base)
    assert base.get_input_embeddings().weight.shape[0] == 32, "the caller's model is the caller's to resize"


def test_a_whole_table_that_was_saved_larger_makes_room_for_itself(tmp_path: Path) -> None:
    MAKERS["tied"]().save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    model.delete_adapter("default")
    model.resize_token_embeddings(35, mean_resizing=False)
    model.add_adapter(LoRAConfig(r=2, modules_to_save=["wte"]))
    _comes_back_larger(tmp_path / "adapter", _saved(model, tmp_path / "adapter"))


def test_a_file_that_asks_for_a_huge_vocabulary_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    MAKERS["tied"]().save_pretrained(tmp_path / "base")
    LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(trainable_token_indices=[3])).save_pretrained(
        tmp_path / "a"
    )
    for rows in ([10**12], [33], [-1]):
        edit_config(tmp_path / "a", trainable_token_indices=rows)
        with pytest.raises(LoRAError):
            LoRAModel.from_pretrained(tmp_path / "a")


def test_rows_that_train_already_are_not_resized_away_and_a_merged_model_is_not_resized() -> None:
    for name in MAKERS:
        model = _resized(name, "after")
        table = model.get_input_embeddings()
        assert model.resize_token_embeddings(35) is model.resize_token_embeddings() is table
        assert model.resize_token_embeddings(30, pad_to_multiple_of=35) is table
        with pytest.raises(AdapterStateError, match=r"transformer.wte|embed_tokens|lm_head"):
            model.resize_token_embeddings(40)
        model.merge_adapter()
        for change in (lambda: model.resize_token_embeddings(35), model.tie_weights):  # noqa: B023
            with pytest.raises(AdapterStateError, match="merged"):
                change()
        assert table.weight.shape[0] == 35


def test_a_table_that_was_resized_without_its_output_layer_trains_alone() -> None:
    model = MAKERS["untied"]()
    model.model.resize_token_embeddings(35, mean_resizing=False)
    config = LoRAModel.from_model(model, LoRAConfig(r=2)).peft_config["default"]
    assert config.trainable_token_indices == {"model.embed_tokens": ROWS}


def test_merging_parts_tables_that_are_one_module_of_several_names(tmp_path: Path) -> None:
    base = tiny("bart", vocab_size=32)
    base.resize_token_embeddings(35, mean_resizing=False)
    model = LoRAModel.from_model(base, LoRAConfig(r=2))
    move(model)
    given = {"input_ids": IDS, "decoder_input_ids": IDS}
    live = model(**given).logits
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    for plain in (merged, type(merged).from_pretrained(tmp_path)):
        assert torch.allclose(plain(**given).logits, live, atol=1e-5)


def test_room_is_made_in_a_class_whose_resizing_takes_a_size_only(tmp_path: Path) -> None:
    sizes = {"vocab_size": 32, "embedding_size": 8, "intra_bottleneck_size": 8, "num_attention_heads": 2}
    config = MobileBertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, **sizes)
    MobileBertForMaskedLM(config).save_pretrained(tmp_path / "base")
    base = MobileBertForMaskedLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(35)
    LoRAModel.from_model(base, LoRAConfig(r=2)).save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="32 to 35"):
        again = LoRAModel.from_pretrained(tmp_path / "adapter")
    assert again.get_input_embeddings().weight.shape[0] == 35


OF_PEFT = {
    "rows": {"trainable_token_indices": ROWS},
    "table and head": {"modules_to_save": ["wte", "embed_tokens", "lm_head"]},
    "layers only": {},
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("config", OF_PEFT.values(), ids=OF_PEFT)
@pytest.mark.filterwarnings("ignore")  # PEFT's chatter
def test_what_peft_saves_of_a_resized_vocabulary_comes_back(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    base = MAKERS[kind]()
    base.save_pretrained(tmp_path / "base")
    grown = type(base).from_pretrained(tmp_path / "base")
    grown.resize_token_embeddings(35, mean_resizing=False)
    targets = ["c_attn"] if kind == "tied" else ["q_proj"]
    theirs = peft.get_peft_model(grown, peft.LoraConfig(target_modules=targets, init_lora_weights=False, **config))
    theirs.save_pretrained(tmp_path / "adapter")
    _comes_back_larger(tmp_path / "adapter", theirs.eval()(IDS).logits, base_model=str(tmp_path / "base"))


def test_rows_that_a_config_trains_and_a_file_lacks_are_an_error(tmp_path: Path) -> None:
    base = MAKERS["untied"]()
    model = LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(r=2, trainable_token_indices=[3, 4]))
    move(model)
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, trainable_token_indices={"lm_head": [3, 4]})
    with pytest.raises(AdapterMismatchError, match="lm_head"):
        LoRAModel.from_pretrained(tmp_path, base_model=copy.deepcopy(base))
    edit_config(tmp_path, trainable_token_indices=[3, 4])
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "token_adapter" not in key}, file)
    with pytest.raises(AdapterMismatchError, match="trainable_token_indices"):
        LoRAModel.from_pretrained(tmp_path, base_model=copy.deepcopy(base))


def test_rows_that_are_named_twice_train_once_and_come_back(tmp_path: Path) -> None:
    base = tiny("llama", vocab_size=35)
    model = LoRAModel.from_model(copy.deepcopy(base), LoRAConfig(r=2, trainable_token_indices=[33, 33, 3]))
    live = _saved(model, tmp_path)
    assert torch.equal(LoRAModel.from_pretrained(tmp_path, base_model=base)(IDS).logits, live)


TIED = {"vocab_size": 35, "tie_word_embeddings": True}
# What is asked of one table twice: the base's settings, the config's, and whether its meaning is plain.
TWICE: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "the same rows of both tied names": (TIED, {"rows": {"lm_head": [3, 7], "embed_tokens": [7, 3]}}, True),
    "the same rows by two endings": ({}, {"rows": {"embed_tokens": [3], "model.embed_tokens": [3, 3]}}, True),
    "rows of two tables": ({}, {"rows": {"embed_tokens": [3], "lm_head": [5]}}, True),
    "rows beside a tied layer that is saved whole": (TIED, {"rows": [3, 7], "saved": ["lm_head"]}, True),
    "rows of a tied layer beside the table saved": (TIED, {"rows": {"lm_head": [3]}, "saved": ["embed_tokens"]}, True),
    "other rows of the tied name": (TIED, {"rows": {"lm_head": [3, 7], "embed_tokens": [5]}}, False),
    "other rows by two endings": ({}, {"rows": {"embed_tokens": [3], "model.embed_tokens": [5]}}, False),
    "rows of a table that is saved whole": ({}, {"rows": [3], "saved": ["embed_tokens"]}, False),
}


@pytest.mark.parametrize("case", TWICE)
@pytest.mark.filterwarnings("ignore:PEFT cannot open:UserWarning")
def test_a_table_that_is_asked_for_twice_comes_back_as_it_trained_or_is_refused(case: str, tmp_path: Path) -> None:
    sizes, given, is_plain = TWICE[case]
    config = LoRAConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices=given["rows"], modules_to_save=given.get("saved")
    )
    base = tiny("llama", **{"vocab_size": 35, **sizes})
    if not is_plain:
        with pytest.raises(ConfigError, match="trainable_token_indices"):
            LoRAModel.from_model(base, config)
        return
    live = _saved(LoRAModel.from_model(copy.deepcopy(base), config), tmp_path)
    assert torch.equal(LoRAModel.from_pretrained(tmp_path, base_model=base)(IDS).logits, live)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_told_before_the_first_step(tmp_path: Path) -> None:
    words = tokenizer(*(f"w{i}" for i in range(VOCAB)))
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    with pytest.warns(UserWarning, match=rf"{len(words)} tokens .* rows for {VOCAB}.*resize_token_embeddings"):
        trainer(model, tmp_path / "a", processing_class=words, max_steps=1).train()
    model.resize_token_embeddings(len(words))
    trainer(model, tmp_path / "c", processing_class=words, max_steps=1).train()
