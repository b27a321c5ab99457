"""A place in another package that hf_lora reaches into: ours is put there, or it is told, once needed, as missing."""

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..errors import MissingExtraError

MARK = "_hf_lora_original"  # how a function of ours remembers the one that it replaces
_SUPPORTED = {"transformers": ">=5.0,<6", "accelerate": ">=1.7", "peft": ">=0.18"}  # as in pyproject.toml


@dataclass(eq=False)
class Seam:
    """A place in another package that hf_lora reaches into.

    path: where it is in its module: a function, or a class and a method. purpose: what of ours needs it, in words.
    wrap: takes what is there and returns what takes its place; None for a method of the Trainer, which the Trainer of a
    LoRAModel overrides. required: whether its absence is an error where it is needed, or a warning. needed: says of a
    Trainer, and of whether it is about to resume, that it comes to the place; None where any LoRAModel may.
    is_missing: whether it was looked for and is not there. is_told: whether a warning has said so.
    """

    module: str
    path: str
    purpose: str
    wrap: Callable[[Any], Any] | None = None
    required: bool = False
    needed: Callable[[Any, bool], bool] | None = None
    is_missing: bool = field(default=False, init=False)
    is_told: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        _SEAMS.append(self)

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


_SEAMS: list[Seam] = []


def tell(trainer: Any = None, resumes: bool = False) -> None:
    """Say what is missing of what a Trainer of a LoRAModel needs; without one, of what a LoRAModel's user may come to.

    Raises MissingExtraError for all that is required at once; warns, once for each, of the rest.
    """
    problems = []
    for seam in (seam for seam in _SEAMS if seam.is_missing):
        needed = seam.needed is None if trainer is None else seam.needed is not None and seam.needed(trainer, resumes)
        if needed and seam.required:
            problems.append(_sentence(seam))
        elif needed and not seam.is_told:
            seam.is_told = True
            warnings.warn(_sentence(seam), stacklevel=3)
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
