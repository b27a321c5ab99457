"""The front: a model's class specialised, so that it is a LoRAModel and still what it was.

`front_class(GPT2LMHeadModel)` is a subclass of LoRAModel and GPT2LMHeadModel with the latter's names, because
Transformers looks up losses, recorders, pipelines and `config.architectures` by the class's name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

__all__ = ["base_of", "enter", "front_class", "leave", "name_of", "rebuild"]


@cache
def front_class(mixin: type, base: type[nn.Module]) -> type[nn.Module]:
    """Return the one front of a base class."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), {**names, "_lora_base": base})


def enter(model: nn.Module, mixin: type) -> None:
    """Make a model an instance of its front, in place."""
    if not isinstance(model, mixin):
        model.__class__ = front_class(mixin, type(model))


def leave(model: nn.Module) -> None:
    """Give a model its own class back."""
    model.__class__ = base_of(type(model))


def base_of(cls: type) -> type:
    """Return the class behind a front; any other class is its own."""
    return getattr(cls, "_lora_base", cls)


def name_of(model: nn.Module) -> str:
    """Return the name of a model's own class, by which Transformers' tables know it: fully_shard puts FSDP before."""
    return base_of(type(model)).__name__


def rebuild(mixin: type, base: type[nn.Module]) -> Any:
    """Return an empty instance of a base's front, for pickle and copy."""
    cls = front_class(mixin, base)
    return cls.__new__(cls)
