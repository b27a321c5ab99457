"""Trainers whose model only contains a LoRAModel: saving, the best model at the end and resuming, as of one itself."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import EncoderDecoderModel, Trainer, TrainingArguments

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterFileError

from .cases import move
from .tiny import IDS, tiny
from .trainings import BEST, DEFAULTS, Rows, StopsAt, bert, tokenizer

WORDS = "red green blue one two three cat dog runs sleeps eats good bad".split()
# What else is there: the adapter's name, its config, and whether a layer beside the LoRAModel trains too.
MEMBERS = {
    "default": ("default", {}, False),
    "a name of its own": ("mine", {}, False),
    "DoRA": ("default", {"use_dora": True}, False),
    "a layer beside it": ("mine", {}, True),
}


@pytest.fixture(params=MEMBERS)
def embedder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return what makes a SentenceTransformerTrainer of a model with adapters inside, the same every time."""
    st = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    datasets = pytest.importorskip("datasets")
    name, config, has_dense = MEMBERS[request.param]
    tiny("bert", cls="BertModel").save_pretrained(tmp_path / "base")
    tokenizer(*WORDS).save_pretrained(tmp_path / "base")
    rows = {
        "anchor": [f"{a} {b}" for a, b in zip(WORDS, WORDS[3:], strict=False)],
        "positive": [f"{b} {a}" for a, b in zip(WORDS[5:], WORDS[3:], strict=False)] + WORDS[:2],
    }
    data = datasets.Dataset.from_dict(rows)

    def make(out: Path, callbacks: Any = None, **changes: Any) -> Any:
        torch.manual_seed(0)
        word = modules.Transformer(str(tmp_path / "base"))
        parts = [word, modules.Pooling(word.get_embedding_dimension())]
        parts += [modules.Dense(parts[1].get_embedding_dimension(), 8)] if has_dense else []
        LoRAModel.from_model(word.auto_model, LoRAConfig(r=2, **config), name)
        model = st.SentenceTransformer(modules=parts, device="cpu")
        args = st.SentenceTransformerTrainingArguments(str(out), **{**DEFAULTS, "learning_rate": 0.2, **changes})
        loss = losses.MultipleNegativesRankingLoss(model)
        return st.SentenceTransformerTrainer(
            model, args, train_dataset=data, eval_dataset=data, loss=loss, callbacks=callbacks
        )

    return make


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [k for k in one if not torch.equal(one[k], other[k])]


@pytest.mark.slow
def test_the_best_model_is_there_at_the_end_and_a_resumed_training_ends_in_the_same_bits(
    embedder: Any, tmp_path: Path
) -> None:
    straight = embedder(tmp_path / "straight", **BEST)
    straight.train()
    best = straight.state.best_model_checkpoint
    losses = {e["step"]: e["eval_loss"] for e in straight.state.log_history if "eval_loss" in e}
    assert not best.endswith("checkpoint-6"), "the last step is the best one, so this test proves nothing"
    assert straight.evaluate()["eval_loss"] == pytest.approx(losses[straight.state.best_global_step], abs=1e-6)
    assert not list(Path(best).glob("model*.safetensors")), "a checkpoint holds the base"
    embedder(tmp_path / "parts", [StopsAt(3)], save_strategy="no").train()
    again = embedder(tmp_path / "parts", save_strategy="no")
    again.train(resume_from_checkpoint=True)
    whole = embedder(tmp_path / "whole", save_strategy="no")
    whole.train()
    assert not differ(trained(again.model), trained(whole.model))


class Both(nn.Module):
    """A model of one's own with LoRAModels inside, whose checkpoints hold each in a folder, or a state dict of all."""

    def __init__(self, *models: LoRAModel) -> None:
        super().__init__()
        self.inner = nn.ModuleList(models)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        outputs = [model(input_ids=input_ids, labels=labels) for model in self.inner]
        return {"loss": sum(each.loss for each in outputs), "logits": outputs[0].logits}


def own(out: Path, *models: LoRAModel, **changes: Any) -> Trainer:
    args = TrainingArguments(str(out), **{**DEFAULTS, **changes})
    return Trainer(Both(*models), args, train_dataset=Rows(), eval_dataset=Rows(8))


def test_a_state_dict_of_the_whole_is_read_as_ever(tmp_path: Path) -> None:
    run = own(tmp_path, bert("mine"), **{**BEST, "eval_steps": 1, "save_steps": 1}, learning_rate=0.2, max_steps=4)
    run.train()
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    assert run.state.best_global_step != 4, "the last step is the best one, so this test proves nothing"
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[run.state.best_global_step], abs=1e-6)


