"""Short trainings of tiny models: the data, the models and the Trainers that several tests share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_lora import LoRAConfig, LoRAModel

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


class Rows(Dataset):
    """Token rows whose label is the parity of their first token, or themselves."""

    def __init__(self, count: int = 24, labels: str = "class") -> None:
        ids = torch.randint(2, 32, (count, 6), generator=torch.Generator().manual_seed(0))
        self.rows = [{"input_ids": row, "labels": row[0] % 2 if labels == "class" else row} for row in ids]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class StopsAt(TrainerCallback):
    """Ends a training after a step, as one that is interrupted right after a checkpoint."""

    def __init__(self, step: int, save: bool = True) -> None:
        self.step, self.save = step, save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == self.step:
            control.should_save, control.should_training_stop = self.save, True
        return control


def _base(seed: int, make: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    base = make()
    torch.manual_seed(seed)  # of the adapter
    return base


def bert(adapter_name: str = "default", seed: int = 0, dtype: torch.dtype | None = None, **changes: Any) -> LoRAModel:
    """Return a classifier with dropout; its base is always the same, its adapter depends on the seed."""
    lora = LoRAConfig(**{"r": 2, "lora_dropout": 0.1, "task_type": "SEQ_CLS", **changes})
    config = BertConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24, vocab_size=32,
        hidden_dropout_prob=lora.lora_dropout, attention_probs_dropout_prob=lora.lora_dropout,
    )  # fmt: skip
    return LoRAModel.from_model(
        _base(seed, lambda: BertForSequenceClassification(config).to(dtype)), lora, adapter_name
    )


def gpt2(adapter_name: str = "default", seed: int = 0, **changes: Any) -> LoRAModel:
    """Return a causal LM with dropout; its base is always the same."""
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=1)
    lora = LoRAConfig(**{"r": 2, "lora_dropout": 0.1, **changes})
    return LoRAModel.from_model(_base(seed, lambda: GPT2LMHeadModel(config)), lora, adapter_name)


def t5(adapter_name: str = "default", seed: int = 0, **changes: Any) -> LoRAModel:
    """Return an encoder-decoder with dropout; its base is always the same."""
    config = T5Config(
        d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=32, decoder_start_token_id=0, pad_token_id=0
    )
    lora = LoRAConfig(**{"r": 2, "lora_dropout": 0.1, **changes})
    return LoRAModel.from_model(_base(seed, lambda: T5ForConditionalGeneration(config)), lora, adapter_name)


def trainer(model: LoRAModel, out: Path, callbacks: Any = None, **changes: Any) -> Trainer:
    """Return the stock Trainer of a model (for T5 the one for sequences)."""
    seq2seq = isinstance(model, T5ForConditionalGeneration)
    make, arguments = (Seq2SeqTrainer, Seq2SeqTrainingArguments) if seq2seq else (Trainer, TrainingArguments)
    args = arguments(output_dir=str(out), **{**DEFAULTS, **changes})
    labels = "class" if isinstance(model, BertForSequenceClassification) else "tokens"
    return make(
        model=model, args=args, train_dataset=Rows(labels=labels), eval_dataset=Rows(8, labels), callbacks=callbacks
    )


def weights(model: LoRAModel) -> dict[str, torch.Tensor]:
    """Return copies of a model's tensors."""
    return {k: v.clone() for k, v in model.state_dict().items()}


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
