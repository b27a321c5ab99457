"""Ask the questions, print their tables, and keep their figures in results/<question>-<device>.json.

    python -m benchmarks                                    all of them: about 45 minutes on two quiet cores
    python -m benchmarks step --rounds 30 --threads 1 2     one of them, with one thread and with two
    python -m benchmarks step --full                        the whole matrix of 216 cells: hours

What each question asks is told at the head of its file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import (
    accuracy,
    cache,
    dora,
    dry_run,
    experts,
    family,
    formulas,
    memory,
    operations,
    quantised,
    rows,
    step,
    switches,
    together,
)  # fmt: skip
from .measure import Findings, Options, machine

PACKAGES = ("torch", "transformers", "peft", "loralib")
RESULTS = Path(__file__).parent / "results"
QUESTIONS: dict[str, Callable[[Options], Findings]] = {
    "step": step.run,
    "memory": memory.run,
    "formulas": formulas.run,
    "dora": dora.run,
    "switches": switches.run,
    "operations": operations.run,
    "experts": experts.run,
    "accuracy": accuracy.run,
    "together": together.run,
    "cache": cache.run,
    "rows": rows.run,
    "dry_run": dry_run.run,
    "family": family.run,
    "quantised": quantised.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the questions that the command line names, with every number of threads that it names."""
    chosen = _parser().parse_args(arguments)
    options = Options(torch.device(chosen.device), chosen.rounds, chosen.scale)
    chosen.output.mkdir(parents=True, exist_ok=True)
    for name in chosen.questions or QUESTIONS:
        record = {"question": name, "scale": chosen.scale, "rounds": chosen.rounds, **machine(options.device, PACKAGES)}
        answers = [_ask(name, threads, options) for threads in chosen.threads or [torch.get_num_threads()]]
        path = chosen.output / f"{name}-{options.device.type}.json"
        path.write_text(json.dumps({**record, "answers": answers}, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="which ones (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15, help="times that each arm is timed")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads to measure with (default: torch's)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--full", dest="scale", action="store_const", const="full", default="default")
    scale.add_argument("--smoke", dest="scale", action="store_const", const="smoke", help="tiny models, for tests")
    return parser


def _ask(name: str, threads: int, options: Options) -> dict[str, object]:
    torch.set_num_threads(threads)
    print(f"\n=== {name}: {options.device}, {threads} threads, {options.rounds} rounds")
    found, summary = QUESTIONS[name](options)
    print("", *summary, sep="\n")
    return {"threads": threads, "summary": summary, "rows": found}


if __name__ == "__main__":
    main()
