"""Whether one of torch's tracers runs what is computed now, and wants plain operations."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Return whether torch.compile, torch.export, functorch or torch.jit.trace runs the code that asks."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )
