"""What `hf-lora train --dry-run` says of memory, and what the same training takes: each in a process of its own.

Memory is the peak of the process's resident set, Python and all libraries included. The bases are random and of real
sizes; every row has as many tokens as the model is to see.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from .measure import Findings, Options, Row

WORDS, ROWS = 1000, 64
MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """A base, and rows of so many tokens in batches."""

    name: str
    base: Any
    tokens: int
    batch: int
    flags: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return f"{self.name}, {self.batch} x {self.tokens} tokens{''.join(f', {flag}' for flag in self.flags)}"


def _bert(layers: int, width: int) -> Any:
    heads: dict[str, Any] = {
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "intermediate_size": 4 * width,
    }
    return BertForPreTraining, BertConfig(hidden_size=width, **heads)


def _gpt2(layers: int, width: int) -> Any:
    return GPT2LMHeadModel, GPT2Config(n_layer=layers, n_embd=width, n_head=width // 32)


CELLS = [
    Cell("BERT, 2 layers of 128 (4M)", _bert(2, 128), 64, 16),
    Cell("BERT, 6 layers of 384 (23M)", _bert(6, 384), 32, 16),
    Cell("BERT, 6 layers of 384 (23M)", _bert(6, 384), 256, 16),
    Cell("BERT, 12 layers of 768 (109M)", _bert(12, 768), 128, 8),
    Cell("GPT-2, 2 layers of 128 (7M)", _gpt2(2, 128), 128, 8),
    Cell("GPT-2 (124M)", _gpt2(12, 768), 256, 4),
    Cell("GPT-2 (124M)", _gpt2(12, 768), 256, 4, ("--gradient-checkpointing",)),
    Cell("GPT-2 (124M)", _gpt2(12, 768), 128, 4, ("--dtype", "bfloat16")),
]
SMOKE = [Cell("BERT, 1 layer of 32", _bert(1, 32), 8, 4)]


def run(options: Options) -> Findings:
    """Estimate and train every cell, print the table and return two rows a cell. There are no rounds."""
    rows: list[Row] = []
    print("\nMemory of a training in MiB: the dry run's estimate, the peak, estimate over peak")
    for cell in SMOKE if options.scale == "smoke" else CELLS:
        estimated, taken = measure(cell)
        ratio = round(estimated / taken, 4)
        print(f"  {cell.place:<70}{estimated / MIB:>9.0f}{taken / MIB:>9.0f}{ratio:>8.3f}", flush=True)
        rows.append({"cell": cell.place, "arm": "hf_lora", "peak_bytes": taken, "ratio": 1.0})
        rows.append({"cell": cell.place, "arm": "dry run", "peak_bytes": estimated, "ratio": ratio})
    worst = max(abs(row["ratio"] - 1) for row in rows)
    return Findings(rows, [f"The dry run is at most {worst:.0%} off."])


def measure(cell: Cell) -> tuple[int, int]:
    """Return the bytes that a dry run says, and those that the training took."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        words = {f"w{index}": index for index in range(WORDS)}
        inner = Tokenizer(models.WordLevel({**words, "[PAD]": WORDS}, unk_token="w0"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=inner, unk_token="w0", pad_token="[PAD]", eos_token="w1"
        ).save_pretrained(place / "base")
        model, config = cell.base
        model(config).save_pretrained(place / "base")
        texts = [" ".join(random.choices([*words], k=cell.tokens)) for _ in range(ROWS)]
        (place / "rows.csv").write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)))
        estimated = _train(cell, place, "--dry-run")["memory"]["peak"]
        return estimated, _train(cell, place)["peak_bytes"]


def _train(cell: Cell, place: Path, *more: str) -> dict[str, Any]:
    task = ("--task", "causal-lm", "--column", "text=text") if "GPT" in cell.name else ("--task", "text-classification")
    command = [
        sys.executable,
        "-m",
        "hf_lora",
        "train",
        "--model",
        str(place / "base"),
        "--train",
        str(place / "rows.csv"),
    ]
    command += [*task, "--batch-size", str(cell.batch), "--max-steps", "4", "--output", str(place / "run"), "--json"]
    done = subprocess.run([*command, *cell.flags, *more], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))
