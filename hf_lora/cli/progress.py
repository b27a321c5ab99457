"""What `hf-lora train` shows: what was understood, one bar, a line an evaluation, a table at the end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import printable
from .showing import show_json, show_table

__all__ = ["Progress", "only_ours", "show_dry_run", "show_result"]


class Progress:
    """A bar of the steps, on a terminal alone, and lines that stay. Use it as a context manager.

    quiet: all of it goes to stderr.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console  # not above: they take a tenth of a second
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=quiet, highlight=False, markup=False)
        words = TextColumn("{task.description}", markup=False)
        columns = words, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bar."""
        self._console.print(printable(line), soft_wrap=True)

    def step(self, done: int, steps: int, loss: float | None) -> None:
        """Move the bar."""
        said = "training" if loss is None else f"loss {loss:.4g}"
        if self._task is None:
            self._task = self._bar.add_task(said, total=steps, completed=done)
        self._bar.update(self._task, completed=done, total=steps, description=said)


@contextmanager
def only_ours(say: Callable[[str], None]) -> Iterator[None]:
    """Keep other libraries' bars and remarks off the terminal, and give `say` what is warned of."""
    silent, shown = logging.NullHandler(), warnings.showwarning
    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes")]
    for logger in loggers:  # without any handler Python would print what they say
        logger.addHandler(silent)
    import datasets
    from transformers.utils import logging as theirs

    had_bars = theirs.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    try:
        theirs.disable_default_handler()
        theirs.disable_progress_bar()
        datasets.disable_progress_bars()
        warnings.showwarning = lambda message, *where, **more: say(f"warning: {message}")
        yield
    finally:
        warnings.showwarning = shown
        for logger in loggers:
            logger.removeHandler(silent)
        theirs.enable_default_handler()
        if had_bars[0]:
            theirs.enable_progress_bar()
        if had_bars[1]:
            datasets.enable_progress_bars()


def show_result(output: str, rows: str, record: Mapping[str, Any]) -> None:
    """Print what a run measured, where its adapter is, and what to type next."""
    splits = {"eval": "eval", "test": "test"}
    parts = {title: record[split] for split, title in splits.items() if split in record}
    names = list(dict.fromkeys(name for part in parts.values() for name in part))
    best, seconds = record["best"], record["seconds"]["all"]
    show_table(
        ["metric", *parts],
        [[name, *(part.get(name) for part in parts.values())] for name in names],
        title=f"The adapter of step {best['step']} of {record['steps']}; all took {seconds:.0f} s",
    )
    print(printable(f"The adapter, its card, curves and record are in {output}."))
    print(printable(f"Next: hf-lora predict {output} {rows}"))


def show_dry_run(found: Mapping[str, Any], as_json: bool) -> None:
    """Print what a training would be."""
    if as_json:
        show_json(found)
        return
    memory, words = found["memory"], ("now", "step", "optimizer")
    for name in ("model", "task", "columns", "rows", "classes", "remarks", "output"):
        if name in found:
            print(printable(f"{name}: {found[name]}"))
    print(f"steps: {found['steps']:,}\n\n{found['targets']}\n")
    where = "resident in this process" if memory["device"] == "cpu" else "allocated by torch on the GPU"
    parts = ", ".join(f"{name} {memory[name] / 2**20:,.0f}" for name in words)
    print(f"memory: {memory['peak'] / 2**20:,.0f} MiB at most, {where} (MiB: {parts})\n")
    for number, sample in enumerate(found["samples"], start=1):
        print(f"sample {number}, as the model sees it")
        for name, value in sample.items():
            print(printable(f"  {name}: {value}"))
