"""The one machine that specialises classes: an object stays what and where it is, only its class is refined in place.

`refine(model, LoRAModel)` makes a GPT2LMHeadModel an instance of a class of (LoRAModel, GPT2LMHeadModel), made once.
Layers, models, output heads, MLPs and the hooks of offloaded modules are all specialised so. Such a class is in no
module, so that copies and pickles name what it was made of.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple


class Made(NamedTuple):
    """What a specialised class was made of: the mixin, the class it refines, and what the mixin was told besides."""

    mixin: type[Specialised]
    base: type
    key: tuple[Any, ...] = ()


class Specialised:
    """What every mixin begins with: objects of specialised classes copy and pickle.

    _lora_prefix: what a specialised class's name has before its base's. A model's has none: Transformers looks up
    losses, recorders, pipelines and `config.architectures` by a class's name.
    """

    _lora_prefix = ""
    _lora_made: Made

    @classmethod
    def _lora_content(cls, base: type, *key: Any) -> dict[str, Any]:
        """Return further attributes of the class that refines a base; key: what `refine` was told besides."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(protocol)
        return _rebuild, (_recipe(type(self)),), *reduced[2:]


@cache
def refined(mixin: type[Specialised], base: type, *key: Any) -> type:
    """Return the one class that refines a base by a mixin."""
    names = {"__module__": base.__module__, "__doc__": base.__doc__, "_lora_made": Made(mixin, base, key)}
    names["__qualname__"] = mixin._lora_prefix + (base.__name__ if mixin._lora_prefix else base.__qualname__)
    content, bases = mixin._lora_content(base, *key), (mixin, base)
    if _begins_without_dict(base):
        content, bases = {**_own_content(mixin, base), **content}, (base, mixin)
    return type(mixin._lora_prefix + base.__name__, bases, {**names, **content})


def refine(target: Any, mixin: type[Specialised], *key: Any) -> None:
    """Specialise an object by a mixin, in place; one that is specialised by it on top is specialised anew."""
    _become(target, _anew(type(target), mixin, lambda base: refined(mixin, base, *key)))  # type: ignore[arg-type]


def restore(target: Any) -> None:
    """Give an object back the class that it had before it was last specialised."""
    _become(target, _anew(type(target), type(target)._lora_made.mixin, lambda base: base))


def _anew(cls: type, mixin: type[Specialised], make: Callable[[type], type]) -> type:
    """Return a class made of the base of a specialised one, below what others made of that since (parametrize)."""
    made = cls.__dict__.get("_lora_made")
    if made is not None and made.mixin is mixin:
        return make(made.base)
    if made is not None or getattr(cls, "_lora_made", Made(Specialised, cls)).mixin is not mixin:
        return make(cls)
    bases = tuple(_anew(base, mixin, make) if issubclass(base, mixin) else base for base in cls.__bases__)
    content = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    name = cls.__name__
    for old, new in zip(cls.__bases__, bases, strict=True):
        name = name.replace(old.__name__, new.__name__)
    return type(cls)(name, bases, content)


def rebase(target: Any, old: type, new: type) -> None:
    """Put a class in the place of another behind an object's specialised ones, or of its own; in place."""
    _become(target, _rebased(type(target), old, new))


def _rebased(cls: type, old: type, new: type) -> type:
    if cls is old:
        return new
    made: Made = cls.__dict__["_lora_made"]
    return refined(made.mixin, _rebased(made.base, old, new), *made.key)  # type: ignore[arg-type]


def have_one_layout(cls: type, other: type) -> bool:
    """Tell whether Python lets an object of one class become one of the other; see `_begins_without_dict`."""
    return _begins_without_dict(cls) == _begins_without_dict(other)


def plain(cls: type) -> type:
    """Return the class behind the topmost specialised one, whatever others made of it since (fully_shard)."""
    return next((c.__dict__["_lora_made"].base for c in cls.__mro__ if "_lora_made" in c.__dict__), cls)


def base_of(cls: type) -> type:
    """Return the class behind all specialised ones; any other class is its own."""
    base = plain(cls)
    return base if base is cls else base_of(base)


def name_of(target: object) -> str:
    """Return the name of an object's own class, by which Transformers' tables know it: fully_shard puts FSDP before."""
    return base_of(type(target)).__name__


def _begins_without_dict(base: type) -> bool:
    """Tell whether Python lets a class stand in for this one only where this one comes first among its bases."""
    # So it is where the first of its first bases has no place for attributes: quanto's layers begin with `abc.ABC`.
    while base.__base__ not in (object, None):
        base = base.__base__
    return base.__dictoffset__ == 0


def _own_content(mixin: type, base: type) -> dict[str, Any]:
    """Return what a mixin has that a base has not, for a class in which it comes second and would be overridden."""
    given = [cls for cls in reversed(mixin.__mro__) if cls not in base.__mro__]
    names = {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__"}
    return {name: value for cls in given for name, value in vars(cls).items() if name not in names}


def is_a(value: Any, module: str, name: str) -> bool:
    """Return whether a value is of a class of a module; it is not where nobody has imported the module."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(value, cls)


def is_pretrained(model: Any) -> bool:
    """Return whether a model is one of Transformers' own, whose base class takes seconds to import."""
    return is_a(model, "transformers.modeling_utils", "PreTrainedModel")


def _become(target: Any, cls: type) -> None:
    hooked = target.__dict__.get("_old_forward")
    is_own = getattr(hooked, "__func__", None) is getattr(type(target), "forward", None)
    target.__class__ = cls
    if hooked is not None and is_own:  # accelerate's hook calls the forward of the class of then: bind it again
        target.__dict__["_old_forward"] = types.MethodType(cls.forward, target)  # type: ignore[attr-defined]


def _recipe(cls: type) -> Any:
    made = cls.__dict__.get("_lora_made")
    return cls if made is None else (made.mixin, _recipe(made.base), made.key)


def _rebuild(recipe: Any) -> Any:
    cls = _class_of(recipe)
    return cls.__new__(cls)  # type: ignore[call-overload]


def _class_of(recipe: Any) -> type:
    if isinstance(recipe, type):
        return recipe
    mixin, base, key = recipe
    return refined(mixin, _class_of(base), *key)
