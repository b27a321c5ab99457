"""What one training step costs here, before any is taken: its memory, and the number of threads that is fastest.

A step is a forward and a backward of a few rows; its gradients are dropped, and nothing is learnt.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

__all__ = ["Memory", "estimated_memory", "fastest_threads", "peak_so_far"]

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
    seconds = dict.fromkeys((1, most), math.inf)
    try:
        for threads in (1, most) * 6:  # in turns, so that what else runs here slows down both
            torch.set_num_threads(threads)
            seconds[threads] = min(seconds[threads], _seconds(trainer, rows))
    finally:
        torch.set_num_threads(most)
    return most if seconds[most] < _PAYS * seconds[1] else 1


@dataclass(frozen=True)
class Memory:
    """What a run takes at most, in bytes: on a CPU the process's resident set, on a GPU what torch allocates there.

    now: there already: the model with its adapter, and on a CPU all that is imported. step: what a forward and a
    backward of a batch of the longest rows need besides. optimizer: its states of what trains.
    """

    now: int
    step: int
    optimizer: int
    device: str

    @property
    def peak(self) -> int:
        """The sum."""
        return self.now + self.step + self.optimizer

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {**asdict(self), "peak": self.peak}


def estimated_memory(trainer: Any) -> Memory:
    """Return what training will take, from a step of a whole batch of the longest rows, or of as many as surely fit.

    Libraries have buffers of their own, and heaps have holes: only a step that is computed tells. The
    step may need half of the free memory: if the whole batch does not, rows are doubled, and the rest is proportion.
    """
    args, device, model = trainer.args, trainer.args.device, trainer.model
    is_cuda = device.type == "cuda"
    now = torch.cuda.memory_allocated(device) if is_cuda else psutil.Process().memory_info().rss
    free = torch.cuda.mem_get_info(device)[0] if is_cuda else psutil.virtual_memory().available
    if getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", False):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # as training does
    longest, rows = _longest(trainer), min(args.train_batch_size, len(trainer.train_dataset))
    count, held = 1, max(_peak_of_step(trainer, [longest]) - now, 0)  # the system may note a peak late
    while count < rows and 2 * held < free / 2:
        count = rows if held * rows // count < free / 2 else min(2 * count, rows)  # at once: a used heap has more room
        held = max(_peak_of_step(trainer, [longest] * count) - now, 0)
    size = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    states = 0.0 if "sgd" in str(args.optim) else 0.5 if "8bit" in str(args.optim) else 2.0
    return Memory(now, held * rows // count, int(states * size), device.type)


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


def _peak_of_step(trainer: Any, rows: list[int]) -> int:
    """Return the most bytes that there were until the end of a step, or on a GPU while it was computed."""
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.args.device)
    _step(trainer, rows, training=True)
    return peak_so_far(trainer.args.device.type)


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
