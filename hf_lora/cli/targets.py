"""`hf-lora targets`: which layers of a model an adapter would get."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from .completing import tasks as task_names
from .showing import show_json
from .train import pairs

__all__ = ["targets"]


def targets(
    model: Annotated[str, Argument(metavar="MODEL", help="a base: an id of the Hub or a folder")],
    target_modules: Annotated[
        str, Option(help="auto, attention, all-linear, names with commas between, or a regular expression")
    ] = "all-linear",
    r: Annotated[int, Option("--r", min=1, help="rank")] = 16,
    task: Annotated[
        str | None,
        Option(help="load it for this task (default: as its checkpoint says)", autocompletion=task_names),
    ] = None,
    lora: Annotated[
        list[str] | None, Option(metavar="NAME=VALUE", help="any other setting of LoRAConfig, as bias=lora_only")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Show which layers of a base an adapter would get; no weights are loaded.

    Examples:

        hf-lora targets Qwen/Qwen2.5-0.5B --r 8

        hf-lora targets bert-base-uncased --target-modules query,value --lora bias=lora_only
    """
    from ..model.planned import planned  # not above: it imports torch
    from ..model.report import target_rows, trainable_counts
    from ..training.run.arguments import target_names

    adapted = planned(model, target_names(target_modules), r, _auto_class(model, task), pairs("lora", lora or []))
    trained, total = trainable_counts(adapted)
    base = total - trained
    if as_json:
        columns = ("target", "kind", "shape", "layers", "of", "parameters")
        table = [dict(zip(columns, row, strict=True)) for row in target_rows(adapted)]
        show_json({"targets": table, "trained": trained, "base": base})
        return
    print(adapted.targets_report())
    print(f"An adapter of {trained:,} parameters on a base of {base:,}: {trained / base:.2%}.")


def _auto_class(model: str, task: str | None) -> str | None:
    from ..training.run.rows import known_task, model_task

    return None if task is None else model_task(model, known_task(task)).auto_class
