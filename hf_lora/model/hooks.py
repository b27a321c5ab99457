"""What the integrations set and ask here, without torch: who hears of a new LoRAModel, who looks for adapters, what is
new in a model.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal
from weakref import WeakSet

# Called when a model becomes a LoRAModel: `integrations/missing.py` then tells what installed packages lack.
LISTENERS: list[Callable[[], None]] = []
MERGED: WeakSet[Any] = WeakSet()  # models that adapters were merged into for good: no checkpoint has their weights
NEW = "_lora_new_parameters"  # of a model: the names of its parameters that its checkpoint did not fill
Owner = Literal["hf_lora", "peft", "nobody"]  # who is to load the adapter that a model's name stands for
OWNER: ContextVar[Owner | None] = ContextVar("hf_lora_owner", default=None)  # None: nobody has looked yet


def around(ours: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what wraps a function: ours is called in its place, with it before the arguments."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return ours(original, *args, **kwargs)

        return wrapped

    return wrap


_to_peft = False


def leave_adapters_to_peft(leave: bool = True) -> None:
    """Have Transformers load an adapter's name with PEFT, as if hf_lora were not there; or have hf_lora do it again.

    That is the name in `pipeline(model=...)` and in `from_pretrained` of a model's class or an auto class, in the whole
    process. `LoRAModel.from_pretrained` is not concerned.

    >>> leave_adapters_to_peft()
    >>> leave_adapters_to_peft(False)
    """
    global _to_peft
    _to_peft = leave


def leaves_adapters_to_peft() -> bool:
    """Return whether adapters' names are left to PEFT (`leave_adapters_to_peft`)."""
    return _to_peft


@contextmanager
def decided(owner: Owner) -> Iterator[None]:
    """Look for no adapter inside a `with` block: whose it is was decided, and it is no matter of the calls inside."""
    token = OWNER.set(owner)
    try:
        yield
    finally:
        OWNER.reset(token)


def plainly() -> AbstractContextManager[None]:
    """Have no adapter inside a `with` block: there is none, or the base alone is wanted.

    `from_pretrained` loads there the model alone, whatever adapter lies in its folder; Transformers with PEFT as well.
    """
    return decided("nobody")


@contextmanager
def quietly() -> Iterator[None]:
    """Keep back what Transformers tells below its errors inside a `with` block."""
    from transformers.utils import logging  # not above: `import hf_lora` reads this file

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def note_new(model: Any, info: Mapping[str, Any]) -> None:
    """Note on a model which of its parameters its checkpoint did not fill.

    info: what Transformers' `from_pretrained` tells of the loading.
    """
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in info.get("mismatched_keys", ())}
    own = {name for name, _ in model.named_parameters()}
    model.__dict__[NEW] = frozenset((set(info.get("missing_keys", ())) | mismatched) & own)
