"""The hf-lora command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import LoRAError, printable
from . import demo, inspect, push

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's own unless given) and return its exit status.

    0: done; 1: the demo's check found other scores, or `inspect` an adapter that cannot be used; 2: a LoRAError, in one
    line on stderr, or bad arguments (then it raises SystemExit, as argparse does); 141: nobody reads the output any
    more (`| head`), as a shell says it of what SIGPIPE ended.
    """
    try:
        try:
            return _done(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        return 141


def _done(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except LoRAError as error:
        print("hf-lora:", printable(" ".join(str(error).split())), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-lora", description="LoRA as a property of a Transformers model.")
    parser.add_argument("--version", action="version", version=f"hf-lora {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for command in (demo, push, inspect):
        command.add(commands)
    return parser
