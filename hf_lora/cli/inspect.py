"""`hf-lora inspect`: what an adapter is, told without its base."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Exit, Option

from .showing import show_json

__all__ = ["inspect"]


def inspect(
    adapter: Annotated[
        str, Argument(metavar="ID_OR_PATH", help="a repo of the Hub, a directory or a .safetensors file")
    ],
    revision: Annotated[str | None, Option(help="branch, tag or commit on the Hub")] = None,
    subfolder: Annotated[str | None, Option(help="where in the repo or directory it lies")] = None,
    as_json: Annotated[bool, Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Say what an adapter is, and what to know before using it.

    It is opened as loading does, without its base, and nothing is executed; of weights on the Hub the heads alone are
    fetched. Exit status: 0 it can be used, 1 it cannot be used, 2 no adapter, or one that cannot be read.

    Examples:

        hf-lora inspect me/reviews-lora

        hf-lora inspect outputs/reviews --json
    """
    from ..formats.inspection import inspect_adapter  # not above: it imports huggingface_hub

    given = {"revision": revision, "subfolder": subfolder}
    seen = inspect_adapter(adapter, **{key: value for key, value in given.items() if value is not None})
    if as_json:
        show_json(seen.to_dict())
    else:
        print(seen)
    raise Exit(0 if seen.is_usable else 1)
