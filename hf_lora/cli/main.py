"""The hf-lora command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .._version import __version__
from ..errors import LoRAError, printable
from . import demo, inspect, predict, push, train

__all__ = ["app", "main"]

app = typer.Typer(
    name="hf-lora", help="LoRA as a property of a Transformers model.", no_args_is_help=True,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
for command in (train.train, predict.predict, demo.demo, push.push, inspect.inspect):
    app.command()(command)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"hf-lora {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="say it")] = False,
) -> None:
    """LoRA as a property of a Transformers model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's own unless given) and return its exit status.

    0: done; 1: what was asked is not so (an adapter that cannot be used), or nobody reads the output any more
    (`| head`); 2: bad arguments, or a LoRAError, in one line on stderr; 130: interrupted.
    """
    try:
        try:
            app(argv, prog_name="hf-lora")
        finally:
            sys.stdout.flush()
    except SystemExit as done:  # how typer ends a command
        return int(done.code or 0)
    except LoRAError as error:
        print("hf-lora:", printable(" ".join(str(error).split())), file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        return 1
    return 0
