"""Eight runs in one pass over one base, against the stock Trainer with one after the other: time, memory, accuracy.

The demo's job: a pretrained MiniLM learns the sentiment of words; four learning rates, two ranks,
each with a seed of its own, in batches of 32 (one epoch of a third of the entries) and of 4 (of a twelfth); `--full`
takes all entries. Every arm is a process of its own, in turn (A B B A), its time is from the base in memory to the last
accuracy, its peak the process's largest resident set. Both arms train the same runs, with dropout; their accuracies are
compared one by one.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, Run, train_together

from .accuracy import _accuracy, quietly
from .measure import Findings, Options, Row
from .ratings import base, ratings, split

Trained = tuple[float, float, list[float]]  # seconds, the processor's seconds, each run's accuracy
ALONE, TOGETHER = "one after another", "together"
RATES, RANKS = (5e-4, 1e-3, 2e-3, 4e-3), (4, 16)


def run(options: Options) -> Findings:
    """Train every cell with both arms, each in processes of its own, and return a row an arm."""
    rows: list[Row] = []
    told: list[str] = []
    for size, every in {"smoke": [(32, 300)], "full": [(32, 1), (4, 1)]}.get(options.scale, [(32, 3), (4, 12)]):
        cell = f"MiniLM-L6, eight runs, batches of {size}"
        print(f"\n{cell}, 1 of {every} entries")
        found: dict[str, list[Row]] = {ALONE: [], TOGETHER: []}
        for arm in [ALONE, TOGETHER] if options.scale == "smoke" else [ALONE, TOGETHER, TOGETHER, ALONE]:
            found[arm].append(_in_a_process(arm, size, every, options.device.type))
        rows += [_row(cell, found, arm) for arm in found]
        told.append(_told(cell, found))
    return Findings(rows, told)


def _in_a_process(arm: str, *given: object) -> Row:
    command = [sys.executable, "-m", "benchmarks.together", arm, *map(str, given)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **threads})
    row: Row = json.loads(done.stdout.splitlines()[-1])
    print(f"  {arm:<20}{row['seconds']:>8.1f} s, of the processor {row['cpu_seconds']:.1f}", flush=True)
    return row


def _ratios(found: dict[str, list[Row]], what: str) -> list[float]:
    return [b[what] / a[what] for a, b in zip(found[ALONE], found[TOGETHER], strict=True)]


def _row(cell: str, found: dict[str, list[Row]], arm: str) -> Row:
    row: Row = {"arm": arm, "cell": cell, "accuracies": found[arm][0]["accuracies"]}
    for what in ("seconds", "cpu_seconds", "peak_bytes"):
        ratios = [1.0] if arm == ALONE else _ratios(found, what)
        row |= {what: round(statistics.median(each[what] for each in found[arm]), 2)}
        row["ratio" if what == "seconds" else f"{what}_ratio"] = round(statistics.median(ratios), 4)
    return row


def _told(cell: str, found: dict[str, list[Row]]) -> str:
    alone, together = found[ALONE][0], found[TOGETHER][0]
    apart = max(abs(a - b) for a, b in zip(alone["accuracies"], together["accuracies"], strict=True))
    time, cpu = (", ".join(f"{ratio:.2f}" for ratio in _ratios(found, what)) for what in ("seconds", "cpu_seconds"))
    return (
        f"{cell}: time x{time}, of the processor x{cpu}; peak {together['peak_bytes'] / 2**20:.0f} MiB together, "
        f"{alone['peak_bytes'] / 2**20:.0f} one after another; accuracies differ by {apart:.4f} at most."
    )


def measured(arm: str, size: int, every: int, device: str) -> Row:
    """Train the eight runs in this process; return seconds, the peak's bytes, and each run's accuracy.

    size: the rows of a batch; every: of how many entries one is taken.
    """
    train, held = split(ratings()[::every], seed=0)
    tokenizer = AutoTokenizer.from_pretrained(base())
    data = [[{**tokenizer(text), "labels": label} for text, label in rated] for rated in (train, held)]
    chosen = [(r, rate) for r in RANKS for rate in RATES]
    runs = {
        f"r{r}-{10_000 * rate:g}e-4": Run(
            LoRAConfig(r=r, lora_alpha=16, lora_dropout=0.05, task_type="SEQ_CLS"), learning_rate=rate, seed=seed
        )
        for seed, (r, rate) in enumerate(chosen)
    }
    given = {
        "train_dataset": data[0], "eval_dataset": data[1], "compute_metrics": _accuracy,
        "data_collator": DataCollatorWithPadding(tokenizer),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "num_train_epochs": 1, "per_device_train_batch_size": size, "per_device_eval_batch_size": 128,
            "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no",
            "dataloader_pin_memory": False, "use_cpu": device == "cpu",
        }  # fmt: skip
        seconds, cpu, accuracies = (_together if arm == TOGETHER else _alone)(runs, settings, given, Path(scratch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "accuracies": [round(each, 6) for each in accuracies],
    }


class Clock:
    """Seconds since it was made: of the wall's clock, and of this process's on all cores."""

    def __init__(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def spent(self) -> tuple[float, float]:
        """Return both."""
        return time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]


def _model() -> Any:
    set_seed(0)  # one new head for all
    return AutoModelForSequenceClassification.from_pretrained(base(), num_labels=2)


def _together(runs: dict[str, Run], settings: dict[str, Any], given: Any, out: Path) -> Trained:
    model, begin = _model(), Clock()
    args = TrainingArguments(str(out), **settings)
    results = quietly(lambda: train_together(model, runs, args, **given))
    return *begin.spent(), [row["eval_accuracy"] for row in results]


def _alone(runs: dict[str, Run], settings: dict[str, Any], given: Any, out: Path) -> Trained:
    seconds, cpu, accuracies = 0.0, 0.0, []
    for name, run in runs.items():
        model, begin = _model(), Clock()
        args = TrainingArguments(str(out / name), **{**settings, **run.settings})
        set_seed(args.seed)
        trainer = Trainer(LoRAModel.from_model(model, run.config, name), args, **given)
        quietly(trainer.train)
        accuracies.append(quietly(trainer.evaluate)["eval_accuracy"])
        trainer.save_model()
        spent = begin.spent()
        seconds, cpu = seconds + spent[0], cpu + spent[1]
    return seconds, cpu, accuracies


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
