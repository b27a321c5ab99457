"""Which task a file of rows is for: told from its columns, what stands in them, and what the base can do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..data.columns import Role, choose_columns, columns_by_name, is_key, values_of
from ..data.folders import is_media
from .classes import LABEL
from .table import TASKS
from .task import TrainingTask
from .texts import is_text, mean_length


@dataclass(frozen=True)
class Guess:
    """A task that rows could be for: its columns, those told by their name or by values that nothing else has.

    score: how many columns it explains; those that only their values tell count half.
    """

    task: TrainingTask
    columns: dict[str, str]
    told: frozenset[str]

    @property
    def score(self) -> float:
        return (len(self.columns) + len(self.told)) / 2

    @property
    def has_label(self) -> bool:
        """Whether something beside the text is learnt."""
        return any(role.is_label and role.name in self.columns for role in self.task.roles)

    def left(self, values: Mapping[str, Sequence[Any]]) -> list[str]:
        """Return the columns that the task does not use, without keys and empty ones."""
        return [name for name in values if name not in self.columns.values() and not is_key(name) and values[name]]

    def is_likely(self, values: Mapping[str, Sequence[Any]]) -> bool:
        """Return whether what is learnt looks like it."""
        labels = [role for role in self.task.roles if role.is_label and role.name in self.columns]
        return all(_likes(role, values[self.columns[role.name]]) for role in labels if role.preference is not None)

    def why(self) -> str:
        """Say what told the task."""
        return ", ".join(f"{column!r} is the {name}" for name, column in self.columns.items())


def guess_task(rows: Sequence[Mapping[str, Any]], given: Mapping[str, str], source: str, config: Any = None) -> Guess:
    """Return the task that explains the most columns.

    rows: the first ones of a file. given: columns of roles that the user names. config: the base's, where there is one;
    a task whose models it does not know is none. Raises DataError that lists the tasks where several fit as well.
    """
    values = values_of(rows)
    tasks = [task for task in TASKS.values() if config is None or task.model_task(config) is not None]
    found = [guess for task in tasks if (guess := _fit(task, rows, values, given, source)) is not None]
    best = [guess for guess in found if guess.score == max(each.score for each in found)]
    best = [guess for guess in best if guess.is_likely(values)] or best
    others = _doubts(best[0], tasks, found, values, config is not None) if best else []
    if len(best) == 1 and not others:
        return best[0]
    has = f"{source}: it has the columns {', '.join(map(repr, values))}"
    if not best:
        other = [guess for task in TASKS.values() if (guess := _fit(task, rows, values, given, source)) is not None]
        if other:
            fitting = max(other, key=lambda guess: guess.score).task
            raise DataError(
                f"{has}, which are for {fitting.name}, and the base is a {config.model_type}, for {what_fits(config)}. "
                f"Take a base for {' or '.join(fitting.models)}, or rows for this one."
            )
        named = ", ".join(task.name for task in tasks)
        raise DataError(
            f"{has}, which fit no task. Say which column is what, as {_example(values)}, or which task it is with "
            f"--task ({named})."
        )
    names = list(dict.fromkeys([*(guess.task.name for guess in best), *others]))
    raise DataError(f"{has}, which could be for {' or '.join(names)}. Say which with --task, as --task {names[0]}.")


def _example(values: Mapping[str, Sequence[Any]]) -> str:
    """Return flags that name the columns which look like texts and like their labels, or NAME for both."""
    columns = {name: each for name, each in values.items() if each and not is_key(name)}
    longest = {name: mean_length(each) for name, each in columns.items() if all(map(is_text, each))}
    text = max(longest, key=longest.__getitem__, default="")
    few = {n: len(set(map(repr, each))) for n, each in columns.items() if n != text and _could_be(LABEL, each)}
    label = min(few, key=few.__getitem__, default="")
    named = (text, label) if label and _are_words(values[text]) else ("NAME", "NAME")
    return " ".join(f"--column {shlex.quote(each)}" for each in (f"text={named[0]}", f"label={named[1]}"))


def what_fits(config: Any) -> str:
    """Return the tasks that a base can learn, with the columns that each needs."""
    tasks = [task for task in TASKS.values() if task.model_task(config) is not None]
    said = [f"{task.name} ({' and '.join(task.described()['columns'])})" for task in tasks]
    return ", ".join(said) or "no task of this command"


def refuse_files(
    task: TrainingTask, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], source: str
) -> None:
    """Raise DataError where a task would take the paths of pictures or sounds for texts."""
    values = values_of(rows)
    for role in task.roles:
        if role.name in columns and role.holds is is_text and _are_files(values[columns[role.name]]):
            raise DataError(
                f"{source}: {columns[role.name]!r} holds pictures or sounds, as {values[columns[role.name]][0]}, and "
                f"{task.name} reads a {role.name}. Take the task of these files (`hf-lora tasks`), or name another "
                f"column with --column {role.name}=NAME."
            )


def _fit(
    task: TrainingTask, rows: Sequence[Mapping[str, Any]], values: Mapping[str, Sequence[Any]],
    given: Mapping[str, str], source: str,
) -> Guess | None:  # fmt: skip
    """Return what a task makes of rows; None where it has a column too few, or takes one that nothing speaks for."""
    roles = {role.name: role for role in task.roles}
    if not given.keys() <= roles.keys():
        return None
    try:
        columns = choose_columns(rows, task.roles, given, source)
    except DataError:
        return None
    if any(roles[name].holds is is_text and _are_files(values[column]) for name, column in columns.items()):
        return None
    if any(not _mostly(roles[name], values[column]) for name, column in given.items()):
        return None
    if not task.preparation.fits(rows, columns):
        return None
    named = columns_by_name(values, task.roles, given)
    told = {name for name, column in columns.items() if named.get(name) == column or _is_telling(roles[name])}
    guess = Guess(task, columns, frozenset(told))
    guessed = [name for name in columns if name not in told]
    liked = all(_likes(roles[name], values[columns[name]]) for name in guessed)
    are_words = all(roles[name].is_label and _are_words(values[columns[name]]) for name in guessed)
    return guess if not guessed or (liked and (given or are_words or not guess.left(values))) else None


def _are_words(values: Sequence[Any]) -> bool:
    """Return whether a column holds words, and not only numbers."""
    return any(str(value).strip()[:1].isalpha() for value in values)


def _are_files(values: Sequence[Any]) -> bool:
    """Return whether a column holds the paths of pictures or sounds, which are no texts."""
    return bool(values) and all(is_media(Path(str(value))) for value in values)


def _mostly(role: Role, values: Sequence[Any]) -> bool:
    """Return whether a column that the user names mostly holds what the role needs; checks tell of the rest."""
    return 2 * sum(map(role.holds, values)) >= len(values)


def _is_telling(role: Role) -> bool:
    """Return whether few values can be of a role, as turns of a chat or a picture: no text and no number as such."""
    return not any(role.holds(value) for value in ("words", "1", 1, 0.5))


def _likes(role: Role, values: Sequence[Any]) -> bool:
    return role.preference is not None and role.preference(values) > 0


def _doubts(
    guess: Guess, tasks: Sequence[TrainingTask], found: Sequence[Guess], values: Mapping[str, Sequence[Any]],
    has_base: bool,
) -> list[str]:  # fmt: skip
    """Return the other tasks that a file could as well be for.

    Writing texts, where the base does that and a guess has its label by its values only; and those that learn a label,
    where a guess learns the text alone, and there are columns whose values come again.
    """
    labels = {role.name for role in guess.task.roles if role.is_label}
    if guess.has_label:
        writes = has_base and not labels & guess.told
        return [each.task.name for each in found if writes and each.task.name == "causal-lm"]
    again = [values[name] for name in guess.left(values) if len(set(map(repr, values[name]))) <= len(values[name]) / 2]
    return [
        task.name
        for task in tasks
        if {role.name for role in task.roles if role.is_required and not role.is_label} <= guess.columns.keys()
        and any(_could_be(role, each) for role in task.roles for each in again)
    ]


def _could_be(label: Role, values: Sequence[Any]) -> bool:
    return label.is_label and all(map(label.holds, values)) and _likes(label, values)
