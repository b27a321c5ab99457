"""Patched places that an installed package lacks: noted at import, told when a LoRAModel needs them."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import MissingExtraError

__all__ = ["Need", "found", "note", "tell_of_models", "tell_of_trainer"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """A place in another package that hf_lora reaches into.

    purpose: what of ours needs it, in words. required: whether its absence is an error where it is needed, or a
    warning. needed: says of a Trainer, and of whether it is about to resume, that it comes to the place; None where
    whoever makes a LoRAModel may.
    """

    purpose: str
    required: bool = False
    needed: Callable[[Any, bool], bool] | None = None

    @property
    def place(self) -> str:
        """The dotted name of what is reached into."""
        raise NotImplementedError


_MISSING: dict[Need, None] = {}
_TOLD: set[Need] = set()


def note(row: Need) -> None:
    """Note that the place is not there; nothing is said yet."""
    _MISSING[row] = None


def found(row: Need) -> None:
    """Note that the place is there."""
    _MISSING.pop(row, None)


def tell_of_models() -> None:
    """Warn, once for each, of what is missing and what a LoRAModel's user may come to."""
    _tell([row for row in _MISSING if row.needed is None])


def tell_of_trainer(trainer: Any, resumes: bool = False) -> None:
    """Say what is missing of what a Trainer of a LoRAModel needs.

    Raises MissingExtraError for all that is required at once; warns, once for each, of the rest.
    """
    _tell([row for row in _MISSING if row.needed is not None and row.needed(trainer, resumes)])


def _tell(rows: list[Need]) -> None:
    for row in rows:
        if not row.required and row not in _TOLD:
            _TOLD.add(row)
            warnings.warn(_sentence(row), stacklevel=4)
    if problems := [_sentence(row) for row in rows if row.required]:
        raise MissingExtraError(" ".join(problems))


def _sentence(row: Need) -> str:
    package = row.place.partition(".")[0]
    return (
        f"{row.place} is missing from {package} {_installed(package)}, and hf_lora needs it for this: {row.purpose}. "
        f"{_supported(package)}."
    )


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(of an unknown version)"


def _supported(package: str) -> str:
    """Return, as a sentence, which versions of a package hf_lora's own metadata asks for: transformers>=5.0,<6."""
    try:
        lines = importlib.metadata.requires("hf-lora") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        lines = []
    for line in lines:
        name, bounds = re.match(r"([\w.-]+)\s*([^;\[]*)", line).groups()  # type: ignore[union-attr]
        if name.lower() == package:
            if not bounds.strip():
                break
            return f"hf_lora supports {name}{','.join(sorted(bounds.strip().split(','), reverse=True))}; install that"
    return f"hf_lora's pyproject.toml names no version of {package}; install an older one"
