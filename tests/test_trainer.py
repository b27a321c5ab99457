"""The stock Trainer and pipelines: adapter-only checkpoints, resuming, the best model, whatever the adapter's name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_lora import LoRAConfig, LoRAModel

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


class Rows(Dataset):
    """Token rows whose label is the parity of their first token."""

    def __init__(self, count: int = 24, labels: str = "class") -> None:
        ids = torch.randint(2, 32, (count, 6), generator=torch.Generator().manual_seed(0))
        self.rows = [{"input_ids": row, "labels": row[0] % 2 if labels == "class" else row} for row in ids]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def bert(adapter_name: str = "default", **changes: object) -> LoRAModel:
    torch.manual_seed(0)
    lora = LoRAConfig(**{"r": 2, "lora_dropout": 0.1, "task_type": "SEQ_CLS", **changes})
    config = BertConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24, vocab_size=32,
        hidden_dropout_prob=lora.lora_dropout, attention_probs_dropout_prob=lora.lora_dropout,
    )  # fmt: skip
    return LoRAModel.from_model(BertForSequenceClassification(config), lora, adapter_name)


def gpt2(adapter_name: str = "default") -> LoRAModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=1)
    return LoRAModel.from_model(GPT2LMHeadModel(config), LoRAConfig(r=2, lora_dropout=0.1), adapter_name)


def trainer(model: LoRAModel, out: Path, **changes: object) -> Trainer:
    defaults = {
        "max_steps": 6,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        "logging_steps": 1,
    }
    args = TrainingArguments(output_dir=str(out), **{**defaults, **changes})
    labels = "class" if isinstance(model, BertForSequenceClassification) else "tokens"
    return Trainer(model=model, args=args, train_dataset=Rows(labels=labels), eval_dataset=Rows(8, labels))


def weights(model: LoRAModel) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("make", [bert, gpt2])
def test_training_moves_the_adapter_only_and_the_optimizer_holds_nothing_else(make, tmp_path: Path) -> None:
    model = make()
    before = weights(model)
    run = trainer(model, tmp_path)
    run.train()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all("adapters" in k for k in moved)
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for n, p in model.named_parameters() if "adapters" in n}


@pytest.mark.parametrize("name", ["default", "sentiment"])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_resumed_training_ends_in_the_same_bits(make, name: str, tmp_path: Path) -> None:
    straight = make(name)
    whole = trainer(straight, tmp_path / "straight")
    whole.train()
    first = trainer(make(name), tmp_path / "parts", max_steps=4, lr_scheduler_type="constant")
    first.train()
    reference = make(name)
    constant = trainer(reference, tmp_path / "constant", lr_scheduler_type="constant")
    constant.train()
    resumed = make(name)
    second = trainer(resumed, tmp_path / "parts", lr_scheduler_type="constant")
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6
    got, want = weights(resumed), weights(reference)
    assert all(torch.equal(got[k], want[k]) for k in want)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (second, constant)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["default", "sentiment"])
def test_the_best_model_is_there_at_the_end(name: str, tmp_path: Path) -> None:
    model = bert(name)
    run = trainer(
        model, tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, learning_rate=0.2,
        metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    run.train()
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = max(losses, key=losses.get)  # the worst, in truth, because it is not the last
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert best != 6, "the last step is the best one, so this test proves nothing"
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-7)


def test_checkpoints_hold_no_weight_of_the_base(tmp_path: Path) -> None:
    run = trainer(bert(), tmp_path)
    run.train()
    folder = tmp_path / "checkpoint-6"
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not names & {"model.safetensors", "pytorch_model.bin", "config.json"}
    assert (folder / "adapter_model.safetensors").stat().st_size < 10_000


def test_several_adapters_resume_each_from_its_own_folder(tmp_path: Path) -> None:
    def two() -> LoRAModel:
        model = bert("a")
        model.add_adapter(LoRAConfig(r=3, target_modules=["query"]), "b")
        model.set_adapter(["a", "b"])
        return model

    first = two()
    trainer(first, tmp_path, max_steps=2).train()
    again = two()
    trainer(again, tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    got, want = weights(again), weights(first)
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_gradient_checkpointing_trains_to_the_same_bits(tmp_path: Path) -> None:
    plain, checkpointed = bert(), bert()
    fields = {f.name for f in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    trainer(plain, tmp_path / "a").train()
    trainer(checkpointed, tmp_path / "b", **{name: True}).train()
    got, want = weights(checkpointed), weights(plain)
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_a_trainer_without_adapters_goes_on_as_before(tmp_path: Path) -> None:
    model = bert().unload()
    run = trainer(model, tmp_path, max_steps=2)
    run.train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    trainer(bert().unload(), tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_pipelines_take_the_model_as_it_is() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"[UNK]": 0, "[PAD]": 1, **{w: i + 2 for i, w in enumerate("good bad fine day".split())}}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    classify = pipeline("text-classification", model=bert().eval(), tokenizer=tokenizer, device="cpu")
    assert classify("good day")[0]["label"] in ("LABEL_0", "LABEL_1")
    write = pipeline("text-generation", model=gpt2().eval(), tokenizer=tokenizer, device="cpu")
    assert write("good day", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("good day")
