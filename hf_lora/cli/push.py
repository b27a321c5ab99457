"""`hf-lora push`: a saved adapter to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

__all__ = ["push"]


def push(
    directory: Annotated[Path, Argument(metavar="DIR", help="what save_pretrained wrote")],
    repo: Annotated[str, Argument(metavar="REPO", help="name, or owner/name; made where it is missing")],
    private: Annotated[bool, Option("--private", help="make the repo private")] = False,
    revision: Annotated[str | None, Option(metavar="BRANCH", help="made from main where it is missing")] = None,
    create_pr: Annotated[bool, Option("--create-pr", help="open a pull request instead")] = False,
    commit_message: Annotated[str | None, Option(metavar="TEXT", help="default: Upload adapter")] = None,
    base_model: Annotated[
        str | None, Option(metavar="REPO", help="the base's Hub id, where it was loaded from a local path")
    ] = None,
) -> None:
    """Upload a saved adapter to the Hub, in one commit, and print its URL.

    What goes is the adapter, its card, its tokenizer and how a run prepared its rows; a run's settings and log, which
    name places of this machine, stay. The token is the one of `hf auth login` or HF_TOKEN: on a command line, others
    could see it.

    Examples:

        hf-lora push outputs/reviews me/reviews-lora --private

        hf-lora push outputs/reviews me/reviews-lora --base-model sentence-transformers/all-MiniLM-L6-v2
    """
    from ..model.publishing import push_folder  # not above: it imports torch
    from ..training.run.measuring import settings_of

    base_model = base_model or settings_of(directory).base_id
    url = push_folder(
        directory, repo, private=private or None, revision=revision, create_pr=create_pr,
        commit_message=commit_message, base_model=base_model,
    )  # fmt: skip
    print(url)
