"""The hf-lora command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import LoRAError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's own unless given) and return its exit status.

    0: done; 1: the demo's check found other scores, or `inspect` something suspicious; 2: a LoRAError, told in one line
    on stderr, or bad arguments (then it raises SystemExit, as argparse does).
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except LoRAError as error:
        print("hf-lora:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-lora", description="LoRA as a property of a Transformers model.")
    parser.add_argument("--version", action="version", version=f"hf-lora {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    _add_demo(commands)
    _add_push(commands)
    _add_inspect(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    demo.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import DemoOptions, check, check_in_fresh_process, run  # not above: it imports torch

    if arguments.check is not None:
        return 0 if check(arguments.check) else 1
    run(DemoOptions(epochs=arguments.epochs, seed=arguments.seed, r=arguments.r), arguments.output)
    return 0 if check_in_fresh_process(arguments.output) else 1


def _add_push(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "upload a saved adapter to the Hub, in one commit, and print its URL"
    more = " The token is the one of `hf auth login` or HF_TOKEN: on a command line, others could see it."
    push = commands.add_parser("push", help=text, description=text[0].upper() + text[1:] + "." + more)
    push.add_argument("directory", type=Path, metavar="DIR", help="what save_pretrained wrote")
    push.add_argument("repo", metavar="REPO", help="name, or owner/name; made where it is missing")
    push.add_argument("--private", action="store_true", help="make the repo private")
    push.add_argument("--revision", metavar="BRANCH", help="made from main where it is missing (default: main)")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    push.add_argument("--commit-message", metavar="TEXT", help="default: Upload adapter")
    push.add_argument("--base-model", metavar="REPO", help="the base's Hub id, where it was loaded from a local path")
    push.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> int:
    from .model.publishing import push_folder  # not above: it imports torch

    url = push_folder(
        arguments.directory, arguments.repo, private=arguments.private or None, revision=arguments.revision,
        create_pr=arguments.create_pr, commit_message=arguments.commit_message, base_model=arguments.base_model,
    )  # fmt: skip
    print(url)
    return 0


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "say what an adapter is, and what is odd about it, from its config and the heads of its files"
    inspect = commands.add_parser(
        "inspect",
        help=text,
        description=text[0].upper() + text[1:] + ". Neither its weights nor its base are loaded; nothing is executed.",
        epilog="Exit status: 0 nothing suspicious, 1 something suspicious, 2 no adapter, or one that cannot be read.",
    )
    inspect.add_argument("adapter", metavar="ID_OR_PATH", help="a repo of the Hub, a directory or a .safetensors file")
    inspect.add_argument("--revision", help="branch, tag or commit on the Hub")
    inspect.add_argument("--subfolder", help="where in the repo or directory it lies")
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from .formats.inspection import inspect_adapter  # not above: it imports huggingface_hub

    given = {"revision": arguments.revision, "subfolder": arguments.subfolder}
    seen = inspect_adapter(arguments.adapter, **{key: value for key, value in given.items() if value is not None})
    print(json.dumps(seen.to_dict(), indent=2) if arguments.json else seen)
    return 1 if seen.findings else 0


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
