"""A place in another package that hf_lora reaches into: ours is put there, or it is told, once needed, as missing."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import MissingExtraError

__all__ = ["MARK", "Seam", "found", "note", "tell_of_models", "tell_of_trainer"]

MARK = "_hf_lora_original"  # how a function of ours remembers the one that it replaces
_SUPPORTED = {"transformers": ">=5.0,<6", "accelerate": ">=1.3", "peft": ">=0.18"}  # as in pyproject.toml


@dataclass(frozen=True, eq=False)
class Seam:
    """A place in another package that hf_lora reaches into.

    path: where it is in its module: a function, or a class and a method. purpose: what of ours needs it, in words.
    wrap: takes what is there and returns what takes its place; None for a method of the Trainer, which the Trainer of a
    LoRAModel overrides. required: whether its absence is an error where it is needed, or a warning. needed: says of a
    Trainer, and of whether it is about to resume, that it comes to the place; None where any LoRAModel may.
    """

    module: str
    path: str
    purpose: str
    wrap: Callable[[Any], Any] | None = None
    required: bool = False
    needed: Callable[[Any, bool], bool] | None = None

    @property
    def place(self) -> str:
        """The dotted name of what is reached into."""
        return f"{self.module}.{self.path}"

    def apply(self, module: ModuleType) -> None:
        """Put ours in the place, once. Raises whatever comes where it is not as expected."""
        assert self.wrap is not None
        owner, _, name = self.path.rpartition(".")
        original = vars(getattr(module, owner) if owner else module)[name]
        for holder in list(_copies(getattr(module, owner), name) if owner else _importers(original, name)):
            own = vars(holder)[name]
            if not hasattr(_function(own), MARK):
                ours = self.wrap(own)
                setattr(_function(ours), MARK, own)
                setattr(holder, name, ours)


_MISSING: list[Seam] = []
_TOLD: set[Seam] = set()


def note(seam: Seam) -> None:
    """Note that a place is not there; nothing is said yet."""
    if seam not in _MISSING:
        _MISSING.append(seam)


def found(seam: Seam) -> None:
    """Note that a place is there."""
    if seam in _MISSING:
        _MISSING.remove(seam)


def tell_of_models() -> None:
    """Warn, once for each, of what is missing and what a LoRAModel's user may come to."""
    _tell([seam for seam in _MISSING if seam.needed is None])


def tell_of_trainer(trainer: Any, resumes: bool = False) -> None:
    """Say what is missing of what a Trainer of a LoRAModel needs.

    Raises MissingExtraError for all that is required at once; warns, once for each, of the rest.
    """
    _tell([seam for seam in _MISSING if seam.needed is not None and seam.needed(trainer, resumes)])


def _tell(seams: list[Seam]) -> None:
    for seam in seams:
        if not seam.required and seam not in _TOLD:
            _TOLD.add(seam)
            warnings.warn(_sentence(seam), stacklevel=4)
    if problems := [_sentence(seam) for seam in seams if seam.required]:
        raise MissingExtraError(" ".join(problems))


def _sentence(seam: Seam) -> str:
    package = seam.module.partition(".")[0]
    cure = f"hf_lora supports {package}{_SUPPORTED[package]}" if package in _SUPPORTED else "An older one may have it"
    return (
        f"{seam.place} is missing from {package} {importlib.metadata.version(package)}, and hf_lora needs it for this: "
        f"{seam.purpose}. {cure}; install that."
    )


def _function(method: Any) -> Any:
    """Return the function of a class's method, of whichever kind."""
    return getattr(method, "__func__", method)


def _copies(owner: type, name: str) -> Iterator[Any]:
    """Yield a class and those below it that have a copy of its method, as Transformers' auto classes do."""
    code = _function(vars(owner)[name]).__code__
    classes = [owner]
    for cls in classes:
        classes += type.__subclasses__(cls)
        if getattr(_function(vars(cls).get(name)), "__code__", None) is code:
            yield cls


def _importers(function: Any, name: str) -> Iterator[Any]:
    """Yield the modules that have a function under its name: its own, and those that imported it from there."""
    return (m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is function)
