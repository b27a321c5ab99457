"""`hf-lora predict`: what an adapter says of rows."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

__all__ = ["predict"]


def predict(
    run: Annotated[Path, Argument(metavar="DIR", help="a run's folder")],
    rows: Annotated[str, Argument(metavar="ROWS", help="a file or folder of rows, as --train takes it")],
    output: Annotated[Path | None, Option(help="where to write JSONL (default: print it)")] = None,
    batch_size: Annotated[int, Option(help="rows at once")] = 16,
) -> None:
    """Write what an adapter says of each row, as a line of JSON."""
    from ..training.data.reading import read_rows  # not above: they import torch
    from ..training.run.using import load_run

    with tempfile.TemporaryDirectory() as scratch:
        found = read_rows(rows, Path(scratch))
        trained = load_run(run)
        with output.open("w", encoding="utf-8") if output else sys.stdout as file:
            for prediction in trained.predict(found, batch_size):
                print(json.dumps(prediction, ensure_ascii=False), file=file)
