"""Accelerate's dispatch hooks: where an offloaded layer computes, and which forward its hook calls.

`accelerate.hooks.add_hook_to_module` puts a `forward` on the instance and keeps the one it found as `_old_forward`,
bound to the class of that moment; a class changed afterwards would be silently ignored, so it is bound again.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def rebind_forward(module: nn.Module, adapted: bool = True) -> None:
    """Make the hook of a dispatched module, if it has one, call the forward of the module's present class.

    adapted: whether the module carries adapters. The hook then reads a parameter as its readers do, with the adapter
    inside; that this one trains must not be taken for the base's own flag when the parameter is put away.
    """
    if "_old_forward" not in module.__dict__:
        return
    module.__dict__["_old_forward"] = types.MethodType(type(module).forward, module)
    if (hook := module.__dict__.get("_hf_hook")) is not None:
        base: type[Any] = getattr(type(hook), "_lora_base", type(hook))
        hook.__class__ = _keeping(base) if adapted else base  # type: ignore[arg-type]


@cache
def _keeping(base: type[Any]) -> type[Any]:
    """Return a hook's class that keeps the requires_grad of a module's own parameters when it moves them."""

    def keeping(method: str) -> Any:
        def moves(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            flags = {name: p.requires_grad for name, p in module._parameters.items() if p is not None}
            result = getattr(base, method)(self, module, *args, **kwargs)
            for name, flag in flags.items():
                module._parameters[name].requires_grad_(flag)  # type: ignore[union-attr]
            return result

        return moves

    # Checkpointing cuts a recomputed forward off, so that not every pre_forward is followed by a post_forward.
    moving = {method: keeping(method) for method in ("pre_forward", "post_forward")}
    return type(base.__name__, (base,), {**moving, "_lora_base": base, "__module__": base.__module__})


def compute_device(module: nn.Module, tensor: Tensor) -> torch.device:
    """Return the device on which a module computes with one of its tensors.

    An offloaded tensor lies on the meta device between forwards; its hook knows where it is brought to.
    """
    if not tensor.is_meta:
        return tensor.device
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
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
