"""`hf-lora tasks`: what `hf-lora train` can learn."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from .showing import show_json, show_table

__all__ = ["tasks"]


def tasks(as_json: Annotated[bool, Option("--json", help="print everything as JSON")] = False) -> None:
    """List the tasks: what each learns, which columns it needs, and what it measures.

    Columns in brackets may be missing. Which column is what is guessed from names and values, or said with --column.

    Example:

        hf-lora tasks
    """
    from ..training.tasks.table import TASKS  # not above: other commands need none of it

    rows = [task.described() for task in TASKS.values()]
    if as_json:
        show_json(rows)
        return
    cells = [(row["task"], row["says"], " ".join(_named(row)), " ".join(row["metrics"])) for row in rows]
    show_table(("task", "learns", "columns", "metrics"), cells, whole=["metrics"])


def _named(row: dict) -> list[str]:
    return [*row["columns"], *(f"[{name}]" for name in row["optional"])]
