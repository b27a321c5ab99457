"""What one training step costs here, before any is taken: its memory, and the number of threads that is fastest.

A step is a forward and a backward of a few rows; its gradients are dropped, and nothing is learnt.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Allocated", "Memory", "estimated_memory", "fastest_threads", "peak_so_far"]

_SMALL = 100e6  # parameters; larger ones have products that all threads are good for
_SAMPLE = 500  # rows among which the longest is looked for
_PAYS = 0.8  # of the time on one thread: below it, more are worth their noise


def fastest_threads(trainer: Any) -> int:
    """Return the number of CPU threads to train with: all there are, or one where a step is about as fast with it.

    Small products, and cores that others use too, make more threads many times slower.
    """
    most = torch.get_num_threads()
    parameters = sum(each.numel() for each in trainer.model.parameters())
    if most == 1 or parameters > _SMALL or trainer.args.device.type != "cpu":
        return most
    rows = list(range(min(trainer.args.train_batch_size, len(trainer.train_dataset))))
    seconds = {}
    try:
        for threads in (1, most):
            torch.set_num_threads(threads)
            seconds[threads] = min(_seconds(trainer, rows) for _ in range(3))
    finally:
        torch.set_num_threads(most)
    return most if seconds[most] < _PAYS * seconds[1] else 1


@dataclass(frozen=True)
class Memory:
    """What a run takes at most, in bytes: on a CPU the process's resident set, on a GPU what torch allocates there.

    now: there already: the model with its adapter, and on a CPU all that is imported. gradients, optimizer: of what
    trains. step: what a forward and a backward of a batch of the longest rows hold at a time.
    """

    now: int
    gradients: int
    optimizer: int
    step: int
    device: str

    @property
    def peak(self) -> int:
        """The sum, or what was needed at a time before now, if that was more."""
        return max(self.now + self.gradients + self.optimizer + self.step, peak_so_far(self.device))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {**asdict(self), "peak": self.peak}


def estimated_memory(trainer: Any) -> Memory:
    """Return what training will take, from steps of one and of two rows, which are continued to a whole batch."""
    args, device, model = trainer.args, trainer.args.device, trainer.model
    now = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    if getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", False):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # as training does
    longest = _longest(trainer)
    one, two = (_bytes_of_step(trainer, [longest] * rows) for rows in (1, 2))
    size = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    rows = min(args.train_batch_size, len(trainer.train_dataset))
    states = 0.0 if "sgd" in str(args.optim) else 0.5 if "8bit" in str(args.optim) else 2.0
    step = max(one + (two - one) * (rows - 1) - size, 0)  # the gradients are counted by themselves
    return Memory(now, size, int(states * size), step, device.type)


def _seconds(trainer: Any, rows: list[int]) -> float:
    start = time.perf_counter()
    _step(trainer, rows, training=False)  # a training may follow
    return time.perf_counter() - start


def _step(trainer: Any, rows: list[int], training: bool) -> None:
    """Compute the gradients of rows, and drop them. training: as in training: dropout draws, batch norms take note."""
    model, was_training = trainer.model, trainer.model.training
    model.train(training)
    try:
        batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
        inputs = trainer._prepare_inputs(batch)
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, inputs)
        loss.backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def _bytes_of_step(trainer: Any, rows: list[int]) -> int:
    """Return the most bytes that a step holds at a time, besides what was there before."""
    device = trainer.args.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _step(trainer, rows, training=True)
        return torch.cuda.max_memory_allocated(device) - before
    model = trainer.model
    with Allocated(chain(model.parameters(), model.buffers())) as allocated:
        _step(trainer, rows, training=True)
    return allocated.peak


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


def _longest(trainer: Any) -> int:
    """Return the row to train on with the most tokens (or sound), of a sample of them."""
    rows = trainer.train_dataset

    def length(row: int) -> int:
        return sum(len(each) for each in rows[row].values() if hasattr(each, "__len__") and not isinstance(each, str))

    return max(range(0, len(rows), max(len(rows) // _SAMPLE, 1)), key=length)


def peak_so_far(device: str) -> int:
    """Return the most bytes that this process had so far: resident on a CPU, allocated by torch on a GPU."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
