"""Short trainings of tiny models: the data, the models and the Trainers that several tests share."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import (
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_lora import LoRAConfig, LoRAModel

from .tiny import tiny

DEFAULTS = {
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
# What ends with the best weights: the worst in truth, because the last ones are the best otherwise.
BEST = {
    "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
}  # fmt: skip
# The argument that switches gradient checkpointing on, whose name has changed.
_FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"


class Rows(Dataset):
    """Token rows whose label is the parity of their first token, or themselves."""

    def __init__(self, count: int = 24, labels: str = "class") -> None:
        ids = torch.randint(2, 32, (count, 6), generator=torch.Generator().manual_seed(0))
        self.rows = [{"input_ids": row, "labels": row[0] % 2 if labels == "class" else row} for row in ids]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows these words, and has tokens for padding, the end and what it does not know."""
    vocab = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[EOS]", *words])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]")


class StopsAt(TrainerCallback):
    """Ends a training after a step, as one that is interrupted right after a checkpoint."""

    def __init__(self, step: int, save: bool = True) -> None:
        self.step, self.save = step, save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == self.step:
            control.should_save, control.should_training_stop = self.save, True
        return control


def _adapted(base: Any, adapter_name: str, seed: int, changes: Any) -> LoRAModel:
    """Return a model with an adapter; the base is always the same, the adapter depends on the seed."""
    torch.manual_seed(seed)
    return LoRAModel.from_model(base, LoRAConfig(**{"r": 2, "lora_dropout": 0.1, **changes}), adapter_name)


def bert(adapter_name: str = "default", seed: int = 0, dtype: torch.dtype | None = None, **changes: Any) -> LoRAModel:
    """Return a classifier with dropout, as much in the base as in the adapter."""
    p = changes.get("lora_dropout", 0.1)
    base = tiny("bert", num_labels=2, hidden_dropout_prob=p, attention_probs_dropout_prob=p)
    return _adapted(base.to(dtype), adapter_name, seed, {"task_type": "SEQ_CLS", **changes})


def gpt2(adapter_name: str = "default", seed: int = 0, **changes: Any) -> LoRAModel:
    """Return a causal LM with dropout."""
    return _adapted(tiny("gpt2"), adapter_name, seed, changes)


def t5(adapter_name: str = "default", seed: int = 0, **changes: Any) -> LoRAModel:
    """Return an encoder-decoder with dropout."""
    return _adapted(tiny("t5"), adapter_name, seed, changes)


def two(active: str | list[str], seed: int = 0) -> LoRAModel:
    """Return a classifier with the adapters "a" and "b"."""
    model = bert("a", seed)
    model.add_adapter(LoRAConfig(r=3, target_modules=["query"], lora_dropout=0.2), "b")
    model.set_adapter(active)
    return model


def trainer(
    model: LoRAModel, out: Path, callbacks: Any = None, processing_class: Any = None, **changes: Any
) -> Trainer:
    """Return the stock Trainer of a model (for T5 the one for sequences)."""
    seq2seq = isinstance(model, T5ForConditionalGeneration)
    make, arguments = (Seq2SeqTrainer, Seq2SeqTrainingArguments) if seq2seq else (Trainer, TrainingArguments)
    args = arguments(output_dir=str(out), **{**DEFAULTS, **changes})
    labels = "class" if isinstance(model, BertForSequenceClassification) else "tokens"
    rows = {"train_dataset": Rows(labels=labels), "eval_dataset": Rows(8, labels)}
    return make(model=model, args=args, callbacks=callbacks, processing_class=processing_class, **rows)


def ran(model: LoRAModel, out: Path, callbacks: Any = None, resume: Any = None, **changes: Any) -> Trainer:
    """Train a model with the stock Trainer, and return that."""
    run = trainer(model, out, callbacks, **changes)
    run.train(resume_from_checkpoint=resume)
    return run


def weights(model: LoRAModel) -> dict[str, torch.Tensor]:
    """Return copies of a model's tensors."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(got: Any, want: Any) -> None:
    """Assert that two models, or two endings of trainings, are the same bit for bit."""
    got, want = (weights(each) if isinstance(each, torch.nn.Module) else each for each in (got, want))
    assert got.keys() == want.keys()
    for place, value in want.items():
        if isinstance(value, torch.Tensor):
            assert got[place].dtype == value.dtype, place
            assert torch.equal(got[place], value), place
        else:
            assert np.array_equal(got[place], value), place


def _leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by their paths."""
    if isinstance(value, dict):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {place: value}
    return {k: leaf for name, inner in items for k, leaf in _leaves(inner, f"{place}/{name}").items()}


def ending(run: Trainer) -> dict[str, Any]:
    """Return everything that a training leaves: weights, optimizer, schedule, random numbers, what was logged."""
    logged = [
        {k: entry[k] for k in ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss") if k in entry}
        for entry in run.state.log_history
        if "train_runtime" not in entry
    ]
    return _leaves(
        {
            "weights": weights(run.model),
            "optimizer": run.optimizer.state_dict(),
            "schedule": {k: v for k, v in run.lr_scheduler.state_dict().items() if not k.startswith("_get_lr")},
            "random": [torch.get_rng_state(), random.getstate(), list(np.random.get_state())],
            "logged": logged,
            "step": run.state.global_step,
        }
    )
