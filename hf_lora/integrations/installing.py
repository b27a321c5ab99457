"""The seams applied: each right after its module has run, once, never with an error, and taken back by `uninstall`."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from ..model.hooks import LISTENERS
from . import missing
from .seams import SEAMS

__all__ = ["install", "uninstall"]

_MODULES = {seam.module for seam in SEAMS}


def install() -> None:
    """Apply every patch, now where its module is imported already, and otherwise when it will be.

    A place that is not there is told when it is needed, not here.
    """
    for name in _MODULES & sys.modules.keys():
        _patch(sys.modules[name])
    if not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    LISTENERS[:] = [missing.tell_of_models]


def uninstall() -> None:
    """Take every patch back. Trainers of LoRAModels that were made before keep their class."""
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _Finder)]
    LISTENERS.clear()
    for seam in SEAMS:
        if seam.module in sys.modules:
            seam.patch.undo(sys.modules[seam.module])


def _patch(module: ModuleType) -> None:
    for seam in SEAMS:
        if seam.module == module.__name__:
            try:
                applied = seam.patch.apply(module)
            except Exception:  # of whatever kind it has become: a program that imports it need not use LoRA
                applied = False
            (missing.found if applied else missing.note)(seam)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the patched modules where they are, and patches each right after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_patch(module: ModuleType) -> None:
            run(module)
            _patch(module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec
