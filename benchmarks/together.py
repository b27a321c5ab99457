"""Eight runs in one pass over one base, against the stock Trainer with one after the other: time, memory, accuracy.

The demo's job (hf_lora/cli/demo.py): a pretrained MiniLM learns the sentiment of words, batches of 32, one epoch of a
third of the entries (`--full`: of all); four learning rates, two ranks, each with a seed of its own. Every arm is a
process of its own, in turn (A B B A), its time is from the base in memory to the last accuracy, its peak the process's
largest resident set. Both arms train the same runs, with dropout; their accuracies are compared one by one.
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
from hf_lora.cli.demo import base, ratings, split

from .accuracy import _accuracy, _quietly
from .measure import Findings, Options, Row

Trained = tuple[float, float, list[float]]  # seconds, the processor's seconds, each run's accuracy
ALONE, TOGETHER = "one after another", "together"
RATES, RANKS = (5e-4, 1e-3, 2e-3, 4e-3), (4, 16)


def run(options: Options) -> Findings:
    """Train with both arms, each in processes of its own, and return a row an arm."""
    is_smoke = options.scale == "smoke"
    order = [ALONE, TOGETHER] if is_smoke else [ALONE, TOGETHER, TOGETHER, ALONE]
    found: dict[str, list[Row]] = {ALONE: [], TOGETHER: []}
    for arm in order:
        command = [sys.executable, "-m", "benchmarks.together", arm, options.scale, options.device.type]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **threads})
        found[arm].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"  {arm:<20}{found[arm][-1]['seconds']:>8.1f} s", flush=True)
    alone, together = found[ALONE], found[TOGETHER]
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(alone, together, strict=True)]
    cpu_ratios = [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(alone, together, strict=True)]
    peaks = {arm: max(row["peak_bytes"] for row in each) for arm, each in found.items()}
    apart = max(abs(a - b) for a, b in zip(alone[0]["accuracies"], together[0]["accuracies"], strict=True))
    rows = [
        {
            "arm": arm, "cell": "MiniLM-L6, eight runs", "accuracies": each[0]["accuracies"],
            "seconds": round(statistics.median(row["seconds"] for row in each), 2),
            "cpu_seconds": round(statistics.median(row["cpu_seconds"] for row in each), 2),
            "ratio": 1.0 if arm == ALONE else round(statistics.median(ratios), 4),
            "cpu_ratio": 1.0 if arm == ALONE else round(statistics.median(cpu_ratios), 4),
            "peak_bytes": peaks[arm], "peak_ratio": round(peaks[arm] / peaks[ALONE], 4),
        }
        for arm, each in found.items()
    ]  # fmt: skip
    return Findings(rows, [
        f"Together: time x{statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)}), processor "
        f"x{statistics.median(cpu_ratios):.2f} ({', '.join(f'{r:.2f}' for r in cpu_ratios)}), peak "
        f"{peaks[TOGETHER] / 2**20:.0f} MiB where one after another has {peaks[ALONE] / 2**20:.0f}; accuracies differ "
        f"by at most {apart:.4f}, and are {alone[0]['accuracies']} alone.",
    ])  # fmt: skip


def measured(arm: str, scale: str, device: str) -> Row:
    """Train the eight runs in this process; return seconds, the peak's bytes, and each run's accuracy."""
    entries = ratings()
    train, held = split(entries[:: {"smoke": len(entries) // 160, "full": 1}.get(scale, 3)], seed=0)
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
            "num_train_epochs": 1, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128,
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
    results = _quietly(lambda: train_together(model, runs, args, **given))
    return *begin.spent(), [row["eval_accuracy"] for row in results]


def _alone(runs: dict[str, Run], settings: dict[str, Any], given: Any, out: Path) -> Trained:
    seconds, cpu, accuracies = 0.0, 0.0, []
    for name, run in runs.items():
        model, begin = _model(), Clock()
        args = TrainingArguments(str(out / name), **{**settings, **run.settings})
        set_seed(args.seed)
        trainer = Trainer(LoRAModel.from_model(model, run.config, name), args, **given)
        _quietly(trainer.train)
        accuracies.append(_quietly(trainer.evaluate)["eval_accuracy"])
        trainer.save_model()
        spent = begin.spent()
        seconds, cpu = seconds + spent[0], cpu + spent[1]
    return seconds, cpu, accuracies


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:])))
