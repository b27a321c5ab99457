"""The only file that reaches into Transformers: `from_pretrained(lora_config=...)`, and resuming in the Trainer.

Each patch waits until its module is imported, is applied once, touches only calls that concern LoRA (a `lora_config`
argument, a LoRAModel instance), and can be taken back by `uninstall`.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["install", "uninstall"]

_MARK = "_hf_lora_original"
# module -> (class, method, how to wrap it); a missing class or method is an error that says so.
_PATCHES: dict[str, list[tuple[str, str, Callable[[Any], Any]]]] = {}


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
            original = getattr(getattr(own, "__func__", own), _MARK, None)
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
        if not hasattr(getattr(original, "__func__", original), _MARK):
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


def _takes_lora_config(original: classmethod) -> classmethod:
    """Wrap a from_pretrained: with `lora_config=` the result is a LoRAModel of that class.

    The auto classes hand what they do not know themselves on to the model's class, so they take it as well.
    """

    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        lora_config = kwargs.pop("lora_config", None)
        if lora_config is None:
            return original.__func__(cls, pretrained_model_name_or_path, *args, **kwargs)
        from .model import LoRAModel  # not above: it imports torch, which `import hf_lora` leaves alone

        return LoRAModel.from_pretrained(pretrained_model_name_or_path, lora_config, *args, auto_class=cls, **kwargs)

    setattr(from_pretrained, _MARK, original)
    return classmethod(from_pretrained)


def _resumes(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer._load_from_checkpoint: a LoRAModel's adapters are read back in place."""

    @functools.wraps(original)
    def load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        wrapped = self.model if model is None else model
        target = _lora_model(self, wrapped)
        if target is None:
            original(self, resume_from_checkpoint, model)
        else:
            target.load_weights(resume_from_checkpoint)

    setattr(load_from_checkpoint, _MARK, original)
    return load_from_checkpoint


def _loads_best(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap Trainer._load_best_model: a LoRAModel's adapters are read back in place, whatever their names."""

    @functools.wraps(original)
    def load_best_model(self: Any) -> None:
        target = _lora_model(self, self.model)
        if target is None:
            original(self)
        else:
            target.load_weights(self.state.best_model_checkpoint)

    setattr(load_best_model, _MARK, original)
    return load_best_model


def _lora_model(trainer: Any, model: Any) -> Any:
    from .model import LoRAModel

    inner = trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
    return inner if isinstance(inner, LoRAModel) else None


_PATCHES |= {
    "transformers.modeling_utils": [("PreTrainedModel", "from_pretrained", _takes_lora_config)],
    "transformers.trainer": [
        ("Trainer", "_load_from_checkpoint", _resumes),
        ("Trainer", "_load_best_model", _loads_best),
    ],
}