def test_which_adapters_are_whose_is_asked_and_not_guessed(tmp_path: Path) -> None:
    run = own(tmp_path / "run", bert(seed=1), bert(seed=2))
    before = trained(run.model)
    for number in range(2):
        other = bert(seed=5 + number, init_lora_weights=False)
        other.save_pretrained(tmp_path / "checkpoint" / str(number))
    with pytest.raises(AdapterFileError, match="which are those of"):
        run._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert not differ(trained(run.model), before)


# Parts of a model of Transformers, and what is adapted there.
def _pair() -> Any:
    sides = [
        tiny("bert", cls="BertModel"),
        tiny("bert_mlm", cls="BertLMHeadModel", is_decoder=True, add_cross_attention=True),
    ]
    return EncoderDecoderModel(encoder=sides[0], decoder=sides[1])


LLAMA, GPT2, BERT, MIXTRAL = (partial(tiny, name, noisy=True) for name in ("llama", "gpt2", "bert", "mixtral"))
PARTS: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "the base model": (LLAMA, ["model"], {}),
    "one layer": (LLAMA, ["model.layers.1"], {}),
    "two layers": (LLAMA, ["model.layers.0", "model.layers.1.mlp"], {"target_modules": "all-linear"}),
    "DoRA and a saved norm": (LLAMA, ["model"], {"use_dora": True, "modules_to_save": ["norm"]}),
    "PiSSA": (LLAMA, ["model"], {"init_lora_weights": "pissa"}),
    "a tied table": (GPT2, ["transformer"], {"target_modules": ["wte", "c_attn"]}),
    "rows of a tied table": (GPT2, ["transformer"], {"trainable_token_indices": [5, 6, 7, 8]}),
    "a tied table saved whole": (GPT2, ["transformer"], {"modules_to_save": ["wte"]}),
    "biases": (BERT, ["bert"], {"bias": "all"}),
    "experts": (MIXTRAL, ["model"], {"target_modules": "all-linear"}),
    "an encoder and a decoder": (_pair, ["encoder", "decoder"], {}),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_whole_whose_part_is_adapted_is_saved_as_it_computes(what: str, tmp_path: Path) -> None:
    make, names, config = PARTS[what]
    torch.manual_seed(0)
    whole = copy.deepcopy(make()).eval()
    for name in names:
        move(LoRAModel.from_model(whole.get_submodule(name), LoRAConfig(r=2, **config)), scale=0.2)
    given = {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :3]} if what.startswith("an encoder") else {})}
    with torch.no_grad():
        live = whole(**given).logits
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    with pytest.warns(UserWarning, match=r"adapters \['default'\] of \S+ are merged"):
        whole.save_pretrained(tmp_path)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        saved = type(whole).from_pretrained(tmp_path).eval()(**given).logits
    assert torch.allclose(saved, live, rtol=1e-3, atol=2e-5)
    after = whole.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert any(".adapters.default." in key for key in after)  # torch.save of it, and back, is as ever


def test_what_does_not_act_is_not_merged_into_a_whole_and_what_is_merged_is_there_once(tmp_path: Path) -> None:
    whole = copy.deepcopy(LLAMA()).eval()
    base = whole(IDS).logits
    part = LoRAModel.from_model(whole.model, LoRAConfig(r=2))
    move(part)
    live = whole(IDS).logits
    with part.adapters_disabled():
        whole.save_pretrained(tmp_path / "off")
    part.merge_adapter()
    whole.save_pretrained(tmp_path / "merged")
    for name, want in {"off": base, "merged": live}.items():
        assert torch.allclose(type(whole).from_pretrained(tmp_path / name).eval()(IDS).logits, want, atol=1e-5)


def test_a_trainer_of_a_whole_resumes_and_what_it_saves_last_computes_the_same(tmp_path: Path) -> None:
    def run(folder: str, callbacks: Any = None) -> Trainer:
        torch.manual_seed(0)
        whole = tiny("bert", num_labels=2)
        LoRAModel.from_model(whole.bert, LoRAConfig(r=2))
        args = TrainingArguments(str(tmp_path / folder), **{**DEFAULTS, "save_strategy": "no"})
        return Trainer(whole, args, train_dataset=Rows(), callbacks=callbacks)

    run("parts", [StopsAt(3)]).train()
    again = run("parts")
    again.train(resume_from_checkpoint=True)
    straight = run("whole")
    straight.train()
    assert not differ(trained(again.model), trained(straight.model))
    with pytest.warns(UserWarning, match="are merged into the weights"):
        again.save_model(str(tmp_path / "last"))
    live = again.model.eval()(IDS).logits
    assert torch.allclose(type(again.model).from_pretrained(tmp_path / "last").eval()(IDS).logits, live, atol=1e-5)
    with pytest.warns(UserWarning, match="holds adapters inside of the model"):
        type(again.model).from_pretrained(tmp_path / "parts" / "checkpoint-3")
