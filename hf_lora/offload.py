"""Accelerate's dispatch hooks: where an offloaded layer computes, and which forward its hook calls.

`accelerate.hooks.add_hook_to_module` puts a `forward` on the instance and keeps the one it found as `_old_forward`,
bound to the class of that moment; a class changed afterwards would be silently ignored, so it is bound again.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn


def rebind_forward(module: nn.Module) -> None:
    """Make the hook of a dispatched module, if it has one, call the forward of the module's present class."""
    if "_old_forward" in module.__dict__:
        module.__dict__["_old_forward"] = types.MethodType(type(module).forward, module)


def compute_device(module: nn.Module, tensor: Tensor) -> torch.device:
    """Return the device on which a module computes with one of its tensors.

    An offloaded tensor lies on the meta device between forwards; its hook knows where it is brought to.
    """
    if not tensor.is_meta:
        return tensor.device
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return tensor.device if device is None else torch.device(device)


def is_offloaded(module: nn.Module, tensor: Tensor) -> bool:
    """Return whether a tensor's values are held by an offload hook, not by the module."""
    return tensor.is_meta and getattr(module, "_hf_hook", None) is not None
