"""Bytes that a forward keeps for its backward, counted in two ways that are blind to different things.

`saved` asks autograd: every tensor that a graph's nodes hold, through saved_tensors_hooks. It does not see what a
custom function stores as an attribute of its context. `live` asks the allocator: every storage that the forward made
and that is still there when its output is not. It sees these too, but only what the dispatcher makes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Forward = Callable[[], Tensor]  # runs a model once and returns its output


class _Held:
    """A tensor that the graph keeps; it goes with the node that holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(forward: Forward, known: Iterator[Tensor]) -> int:
    """Return the bytes of the storages that the graph of a forward holds, each counted once, the known ones left out.

    known: parameters, buffers and inputs, which are there anyway.
    """
    held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Held:
        one = _Held(tensor.detach())  # an output would hold its own node, and live for ever
        held.add(one)
        return one

    with saved_tensors_hooks(pack, lambda one: one.tensor):
        graph = forward().grad_fn
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in held}
    for tensor in known:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del graph  # only now: it is what holds them
    return sum(storages.values())


def live_bytes(forward: Forward, known: Iterator[Tensor]) -> int:
    """Return the bytes of the storages that a forward made and that live on while only its graph is held."""
    with Allocated(known) as allocated:
        graph = forward().grad_fn
        result = allocated.now
    del graph
    return result


class Allocated(TorchDispatchMode):
    """Counts the bytes of the storages made inside a `with` block, known ones left out: alive now, and at most."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._drop, storage._cdata)
        return result

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Return how far a step's peak of allocated memory on a CUDA device lies above what was allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield a model's parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()
