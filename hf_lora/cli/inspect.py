"""`hf-lora inspect`: what an adapter is, told without its base."""

from __future__ import annotations

import argparse
import json

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    text = "say what an adapter is, and what to know before using it"
    inspect = commands.add_parser(
        "inspect",
        help=text,
        description=text[0].upper() + text[1:] + ". It is opened as loading does, without its base, and "
        "nothing is executed; of weights on the Hub the heads alone are fetched.",
        epilog="Exit status: 0 it can be used, 1 it cannot be used, 2 no adapter, or one that cannot be read.",
    )
    inspect.add_argument("adapter", metavar="ID_OR_PATH", help="a repo of the Hub, a directory or a .safetensors file")
    inspect.add_argument("--revision", help="branch, tag or commit on the Hub")
    inspect.add_argument("--subfolder", help="where in the repo or directory it lies")
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")
    inspect.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ..formats.inspection import inspect_adapter  # not above: it imports huggingface_hub

    given = {"revision": arguments.revision, "subfolder": arguments.subfolder}
    seen = inspect_adapter(arguments.adapter, **{key: value for key, value in given.items() if value is not None})
    print(json.dumps(seen.to_dict(), indent=2) if arguments.json else seen)
    return 0 if seen.is_usable else 1
