"""What LoRA gives up against full fine-tuning: accuracy on real ratings, of a pretrained MiniLM, by the stock Trainer.

The demo's job: the sentiment of words; the same fifth of the entries is held out for all.
Every arm trains as many epochs, at the learning rate that was best among its own four on a fifth of the training
entries, with seed 0; then with each seed (head, factors, order, dropout) on all training entries. The held-out entries
are looked at once a seed and arm. LoRA+ is an arm of `--full`. Figures are shares of entries that are told rightly.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel

from .measure import Findings, Options, Row
from .ratings import Rated, base, ratings, split

FULL, LORA, LORA_PLUS = "full fine-tuning", "LoRA", "LoRA+"
ALLOWED, SHARE = 0.01, 0.01  # what LoRA may be behind, and what it has to stay below of the trained parameters
CONFIG = LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear", task_type="SEQ_CLS")
TITLE = "MiniLM-L6, the sentiment of words"


@dataclass(frozen=True)
class Contender:
    """One way to train. rates: the learning rates it may choose from; ratio: LoRA+'s, B's rate to A's."""

    name: str
    rates: tuple[float, ...]
    ratio: float | None = None

    def model(self, seed: int) -> nn.Module:
        """Return the pretrained model with a new head, as it starts to train."""
        set_seed(seed)
        if self.name == FULL:
            return AutoModelForSequenceClassification.from_pretrained(base(), num_labels=2)
        model = LoRAModel.from_pretrained(base(), CONFIG, num_labels=2)
        model.set_learning_rates(loraplus_lr_ratio=self.ratio)
        return model


CONTENDERS = (
    Contender(FULL, (5e-5, 1e-4, 2e-4, 4e-4)),
    Contender(LORA, (5e-4, 1e-3, 2e-3, 4e-3)),
    Contender(LORA_PLUS, (1e-4, 2e-4, 4e-4, 8e-4), ratio=16),
)


@dataclass(frozen=True)
class Job:
    """What all arms share: the entries, the passes over them, the seeds, and how many rates are tried."""

    entries: int | None = None
    epochs: float = 3.0
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: int = 4

    def data(self) -> tuple[Rated, Rated]:
        """Return (the entries to train on, the ones held out)."""
        entries = ratings()
        return split(entries[:: len(entries) // self.entries] if self.entries else entries, seed=0)


def run(options: Options) -> Findings:
    """Choose each arm's rate, train it with every seed, and say whether LoRA is behind."""
    job = Job(entries=60, epochs=1, seeds=(0,), rates=1) if options.scale == "smoke" else Job()
    data = job.data()
    print(f"\n{TITLE}: {len(data[0])} entries to train on, {len(data[1])} held out, {job.epochs:g} epoch(s)")
    contenders = CONTENDERS[:2] if options.scale == "default" else CONTENDERS
    rows = [_measure(contender, job, data) for contender in contenders]
    full = rows[0]
    for row in rows:
        row |= {"cell": TITLE, "ratio": round(row["accuracy"] / full["accuracy"], 6)}
        row["trained_share"] = round(row["trained"] / full["trained"], 6)
    return Findings(rows, summary(rows))


def _measure(contender: Contender, job: Job, data: tuple[Rated, Rated]) -> Row:
    inner, rates = split(data[0], seed=0), contender.rates[: job.rates]
    tried = {rate: _train(contender, rate, job.seeds[0], inner, job).accuracy for rate in rates}
    chosen = max(tried, key=lambda rate: tried[rate])
    runs = [_train(contender, chosen, seed, data, job) for seed in job.seeds]
    row: Row = {
        "arm": contender.name,
        "accuracy": round(statistics.mean(r.accuracy for r in runs), 6),
        "per_seed": [round(r.accuracy, 6) for r in runs],
        "learning_rate": chosen,
        "validation": {f"{rate:g}": round(value, 6) for rate, value in tried.items()},
        "trained": runs[0].trained,
        "seconds": round(statistics.median(r.seconds for r in runs), 1),
    }
    print(
        f"  {row['arm']:<18}{row['accuracy']:>8.2%} {row['per_seed']}  {row['trained']:>10,} trained, rate {chosen:g}"
    )
    print(f"    on validation: {row['validation']}; {row['seconds']} s a run", flush=True)
    return row


@dataclass(frozen=True)
class Run:
    """What one training gave: accuracy on the entries held out of it, parameters trained, seconds of training."""

    accuracy: float
    trained: int
    seconds: float


def _train(contender: Contender, rate: float, seed: int, data: tuple[Rated, Rated], job: Job) -> Run:
    model = contender.model(seed)
    trainer = trainer_of(model, rate, seed, data, job.epochs)
    seconds = quietly(trainer.train).metrics["train_runtime"]
    return Run(score(trainer), sum(p.numel() for p in model.parameters() if p.requires_grad), seconds)


def trainer_of(model: nn.Module, rate: float, seed: int, data: tuple[Rated, Rated], epochs: float) -> Trainer:
    """Return the stock Trainer of a model; data: what to train on, and what is held out."""
    tokenizer = AutoTokenizer.from_pretrained(base())

    def encoded(rated: Rated) -> list[Any]:
        return [{**tokenizer(text), "labels": label} for text, label in rated]

    arguments = TrainingArguments(
        output_dir=f"{tempfile.gettempdir()}/unused", num_train_epochs=epochs, learning_rate=rate, seed=seed,
        save_strategy="no",
        per_device_train_batch_size=32, per_device_eval_batch_size=128, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False, logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded(data[0]),
        eval_dataset=encoded(data[1]),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy,
    )


def score(trainer: Trainer) -> float:
    """Return the share of the held-out entries that are told rightly."""
    return float(quietly(trainer.evaluate)["eval_accuracy"])


def _accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((np.argmax(evaluated.predictions, axis=-1) == evaluated.label_ids).mean())}


def quietly(call: Callable[[], Any]) -> Any:
    """Return what a call returns, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):  # Trainer prints its metrics where it has no progress bar
        return call()


def summary(rows: Sequence[Row]) -> list[str]:
    """Return how far each arm is from full fine-tuning, and whether that is what it may be."""
    full = rows[0]
    told = []
    for row in rows[1:]:
        behind, share = full["accuracy"] - row["accuracy"], row["trained"] / full["trained"]
        verdict = "as wanted" if behind <= ALLOWED + 1e-9 and share < SHARE else "NOT as wanted"
        told.append(
            f"{row['arm']}: {100 * -behind:+.2f} points against full fine-tuning's {full['accuracy']:.2%}, with "
            f"{share:.2%} of its trained parameters: {verdict}."
        )
    return told
