"""`hf-lora train`: from a file of rows to an adapter."""

from __future__ import annotations

import inspect
import tempfile
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ..errors import ConfigError
from ..training.run.settings import RunSettings, read_yaml
from .completing import COMPLETIONS
from .progress import Progress, only_ours, show_dry_run, show_result
from .showing import show_json

__all__ = ["train"]


# Name, type, default, flag and help of what is no setting of a run.
_OWN: tuple[tuple[str, Any, Any, str, str], ...] = (
    ("config", Path | None, None, "--config", "a YAML file, as a run.yaml; flags win (--no-packing takes one back)"),
    ("dry_run", bool, False, "--dry-run", "show targets, parameters, steps, memory and three samples; train nothing"),
    ("resume", bool, False, "--resume", "go on with the interrupted run in the folder --output"),
    ("overwrite", bool, False, "--overwrite", "replace the run in the folder --output, and all that lies there"),
    ("as_json", bool, False, "--json", "print the result as JSON; what is said goes to stderr"),
)


def _train(config: Path | None, dry_run: bool, resume: bool, overwrite: bool, as_json: bool, **flags: Any) -> None:
    """Train an adapter on a file of rows, and save it with its card and a record of the run.

    Examples:

        hf-lora train --model sentence-transformers/all-MiniLM-L6-v2 --train reviews.csv

        hf-lora train --model Qwen/Qwen3-0.6B --task chat --train chats.jsonl --quantize 4bit --dry-run

        hf-lora train --config outputs/reviews/run.yaml --seed 1 --output outputs/second

        hf-lora train --resume --output outputs/reviews
    """
    with Progress(quiet=as_json or dry_run) as progress, only_ours(progress.say):
        settings, found = _run(config, dry_run, resume, overwrite, _given(flags), progress)
    if dry_run:
        show_dry_run(found, as_json)
    elif as_json:
        show_json({"output": settings.output, **found})
    else:
        show_result(str(settings.output), str(settings.train), found)


def _run(
    config: Path | None, dry_run: bool, resume: bool, overwrite: bool, given: Mapping[str, Any], progress: Progress
) -> tuple[RunSettings, dict[str, Any]]:
    """Return the settings of a run as they were decided, and its record; or what it would be."""
    from ..training.run.callbacks import Progresses  # not above: they import torch
    from ..training.run.planning import plan_run
    from ..training.run.running import prepared_trainer, train_plan
    from ..training.run.summary import dry_run as what_it_takes

    settings = _resumed(given, config) if resume else RunSettings.load(config, given)
    with tempfile.TemporaryDirectory() as scratch:
        plan = plan_run(settings, Path(scratch), overwrite=overwrite, resume=resume)
        if dry_run:
            return plan.settings, what_it_takes(plan, prepared_trainer(plan)[0])
        tells = Progresses(progress.step, progress.say)
        repeats = config.parent if config else None
        return plan.settings, train_plan(plan, resume=resume, repeats=repeats, callbacks=[tells], say=progress.say)


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among the flags, without those that were not given."""
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    return {
        name: pairs(name, value) if name in ("column", "lora", "trainer") else value for name, value in given.items()
    }


def _resumed(given: Mapping[str, Any], config: Path | None) -> RunSettings:
    """Return the settings of the run in the folder that --output names. Raises ConfigError for others beside them."""
    from ..training.run.folder import check_resumable  # not above: it imports torch

    folder = check_resumable(Path(given["output"]) if given.get("output") else config and config.parent)
    settings = RunSettings.load(folder / "run.yaml", {"output": str(folder)})
    if other := [name for name, value in given.items() if name != "output" and getattr(settings, name) != value]:
        flag = f"--{other[0].replace('_', '-')}"
        raise ConfigError(
            f"--resume goes on with the settings of {folder / 'run.yaml'}, where {other[0]} is "
            f"{getattr(settings, other[0])!r}; leave {flag} out, or start a new run with --config."
        )
    return settings


def pairs(flag: str, given: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE as YAML reads the values: numbers, true and false are what they look like."""
    if wrong := [text for text in given if "=" not in text]:
        raise ConfigError(f"--{flag} {wrong[0]}: it takes NAME=VALUE.")
    found = dict(text.split("=", 1) for text in given)
    if len(found) < len(given):
        names = [text.partition("=")[0] for text in given]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"--{flag} {twice}=...: it is given twice; leave one out.")
    if flag == "column":
        return dict(found)
    try:
        return {name: read_yaml(value) for name, value in found.items()}
    except yaml.YAMLError as error:
        raise ConfigError(f"--{flag} {' '.join(given)}: it is no YAML: {' '.join(str(error).split())}") from error


def _with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Return the command with a flag for each setting. Those that are not given are None."""
    hints = typing.get_type_hints(RunSettings)
    own = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, own, default=default, annotation=Annotated[kind, typer.Option(flag, help=says)])
        for name, kind, default, flag, says in _OWN
    ]
    switches = [each.name for each in fields(RunSettings) if hints[each.name] is bool]
    for each in fields(RunSettings):
        flag = f"--{each.name.replace('_', '-')}"
        option = typer.Option(
            flag,
            help=each.metadata["says"],
            rich_help_panel=each.metadata["panel"],
            autocompletion=COMPLETIONS.get(each.name),
        )
        parameters.append(
            inspect.Parameter(each.name, own, default=None, annotation=Annotated[_flag(hints[each.name]), option])
        )
    for name in switches:  # beside the others, they would leave no room for the help on 80 columns
        off = typer.Option(f"--no-{name.replace('_', '-')}", hidden=True)
        parameters.append(inspect.Parameter(f"no_{name}", own, default=False, annotation=Annotated[bool, off]))

    def command(**given: Any) -> None:
        for name in switches:
            if given.pop(f"no_{name}"):
                given[name] = False
        function(**given)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__.strip("_")
    return command


def _flag(kind: Any) -> Any:
    """Return what typer takes for a setting's type."""
    return {dict: list[str] | None}.get(typing.get_origin(kind) or kind, kind | None)


train = _with_flags(_train)
