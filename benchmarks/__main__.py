"""`python -m benchmarks [--device cuda]`: run every benchmark, print its table, keep its figures in results/."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

import torch
import transformers

from . import operations, step

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {"step": step.run, "operations": operations.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which ones (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name in options.names or BENCHMARKS:
        rows = BENCHMARKS[name](torch.device(options.device), options.rounds)
        record = {
            "benchmark": name,
            "date": datetime.date.today().isoformat(),
            **_machine(options.device),
            "rows": rows,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{options.device}.json").write_text(json.dumps(record, indent=2) + "\n")


def _machine(device: str) -> dict[str, object]:
    import peft

    import hf_lora

    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, hf_lora)},
    }


if __name__ == "__main__":
    main()
