"""`hf-lora push`: a saved adapter to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
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
    push.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ..model.publishing import push_folder  # not above: it imports torch

    url = push_folder(
        arguments.directory, arguments.repo, private=arguments.private or None, revision=arguments.revision,
        create_pr=arguments.create_pr, commit_message=arguments.commit_message, base_model=arguments.base_model,
    )  # fmt: skip
    print(url)
    return 0
