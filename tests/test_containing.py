"""Trainers whose model only contains a LoRAModel: saving, the best model at the end and resuming, as of one itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterFileError

from .tiny import tiny
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
