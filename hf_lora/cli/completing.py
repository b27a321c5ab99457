"""What the shell completes: names of tasks and of metrics."""

from __future__ import annotations

__all__ = ["COMPLETIONS", "metrics", "tasks"]


def tasks(incomplete: str) -> list[str]:
    """Return the tasks that begin so."""
    from ..training.tasks.table import TASKS  # not above: each command would read all of them

    return [name for name in TASKS if name.startswith(incomplete)]


def metrics(incomplete: str) -> list[str]:
    """Return the metrics that are measured without a network and begin so."""
    from ..training.measures import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


COMPLETIONS = {"metric": metrics, "task": tasks}  # of the settings of a run
