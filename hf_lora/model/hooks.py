"""What the integrations set and ask here, without torch: who hears of a new LoRAModel, who looks for adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal

__all__ = ["LISTENERS", "OWNER", "Owner", "decided", "leave_adapters_to_peft", "leaves_adapters_to_peft", "plainly"]

# Called when a model becomes a LoRAModel: `integrations/missing.py` then tells what installed packages lack.
LISTENERS: list[Callable[[], None]] = []
Owner = Literal["hf_lora", "peft", "nobody"]  # who is to load the adapter that a model's name stands for
OWNER: ContextVar[Owner | None] = ContextVar("hf_lora_owner", default=None)  # None: nobody has looked yet


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
