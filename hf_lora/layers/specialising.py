"""Specialised: a module whose class is refined in place by a mixin, under its own name, until it is given back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from .offload import rebind_forward

__all__ = ["Specialised", "restore", "specialise"]


class Specialised(nn.Module):
    """Base of the mixins: what makes a specialised module copy and pickle."""

    _special: type[nn.Module]
    _plain: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(protocol)
        make, args, *rest = reduced
        args = tuple(self._plain if a is type(self) else a for a in args)
        return _rebuild, (self._special, make, args), *rest


def specialise(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Make a module an instance of its class refined by a mixin, in place."""
    module.__class__ = _refined(mixin, type(module))  # type: ignore[arg-type]
    rebind_forward(module)


def restore(module: nn.Module) -> None:
    """Give a specialised module back the class that it had before."""
    assert isinstance(module, Specialised)
    module.__class__ = module._plain  # type: ignore[assignment]
    rebind_forward(module)


@cache
def _refined(mixin: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), {**names, "_special": mixin, "_plain": base})


def _rebuild(mixin: type[nn.Module], make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    module = make(*args)
    specialise(module, mixin)
    return module
