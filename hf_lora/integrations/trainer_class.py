"""A Trainer of a LoRAModel: its class refined in place, so that Transformers' own Trainer stays as it is.

The methods of `trainer_methods.METHODS` lie in a subclass of the stock Trainer, and the refined class inherits from
the Trainer's own class first and from that subclass second. So they stand right above the stock Trainer's: a method
that a user's subclass overrides runs first, and its `super()` finds ours.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from . import missing
from .patches import answering
from .trained_model import contains_lora, is_metrics
from .trainer_methods import METHODS

__all__ = ["specialised", "specialises", "specialises_late"]


def specialises(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap Trainer.__init__: the Trainer of a LoRAModel is specialised, before its first line where that is known."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:  # which the original raises as well
            given = {}
        _specialise(self, given.get("model"), given.get("compute_metrics"))
        with _made_models_seen(self, given.get("model_init")):
            original(self, *args, **kwargs)
        _specialise_as_it_is(self)
        if _is_special(self):
            missing.tell_of_trainer(self)

    return init


def specialises_late(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a public method of Trainer: one whose model was given adapters since it was made is specialised first."""
    name = original.__name__

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _specialise_as_it_is(self):
            return getattr(_refined(_stock()), name)(self, *args, **kwargs)
        with _made_models_seen(self, getattr(self, "model_init", None)):
            return original(self, *args, **kwargs)

    return method


@cache
def specialised(cls: type) -> type:
    """Return the one class of a class's Trainers of LoRAModels; it has the same names."""
    ours = _refined(_stock())
    return type(cls.__name__, (ours,) if cls is _stock() else (cls, ours), {**_names(cls), "_hf_lora_plain": cls})


def _specialise(trainer: Any, model: Any, compute_metrics: Any) -> bool:
    """Specialise a Trainer that is not yet, where there is a LoRAModel in its model or hf_lora measures it.

    Returns whether it is now and was not before.
    """
    if _is_special(trainer) or not (contains_lora(model) or is_metrics(compute_metrics)):
        return False
    _enter(trainer)
    return True


def _enter(trainer: Any) -> None:
    cls: Any = type(trainer)
    trainer.__class__ = specialised(cls)


def _specialise_as_it_is(trainer: Any) -> bool:
    return _specialise(trainer, getattr(trainer, "model", None), getattr(trainer, "compute_metrics", None))


def _is_special(trainer: Any) -> bool:
    return hasattr(type(trainer), "_hf_lora_plain")


def _made_models_seen(trainer: Any, model_init: Any) -> AbstractContextManager[None]:
    """Specialise a Trainer, inside a `with` block, as soon as its model_init has made a LoRAModel."""
    own = getattr(trainer, "call_model_init", None)
    if model_init is None or own is None or _is_special(trainer):
        return nullcontext()

    def call_model_init(*args: Any, **kwargs: Any) -> Any:
        model = own(*args, **kwargs)
        _specialise(trainer, model, None)
        return model

    return answering(trainer, call_model_init=call_model_init)


def _stock() -> type:
    from transformers.trainer import Trainer

    return Trainer


@cache
def _refined(stock: type) -> type:
    """Return the subclass of the stock Trainer that has our methods; what cannot be overridden is noted as missing."""
    ours = type(stock.__name__, (stock,), {**_names(stock), "__reduce_ex__": _reduce_ex})
    for row in METHODS:
        if callable(getattr(stock, row.name, None)):
            missing.found(row)
            setattr(ours, row.name, row.wrap(ours.__dict__.get(row.name) or _next(ours, row.name)))
        else:
            missing.note(row)
    return ours


def _next(ours: type, name: str) -> Callable[..., Any]:
    """Return a function that calls the method of that name which comes after a class in an object's own order."""

    @functools.wraps(getattr(ours, name))
    def original(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(ours, self), name)(*args, **kwargs)

    return original


def _names(cls: type) -> dict[str, Any]:
    return {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}


def _reduce_ex(self: Any, protocol: Any) -> tuple[Any, ...]:
    """Copy and pickle a specialised Trainer by the class that can be found under its name."""
    cls = type(self)
    ours: Any = _refined(_stock())
    make, args, *rest = super(ours, self).__reduce_ex__(protocol)
    return _rebuild, (make, tuple(cls._hf_lora_plain if each is cls else each for each in args)), *rest


def _rebuild(make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    trainer = make(*args)
    if not _is_special(trainer):
        _enter(trainer)
    return trainer
