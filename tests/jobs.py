"""Small jobs for `hf-lora train`, one for each task: a tiny base on disk, a file of raw rows, and flags."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from .trainings import tokenizer

__all__ = ["JOBS", "Job", "write_csv", "write_jsonl"]

GOOD, BAD = ("lovely", "fine", "great", "warm"), ("awful", "dull", "cold", "poor")
WORDS = (*GOOD, *BAD, "a", "film", "story", "and", "very", "the", "was")


@dataclass(frozen=True)
class Job:
    """A job: base and rows write into a folder and return what --model and --train get. flags: further ones.

    learns: what the test metric has to reach, by its name in metrics.json; behind a "-" it may not be more. asks: the
    rows to predict, where they are others. tag: the card's pipeline tag, where the test asks for it.
    """

    task: str
    base: Callable[[Path], Path]
    rows: Callable[[Path], Path]
    flags: tuple[str, ...] = ()
    learns: tuple[str, float] | None = None
    asks: Callable[[Path], Path] | None = None
    tag: str | None = None


def write_csv(path: Path, header: list[str], rows: list[list[Any]], **dialect: Any) -> Path:
    """Write rows below a header and return the path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **dialect).writerows([header, *rows])
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a JSON object a line and return the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def bert(folder: Path) -> Path:
    """Save a BERT of one layer with a tokenizer of whole words."""
    words = tokenizer(*WORDS)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "initializer_range": 0.3,
    }
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _reviews() -> list[list[str]]:
    return [
        [f"{how} was the {thing}", label]
        for how, label in _RATED
        for thing in ("film", "story", "very film", "a film", "the story")
    ]


_RATED = [*((word, "good") for word in GOOD), *((word, "bad") for word in BAD)]

JOBS = [
    Job(
        "text-classification", bert, lambda at: write_csv(at / "reviews.csv", ["review", "verdict"], _reviews()),
        ("--epochs", "20", "--learning-rate", "0.01", "--batch-size", "16"), ("eval_accuracy", 0.9),
    ),
]  # fmt: skip
