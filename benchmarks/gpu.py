"""Everything that one GPU can tell in six minutes: `make gpu`. It needs no network, and says so where a package lacks.

    python -m benchmarks.gpu                          all parts, the most telling first
    python -m benchmarks.gpu --only step kernels      some of them
    python -m benchmarks.gpu --device cpu --small     all of it, tiny, as the tests run it

Each part prints its table as it goes. The file (results/gpu-<device>.json; a run with --small or --only has one of its
own) is written anew after each part, so that a run that is stopped loses only the part it was in. A part or a cell for
which no time is left is recorded as skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import correctness, dropout, llama, operations
from .measure import Budget, Options, Row, machine

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "triton")
PARTS: Mapping[str, Callable[[Options], Iterator[Row]]] = {
    "correct": correctness.run,
    "dropout": dropout.run,
    "step": llama.steps,
    "tokens": llama.tokens,
    "operations": operations.on_device,
    "kernels": llama.kernels,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that the command line names; return 1 where one failed or found something wrong, else 0."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.output.exists() and not chosen.output.is_dir():
        parser.error(f"--output {chosen.output} is a file; it names a folder.")
    try:
        device = torch.empty(0, device=chosen.device).device
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {chosen.device}: {' '.join(str(error).split())[:200]}")
    budget = Budget(60 * chosen.minutes)
    options = Options(
        device, rounds=3 if chosen.small else 15, scale="smoke" if chosen.small else "default", budget=budget
    )
    name = "-".join(["gpu", device.type, *(["small"] if chosen.small else []), *(chosen.only or [])])
    path: Path = chosen.output / f"{name}.json"
    record: dict[str, Any] = {**machine(device, PACKAGES), "small": chosen.small, "parts": {}}
    for part in chosen.only or PARTS:
        record["parts"][part] = _told(part, options)
        chosen.output.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)
    wrong = [part for part, found in record["parts"].items() if not found["ok"]]
    print(f"\n{path}, {budget.spent():.0f} s" + (f"; look at {', '.join(wrong)}" if wrong else ""), flush=True)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few rounds: does it run at all?")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts")
    parser.add_argument("--minutes", type=float, default=5.5, help="after which nothing new is begun (default: 5.5)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def _told(name: str, options: Options) -> dict[str, Any]:
    """Run a part and return its record; what it found before an error or the end of the time is kept."""
    print(f"\n=== {name}: {options.device}", flush=True)
    rows: list[Row] = []
    start = time.perf_counter()
    part: dict[str, Any] = {"rows": rows, "error": None}
    try:
        rows.extend([] if options.budget.over() else PARTS[name](options))
    except Exception as error:  # of whatever a GPU holds in store: the other parts still run
        part["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    part |= {"seconds": round(time.perf_counter() - start, 1), "skipped": options.budget.over() and not rows}
    part["ok"] = part["error"] is None and all(row.get("ok", True) for row in rows)
    if options.device.type == "cuda":
        torch.cuda.empty_cache()
    return part


if __name__ == "__main__":
    raise SystemExit(main())
