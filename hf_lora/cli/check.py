"""`hf-lora check`: what an engine makes of an adapter, before it is served there."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Exit, Option

from .completing import engines
from .showing import show_json, show_table

__all__ = ["check"]

STATUS = {"loads": 0, "refused": 1, "silently wrong": 3, "not known": 4}


def check(
    adapter: Annotated[str, Argument(metavar="ADAPTER", help="a folder, or a repo of the Hub")],
    engine: Annotated[
        str,
        Option("--for", metavar="ENGINE", help="vllm, sglang, llama.cpp, tgi, peft or mlx", autocompletion=engines),
    ],
    max_rank: Annotated[
        int | None, Option(min=1, help="the server's largest rank (default: vLLM's 16, the others' none)")
    ] = None,
    base_model: Annotated[str | None, Option(metavar="ID_OR_PATH", help="the base, where it lies elsewhere")] = None,
    revision: Annotated[str | None, Option(help="branch, tag or commit on the Hub")] = None,
    subfolder: Annotated[str | None, Option(help="where in the repo or directory it lies")] = None,
    as_json: Annotated[bool, Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Say whether an engine loads an adapter, refuses it, or loads it and computes something else.

    Nothing is loaded: the engine's own rules are asked, which were read in its source. Exit status: 0 it loads as it is
    meant, 1 it is refused, 3 it is silently wrong, 4 nobody knows, 2 no adapter, or one that cannot be read.

    Examples:

        hf-lora check outputs/helper --for vllm --max-rank 64

        hf-lora check me/helper-lora --for llama.cpp --json
    """
    from ..formats.engines import check_for  # not above: it imports huggingface_hub

    hub = {"revision": revision, "subfolder": subfolder}
    given = {key: value for key, value in hub.items() if value is not None}
    found = check_for(adapter, engine, max_rank=max_rank, base_model=base_model, **given)
    if as_json:
        show_json(found.to_dict())
    else:
        print(f"{found.engine} {found.version}: {found.verdict}")
        if found.told:
            rows = [(each.said, each.verdict, each.why, each.cure or None) for each in found.told]
            show_table(("because of", "verdict", "why", "what mends it"), rows)
    raise Exit(STATUS[found.verdict])
