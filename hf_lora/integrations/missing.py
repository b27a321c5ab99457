"""A place in another package that hf_lora reaches into: ours is put there, or it is told, once needed, as missing."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import MissingExtraError

__all__ = ["MARK", "MISSING", "Seam", "tell"]

MARK = "_hf_lora_original"  # how a function of ours remembers the one that it replaces
_SUPPORTED = {"transformers": ">=5.0,<6", "accelerate": ">=1.3", "peft": ">=0.18"}  # as in pyproject.toml


@dataclass(frozen=True, eq=False)
class Seam:
    """A place in another package that hf_lora reaches into.

    path: where it is in its module: a function, or a class and a method. purpose: what of ours needs it, in words.
    wrap: takes what is there and returns what takes its place; None for a method of the Trainer, which the Trainer of a
    LoRAModel overrides. required: whether such a Trainer is refused without it; for the others there is a warning.
    """

    module: str
    path: str
    purpose: str
    wrap: Callable[[Any], Any] | None = None
    required: bool = False

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


MISSING: list[Seam] = []  # what could not be patched
_TOLD: set[Seam] = set()


def tell(seams: Iterable[Seam] = MISSING) -> None:
    """Warn, once for each, of places that are missing; raise MissingExtraError for all that are required at once."""
    problems = []
    for seam in seams:
        if seam.required:
            problems.append(_sentence(seam))
        elif seam not in _TOLD:
            _TOLD.add(seam)
            warnings.warn(_sentence(seam), stacklevel=4)
    if problems:
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
