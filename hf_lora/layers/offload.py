"""Accelerate's dispatch hooks: where an offloaded layer computes, and what its hook leaves as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .specialising import Specialised, refine, restore


class KeepsFlags(Specialised):
    """A dispatch hook that keeps the requires_grad of a module's own parameters when it moves them.

    It reads a parameter as its readers do, with the adapter inside; that this one trains must not be taken for the
    base's own flag when the parameter is put away. Checkpointing cuts a recomputed forward off, so that not every
    pre_forward is followed by a post_forward.
    """

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Bring the module's parameters in."""
        with _flags_kept(module):
            return super().pre_forward(module, *args, **kwargs)  # type: ignore[misc]

    def post_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Put the module's parameters away."""
        with _flags_kept(module):
            return super().post_forward(module, *args, **kwargs)  # type: ignore[misc]


def keep_flags(module: nn.Module, adapted: bool) -> None:
    """Have the dispatch hook of a module, if it has one, keep flags while the module carries adapters."""
    hook = module.__dict__.get("_hf_hook")
    if hook is not None and isinstance(hook, KeepsFlags) != adapted:
        if adapted:
            refine(hook, KeepsFlags)
        else:
            restore(hook)


@contextmanager
def _flags_kept(module: nn.Module) -> Iterator[None]:
    flags = {name: p.requires_grad for name, p in module._parameters.items() if p is not None}
    yield
    for name, flag in flags.items():
        module._parameters[name].requires_grad_(flag)  # type: ignore[union-attr]


def compute_device(module: nn.Module, tensor: Tensor) -> torch.device:
    """Return the device on which a module computes with one of its tensors.

    An offloaded tensor lies on the meta device between forwards; its hook knows where it is brought to.
    """
    if not tensor.is_meta:
        return tensor.device
    hook = getattr(module, "_hf_hook", None)
    hooks: Any = getattr(hook, "hooks", (hook,))  # several are one SequentialHook
    device = next((h.execution_device for h in hooks if getattr(h, "execution_device", None) is not None), None)
    return tensor.device if device is None else torch.device(device)


def is_elsewhere(module: nn.Module, tensor: Tensor) -> bool:
    """Return whether a tensor's values are not in the module now, so that nobody computes with them.

    They are held by an offload hook, or spread over processes: FSDP2 puts a plain tensor there for each forward, and
    reads the DTensor in between, which must be the module's own.
    """
    if tensor.is_meta:
        return getattr(module, "_hf_hook", None) is not None
    return hasattr(tensor, "full_tensor")


@contextmanager
def brought_in(module: nn.Module) -> Iterator[None]:
    """Have an offloaded module's own tensors where it computes, inside a `with` block: as in its forward."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None or not any(t.is_meta for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)
