"""The only folder that reaches into Transformers: loading in `loading.py`, the Trainer in `trainer.py`.

Each patch waits until its module is imported, is applied once, touches only calls that concern LoRA (a `lora_config`
argument, a LoRAModel instance), and can be taken back by `uninstall`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from .loading import takes_lora_config
from .marks import MARK
from .optimizer import checks_optimizer
from .resizing import notes_new_rows
from .trainer import loads_best, resumes

__all__ = ["install", "uninstall"]

# module -> (class, method, how to wrap it); a missing class or method is an error that says so.
_PATCHES: dict[str, list[tuple[str, str, Callable[[Any], Any]]]] = {
    "transformers.modeling_utils": [
        ("PreTrainedModel", "from_pretrained", takes_lora_config),
        ("PreTrainedModel", "resize_token_embeddings", notes_new_rows),
    ],
    "transformers.trainer": [
        ("Trainer", "_load_from_checkpoint", resumes),
        ("Trainer", "_load_best_model", loads_best),
        ("Trainer", "create_optimizer", checks_optimizer),
    ],
}


def install() -> None:
    """Apply every patch, now where its module is imported already, and otherwise when it will be."""
    for name in _PATCHES:
        if name in sys.modules:
            _patch(sys.modules[name])
    if not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def uninstall() -> None:
    """Take every patch back."""
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _Finder)]
    for name, patches in _PATCHES.items():
        for cls_name, method, _ in patches if name in sys.modules else ():
            cls = getattr(sys.modules[name], cls_name)
            own = cls.__dict__.get(method)
            original = getattr(getattr(own, "__func__", own), MARK, None)
            if original is not None:
                setattr(cls, method, original)


def _patch(module: ModuleType) -> None:
    for cls_name, method, wrap in _PATCHES[module.__name__]:
        cls = getattr(module, cls_name, None)
        original = None if cls is None else cls.__dict__.get(method)
        if original is None:
            raise ImportError(
                f"hf_lora expects {module.__name__}.{cls_name}.{method}, which this version of transformers does not "
                "have; install a version that hf_lora's pyproject.toml names."
            )
        if not hasattr(getattr(original, "__func__", original), MARK):
            setattr(cls, method, wrap(original))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the patched modules where they are, and patches each right after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _PATCHES:
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
