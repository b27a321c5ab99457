"""`hf-lora compare`: two runs, or two adapters, side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from .showing import show_json, show_table

__all__ = ["compare"]


def compare(
    first: Annotated[str, Argument(metavar="A", help="a run's folder, or an adapter's folder or Hub id")],
    second: Annotated[str, Argument(metavar="B", help="another one")],
    weights: Annotated[bool, Option("--weights", help="compare the adapters of two runs, layer by layer")] = False,
    as_json: Annotated[bool, Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Compare two runs by settings and results, or two adapters by what they add to the base.

    Of runs it says which is better, by how much, and where one seed cannot tell. Of adapters it says for each layer
    whether the updates agree (cosine 1), oppose each other (-1) or have nothing in common (0).

    Examples:

        hf-lora compare outputs/small-rank outputs/large-rank

        hf-lora compare me/french-lora me/german-lora
    """
    from ..training.run.comparing import compare_runs, is_run  # not above: it imports torch

    if not weights and is_run(Path(first)) and is_run(Path(second)):
        found = compare_runs(Path(first), Path(second))
        if as_json:
            show_json(found.to_dict())
        else:
            _show_runs(found)
        return
    from ..model.comparing import compare as compare_adapters

    compared = compare_adapters(first, second)
    if as_json:
        layers = [{name: _finite(value) for name, value in each._asdict().items()} for each in compared.layers]
        show_json({**asdict(compared), "layers": layers, "cosine": _finite(compared.cosine)})
    else:
        print(compared)


def _show_runs(found: Any) -> None:
    columns = ("", *found.names)
    if found.settings:
        show_table(columns, [(name, *pair) for name, pair in found.settings.items()], title="settings that differ")
    for split, results in found.results.items():
        rows = [(name, *pair, _difference(pair)) for name, pair in results.items()]
        show_table((*columns, "difference"), rows, title=f"measured on the {split} rows")
    show_table(columns, [(name, *pair) for name, pair in found.course.items()], title="the training")
    print(found)


def _difference(pair: tuple[Any, Any]) -> float | None:
    return None if any(not isinstance(value, int | float) for value in pair) else pair[1] - pair[0]


def _finite(value: Any) -> Any:
    return None if value != value else value
