"""`hf-lora evaluate`: how good a run's adapter is."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from .completing import metrics as metric_names
from .showing import hush, remark, show_json, show_table
from .train import pairs

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[str, Argument(metavar="DIR", help="a run's folder; with ROWS any adapter, also on the Hub")],
    rows: Annotated[
        str | None,
        Argument(metavar="[ROWS]", help="rows with labels (default: the run's test rows)"),
    ] = None,
    metric: Annotated[
        list[str] | None, Option(help="what to measure (default: the run's metrics)", autocompletion=metric_names)
    ] = None,
    base: Annotated[bool, Option("--base", help="measure the base without the adapter beside it")] = False,
    column: Annotated[
        list[str] | None, Option(metavar="ROLE=NAME", help="which column is what, as text=review")
    ] = None,
    encoding: Annotated[str | None, Option(help="of a file of text that is not UTF-8, as cp1252")] = None,
    skip_bad_rows: Annotated[bool, Option("--skip-bad-rows", help="leave out rows that cannot be used")] = False,
    batch_size: Annotated[int | None, Option(min=1, help="rows at once (default: the run's)")] = None,
    as_json: Annotated[bool, Option("--json", help="print the numbers as JSON, with all their digits")] = False,
) -> None:
    """Measure an adapter on the test rows of its run, or on others.

    The same rows give the same numbers as in the run's metrics.json, to the last digit.

    Examples:

        hf-lora evaluate outputs/reviews

        hf-lora evaluate outputs/reviews new.csv --metric accuracy --base --json
    """
    from ..training.run.measuring import measure  # not above: it imports torch

    hush()
    found = measure(run, rows, metric or [], base, batch_size, pairs("column", column or []), skip_bad_rows, encoding)
    if found.differs:
        remark(f"{found.differs} The rows, the base or the software changed since.")
    if found.learnt:
        remark(f"{found.learnt}, so the numbers are too good; `hf-lora evaluate {run}` measures the rows kept apart.")
    if as_json:
        show_json(found.to_dict())
        return
    columns = ["metric", "adapter", *(["base"] if found.base is not None else [])]
    parts = [found.adapter, *([found.base] if found.base is not None else [])]
    show_table(columns, [[name, *(part.get(name) for part in parts)] for name in found.adapter], title=found.rows)
    if found.positive:
        remark(f"f1, precision and recall are of the label {found.positive!r}.")
    if found.untrained:
        remark(f"the base alone has an untrained {found.untrained}, so its numbers are those of chance.")
