"""The hf-lora command."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from .._version import __version__
from ..errors import LoRAError
from . import chat, check, compare, convert, data, evaluate, inspect, merge, predict, push, targets, tasks, train
from .showing import remark

__all__ = ["app", "main"]

# Heading of the help -> its commands, in the order of use.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "From rows to an adapter": (data.data, train.train, evaluate.evaluate, predict.predict, chat.chat, compare.compare),
    "Adapters": (targets.targets, inspect.inspect, check.check, convert.convert, merge.merge, push.push),
    "About": (tasks.tasks,),
}
app = typer.Typer(
    name="hf-lora", help="LoRA as a property of a Transformers model.", no_args_is_help=True,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)  # fmt: skip
for heading, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=heading)(command)
_EXTRAS = {
    "train": ("PIL", "datasets", "evaluate", "jiwer", "matplotlib", "pandas", "pyarrow", "pycocotools", "sacrebleu",
              "scipy", "seqeval", "sklearn", "soundfile", "yaml"),
    "trl": ("trl",),
    "export": ("gguf", "onnx", "onnx_ir", "onnxruntime", "onnxscript"),
}  # fmt: skip
BUG = 70  # EX_SOFTWARE of sysexits.h


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"hf-lora {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """LoRA as a property of a Transformers model.

    Each command tells more: `hf-lora train --help`.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's own unless given) and return its exit status.

    0: done; 1: what was asked is not so (an adapter that cannot be used), or nobody reads the output any more
    (`| head`); 2: bad arguments, files or rows, in one line on stderr; 70: a bug of hf_lora, with its traceback; 130:
    interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # a letter that a terminal has not is no reason to stop
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # what bitsandbytes misses is not asked for; without any handler Python would print it
    logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())
    try:
        try:
            app(argv, prog_name="hf-lora")
        finally:
            sys.stdout.flush()
    except SystemExit as done:  # how typer ends a command; to click 8.1 the help that no arguments get is a success
        asked = sys.argv[1:] if argv is None else argv
        return int(done.code or (0 if asked or "_HF_LORA_COMPLETE" in os.environ else 2))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        return 1
    except Exception as error:
        told = _told(error)
        if told is None:
            traceback.print_exc()
            remark("this is a bug of hf_lora, not a mistake of yours: please report it with the lines above.")
            return BUG
        remark(told)
        return 2
    return 0


def _told(error: Exception) -> str | None:
    """Return what to tell of an error that the user can mend; None for a bug of ours."""
    if isinstance(error, LoRAError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("hf_lora"):
        package = (error.name or "").partition(".")[0]
        extra = next((f"hf-lora[{name}]" for name, brings in _EXTRAS.items() if package in brings), package)
        return f"the package {package} is not installed: pip install '{extra}' brings it."
    if isinstance(error, UnicodeDecodeError):
        return f"what is read is no text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8."
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename and error.strerror else str(error)
    if type(error).__name__ == "SafetensorError" or "PytorchStreamWriter failed" in str(error):
        return f"a file of weights cannot be read or written ({' '.join(str(error).split())[:200]}); is the disk full?"
    name, text = type(error).__name__, " ".join(str(error).split())  # torch's errors, which is not imported to ask
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return f"{text} A smaller --batch-size, a shorter --max-length or a quantised base takes less memory."
    return None
