"""The stock Trainer over a LoRAModel, as the demo sets it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)
from transformers import logging as transformers_logging

from ...model.lora_model import LoRAModel
from ...training.metrics import metrics
from .data import Split, base_directory, encode
from .results import DemoOptions, Scores

__all__ = ["build_trainer", "one_thread", "quiet_loading", "scores", "train"]

LEARNING_RATE = 2e-3
BATCH_SIZE = 32


def build_trainer(model: LoRAModel, split: Split, options: DemoOptions, checkpoints: Path) -> Trainer:
    """Return a Trainer that trains on one side of the split and evaluates on the other; it writes to `checkpoints`."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base_directory())
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=4 * BATCH_SIZE,
        seed=options.seed,
        logging_steps=10,
        save_strategy="epoch",
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encode(tokenizer, split.train),
        eval_dataset=encode(tokenizer, split.held_out),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics("accuracy", "f1", source="shipped"),  # with and without a network
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Bar)
    return trainer


def scores(trainer: Trainer) -> Scores:
    """Evaluate the trainer's model on the held-out entries."""
    measured = trainer.evaluate()
    return Scores(measured["eval_accuracy"], measured["eval_f1"])


def train(trainer: Trainer) -> float:
    """Train the trainer's model and return the seconds it took."""
    return float(trainer.train().metrics["train_runtime"])


class _Bar(ProgressCallback):
    """Transformers' progress bar with the loss at its end, where the stock one prints a line for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if isinstance(self.training_bar, tqdm) and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep Transformers' report of a newly initialised head, and its loading bar, to itself inside a `with` block.

    That the head is new is the job here, and the demo says so itself.
    """
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread inside a `with` block, or a function decorated with this.

    The matrices are small (hidden size 384, about four tokens a word): a second thread gains little on a free
    machine, and on a busy one each waits for the other at every one of them. The sums then have one order too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
