"""`hf-lora train`: from a file of rows to an adapter."""

from __future__ import annotations

import inspect
import tempfile
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..training.run.settings import RunSettings

__all__ = ["train"]


def _train(config: Path | None, dry_run: bool, resume: bool, **flags: Any) -> None:
    """Train an adapter on a file of rows, and save it with its card."""
    from ..training.run.planning import plan_run  # not above: it imports torch
    from ..training.run.running import train_plan

    given = {name: value for name, value in flags.items() if value not in (None, [])}
    for name in ("column", "lora", "trainer"):
        if name in given:
            given[name] = _pairs(name, given[name])
    with tempfile.TemporaryDirectory() as scratch:
        plan = plan_run(RunSettings.load(config, given), Path(scratch))
        if dry_run:
            return
        print(train_plan(plan, resume=resume))


def _pairs(flag: str, given: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE as YAML reads the values: numbers, true and false are what they look like."""
    import yaml

    if wrong := [text for text in given if "=" not in text]:
        raise ConfigError(f"--{flag} {wrong[0]}: it takes NAME=VALUE.")
    pairs = dict(text.split("=", 1) for text in given)
    return pairs if flag == "column" else {name: yaml.safe_load(value) for name, value in pairs.items()}


def _with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Return the command with a flag for each setting. Those that are not given are None."""
    hints = typing.get_type_hints(RunSettings)
    own = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(
            "config",
            own,
            default=None,
            annotation=Annotated[Path | None, typer.Option(help="a YAML file of settings; flags win")],
        ),
        inspect.Parameter(
            "dry_run",
            own,
            default=False,
            annotation=Annotated[bool, typer.Option("--dry-run", help="show what would be trained, and train nothing")],
        ),
        inspect.Parameter(
            "resume",
            own,
            default=False,
            annotation=Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")],
        ),
    ]
    for each in fields(RunSettings):
        option = typer.Option(help=each.metadata["says"], rich_help_panel=each.metadata["panel"])
        parameters.append(
            inspect.Parameter(each.name, own, default=None, annotation=Annotated[_flag(hints[each.name]), option])
        )

    def command(**given: Any) -> None:
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
