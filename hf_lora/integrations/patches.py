"""Three ways to reach in: a method of a class (and of the classes below it), a plain function, one object's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["MARK", "Function", "Method", "answering"]

MARK = "_hf_lora_original"  # how a patched function remembers the one it replaced


@dataclass(frozen=True)
class Method:
    """A method that is wrapped. below: also where a subclass has one of its own."""

    owner: str
    name: str
    wrap: Callable[[Any], Any]
    below: bool = False

    @property
    def path(self) -> str:
        """Where it lies in its module."""
        return f"{self.owner}.{self.name}"

    def apply(self, module: ModuleType) -> bool:
        """Wrap the method once. Returns False where the class has no such method of its own."""
        owner = getattr(module, self.owner, None)
        if not isinstance(owner, type) or self.name not in owner.__dict__:
            return False
        for cls in self._classes(owner):
            own = cls.__dict__[self.name]
            if not hasattr(_function(own), MARK):
                wrapped = self.wrap(own)
                setattr(_function(wrapped), MARK, own)
                setattr(cls, self.name, wrapped)
        return True

    def undo(self, module: ModuleType) -> None:
        """Put back what was wrapped."""
        owner = getattr(module, self.owner, None)
        for cls in self._classes(owner) if isinstance(owner, type) else ():
            original = getattr(_function(cls.__dict__.get(self.name)), MARK, None)
            if original is not None:
                setattr(cls, self.name, original)

    def _classes(self, owner: type) -> Iterator[type]:
        yield owner
        if self.below:
            yield from (cls for cls in _below(owner) if self.name in cls.__dict__)


@dataclass(frozen=True)
class Function:
    """A function that does something else now, for those as well who imported it before.

    Its code is exchanged for that of `stand_in`, a function of (*args, **kwargs) that imports what it needs, because
    it runs with the module's globals. `caller` is what the stand-in calls; it finds the original as its MARK.
    """

    name: str
    stand_in: Callable[..., Any]
    caller: Callable[..., Any]

    @property
    def path(self) -> str:
        """Where it lies in its module."""
        return self.name

    def apply(self, module: ModuleType) -> bool:
        """Exchange the function's code once. Returns False where there is no such plain function."""
        function = getattr(module, self.name, None)
        if not isinstance(function, FunctionType) or function.__code__.co_freevars:
            return False
        if hasattr(function, MARK):
            return True
        original = FunctionType(function.__code__, function.__globals__, self.name, function.__defaults__)
        original.__kwdefaults__, original.__annotations__ = function.__kwdefaults__, function.__annotations__
        setattr(function, MARK, original)
        setattr(self.caller, MARK, original)
        function.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        function.__defaults__ = function.__kwdefaults__ = None
        function.__code__ = self.stand_in.__code__
        return True

    def undo(self, module: ModuleType) -> None:
        """Give the function its own code back."""
        function = getattr(module, self.name, None)
        original = getattr(function, MARK, None)
        if isinstance(function, FunctionType) and original is not None:
            function.__code__ = original.__code__
            function.__defaults__, function.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
            del function.__signature__  # type: ignore[attr-defined]
            delattr(function, MARK)


@contextmanager
def answering(target: Any, **answers: Callable[..., Any]) -> Iterator[None]:
    """Have an object answer to methods otherwise inside a `with` block, also where its class overrides them."""
    own = {name: target.__dict__[name] for name in answers if name in target.__dict__}
    target.__dict__.update(answers)
    try:
        yield
    finally:
        for name in answers:
            del target.__dict__[name]
        target.__dict__.update(own)


def _function(method: Any) -> Any:
    """Return the function of a class's method, of whichever kind."""
    return getattr(method, "__func__", method)


def _below(owner: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(owner)
    for cls in subclasses:
        yield cls
        yield from _below(cls)
