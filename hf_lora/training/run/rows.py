"""A run's rows: read, understood, checked, and parted into those to train on, to choose by and to measure on."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from ...config.tasks import Task
from ...errors import ConfigError, DataError, ModelError, some
from ..data.checking import check_columns, count_shared, usable_rows
from ..data.columns import choose_columns
from ..data.reading import read_splits
from ..data.splitting import split_rows
from ..data.written import Found, Wanted
from ..tasks.guessing import guess_task, refuse_files, what_fits
from ..tasks.lengths import Lengths, check_lengths, measure_lengths
from ..tasks.preparation import Preparation
from ..tasks.table import TASKS
from ..tasks.task import TrainingTask
from .settings import RunSettings

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_LOOKED_AT = 100  # rows whose values tell what a column is
_HELD = 0.1, 5000  # share of the rows, and at most so many, to choose by and to measure on, where nobody says it


def load_part(model: str | None, name: str) -> Any:
    """Return what an Auto class of Transformers loads beside a base's weights: its config, tokenizer or processor.

    Raises ModelError.
    """
    try:
        return getattr(transformers, name).from_pretrained(model)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:  # TypeError: a file that is not there
        told = " ".join(str(error).split())
        raise ModelError(
            f"--model {model}: no {name} could be loaded from there; name a model of the Hub, or a folder "
            f"with a model and its tokenizer or processor. {type(error).__name__}: {told}"
        ) from error


def base_config(settings: RunSettings) -> Any:
    """Return the base's config; None where no base is named. Raises ModelError."""
    return settings.model and load_part(settings.model, "AutoConfig")


def model_task(name: str, task: TrainingTask) -> Task:
    """Return the first row of the models' table that a task trains and a base is of. Raises ModelError for none."""
    config = load_part(name, "AutoConfig")
    if (found := task.model_task(config)) is not None:
        return found
    raise ModelError(
        f"--model {name}: it is a {config.model_type}, for {what_fits(config)}; --task {task.name} needs a base for "
        f"{' or '.join(task.models)}."
    )


def read_found(settings: RunSettings, scratch: Path) -> dict[str, Found]:
    """Return what was read of each file that the settings name, or that a folder of splits has. Raises DataError."""
    given = {name: getattr(settings, name) for name in ("train", "eval", "test")}
    return read_splits(given, scratch, Wanted(settings.encoding, settings.limit, settings.skip_bad_rows))


def read_files(settings: RunSettings, scratch: Path) -> dict[str, Dataset]:
    """Return the rows of each split, and tell which rows were left out. Raises DataError."""
    read = read_found(settings, scratch)
    for found in read.values():
        if found.left_out:
            logger.warning("left out %s rows: %s.", f"{len(found.left_out):,}", some(found.left_out, between="; "))
    return {name: found.rows for name, found in read.items()}


def choose_task(settings: RunSettings, rows: Dataset) -> tuple[TrainingTask, dict[str, str], str]:
    """Return the task of the settings, or the one that the columns tell, the column of each role, and why.

    Raises DataError, ConfigError for a task that there is not, ModelError for a base of other tasks.
    """
    first = rows.select(range(min(_LOOKED_AT, len(rows)))).to_list()
    if settings.task is not None:
        task = known_task(settings.task)
        _refuse_idle(settings, task)
        if settings.model is not None:
            model_task(settings.model, task)
        columns = choose_columns(first, task.roles, settings.column, str(settings.train))
        refuse_files(task, columns, first, str(settings.train))
        return task, columns, "as you say"
    guess = guess_task(first, settings.column, str(settings.train), base_config(settings))
    _refuse_idle(settings, guess.task)
    return guess.task, guess.columns, guess.why()


def _refuse_idle(settings: RunSettings, task: TrainingTask) -> None:
    """Raise ConfigError where a setting is that of other tasks: it would do nothing."""
    idle = [f"--{name.replace('_', '-')}" for name in settings.of_tasks() if name not in task.preparation.OPTIONS]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: {task.name} has no such option, so it would do nothing; leave it out.")


def known_task(name: str) -> TrainingTask:
    """Return a row of the table of tasks. Raises ConfigError."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        raise ConfigError(
            f"task={name!r}: {f'did you mean {near[0]}? There' if near else 'there'} are {', '.join(TASKS)}."
        )
    return TASKS[name]


def prepare(
    settings: RunSettings, task: TrainingTask, columns: dict[str, str], rows: Dataset
) -> tuple[Preparation, Any]:
    """Return how a task prepares rows for a base, with what those to train on tell, and the base's processor.

    Raises DataError that names the file, ModelError, ConfigError.
    """
    options = {name: getattr(settings, name, None) for name in task.preparation.OPTIONS}
    preparation: Preparation = task.preparation(task, columns, **options)
    preparation.know_base(base_config(settings))
    try:
        processor = preparation.load_processor(lambda name: load_part(settings.model, name), rows)
        preparation.learn(rows, processor)
    except DataError as error:
        source = str(settings.train)
        raise (error if source in str(error) else DataError(f"{source}: {error}")) from error
    return preparation, processor


def part_rows(
    rows: dict[str, Dataset], settings: RunSettings, preparation: Preparation, processor: Any
) -> Lengths | None:
    """Check each file's rows, and hold back shares of those to train on, in place; the same every time.

    Returns how long those to train on are. Raises DataError.
    """
    for split, each in rows.items():
        source = str(getattr(settings, split) or f"{settings.train} ({split})")
        check_columns(each, preparation.columns, source, str(settings.train))
        rows[split], bad = usable_rows(each, lambda row: preparation.problem(row, True), source, settings.skip_bad_rows)
        if bad:
            logger.warning("left out %s rows: %s.", f"{len(each) - len(rows[split]):,}", "; ".join(bad))
    said = [preparation.columns[role.name] for role in preparation.task.roles
            if not role.is_label and role.name in preparation.columns]  # fmt: skip
    lengths = measure_lengths(preparation, rows["train"], processor)
    check_lengths(lengths, str(settings.train))
    if lengths is not None and lengths.cut:
        logger.warning("%s: %s", settings.train, lengths)
    whole = len(rows["train"])
    usual = min(_HELD[0], _HELD[1] / whole)
    for name, share in (("test", settings.test_share), ("eval", settings.eval_share)):
        if name not in rows and share != 0:
            if len(rows["train"]) < 2:
                raise DataError(
                    f"{settings.train}: {whole} row(s), too few to hold some back to choose by and to measure on. Give "
                    "at least three, or name others with --eval, and say --test-share 0."
                )
            column = preparation.columns.get("label")
            classes = rows["train"][column] if column and preparation.options.get("labels") else None
            left = (usual if share is None else share) * whole / len(rows["train"])
            rows["train"], rows[name] = split_rows(rows["train"], left, settings.seed, classes)
    for split in sorted(rows.keys() - {"train"}) if said else ():
        if shared := count_shared(rows["train"], rows[split], said):
            logger.warning("%s different rows stand in the %s rows and in those to train on.", f"{shared:,}", split)
    if not len(rows["train"]):
        raise DataError(f"{settings.train}: no row is left to train on.")
    return lengths
