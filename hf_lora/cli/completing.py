"""What the shell completes: names of tasks, of metrics and of engines."""

from __future__ import annotations

__all__ = ["COMPLETIONS", "engines", "metrics", "tasks"]


def tasks(incomplete: str) -> list[str]:
    """Return the tasks that begin so."""
    from ..training.tasks.table import TASKS  # not above: each command would read all of them

    return [name for name in TASKS if name.startswith(incomplete)]


def metrics(incomplete: str) -> list[str]:
    """Return the metrics that are measured without a network and begin so."""
    from ..training.measures import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


def engines(incomplete: str) -> list[str]:
    """Return the engines whose rules are known and whose names begin so."""
    from ..formats.engines import ENGINES

    return [name for name in ENGINES if name.startswith(incomplete)]


COMPLETIONS = {"metric": metrics, "task": tasks}  # of the settings of a run
