"""`hf-lora demo`: train, save and check an adapter on real data."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    text = "tune a real BERT on real sentiment ratings, save the adapter, and reload it in a fresh process"
    demo = commands.add_parser("demo", help=text, description=text[0].upper() + text[1:] + ".")
    demo.add_argument("--epochs", type=_positive, default=1.0, metavar="N", help="passes over the data (default: 1)")
    demo.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the split and the training (default: 0)")
    demo.add_argument("--r", type=int, default=8, metavar="N", help="the adapter's rank (default: 8)")
    demo.add_argument(
        "--output", type=Path, default=Path("outputs/demo"), metavar="DIR", help="where to save (default: %(default)s)"
    )
    demo.add_argument(
        "--check", type=Path, metavar="DIR", help="only reload the demo saved there and compare its scores"
    )
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from .check import check, check_in_fresh_process  # not above: they import torch
    from .job import run
    from .results import DemoOptions

    if arguments.check is not None:
        return 0 if check(arguments.check) else 1
    run(DemoOptions(epochs=arguments.epochs, seed=arguments.seed, r=arguments.r), arguments.output)
    return 0 if check_in_fresh_process(arguments.output) else 1


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 .. 2**32 - 1")
    return value
