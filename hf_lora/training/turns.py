"""Trainings in turns: each runs in a thread of its own, one at a time, until it waits for what all are to do together.

Only one thread runs at any moment, and each finds the process as it left it (`World`), so a training is the same as
without the others. When all that are left wait, those whose requests come first are served together.
"""

import contextvars
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.state import GradientState


class Stopped(BaseException):
    """Another training has failed, so this one ends; no `except Exception` is to keep it."""


class World:
    """What a training shares with the process: random numbers, and what accelerate knows of gradients and loaders."""

    def __init__(self, device: torch.device) -> None:
        """Take the states as they are."""
        self._device = None if device.type == "cpu" else torch.get_device_module(device.type)
        self.take()

    def take(self) -> None:
        """Note the states as they are now."""
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._accelerate = _copied(GradientState._shared_state)
        self._take_torch()

    def put(self) -> None:
        """Bring the states back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        GradientState._shared_state.clear()
        GradientState._shared_state.update(_copied(self._accelerate))
        self._put_torch()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw torch's random numbers from here inside a `with` block."""
        self._put_torch()
        yield
        self._take_torch()

    def _take_torch(self) -> None:
        self._torch = torch.get_rng_state()
        self._own = None if self._device is None else self._device.get_rng_state()

    def _put_torch(self) -> None:
        torch.set_rng_state(self._torch)
        if self._device is not None:
            self._device.set_rng_state(self._own)


def _copied(states: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in states.items()}


class Request(Protocol):
    """What a training waits for."""

    @property
    def order(self) -> int:
        """The smallest is served first, while the others wait."""


class Training:
    """One training: a function that runs in turns with others."""

    def __init__(self, name: str, world: World, work: Callable[[], None]) -> None:
        self.name, self.world = name, world
        self.request: Any = None
        self.answer: Any = None
        self.error: BaseException | None = None
        self.is_over = self.is_alone = self._is_stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._run, work), daemon=True)

    def _run(self, work: Callable[[], None]) -> None:
        self._go.acquire()
        try:
            if not self._is_stopped:
                work()
        except BaseException as error:
            self.error = error
        self.is_over = True
        self._back.release()

    def wait_for(self, request: Request) -> Any:
        """Let the others have their turns, and return the answer to a request; called in its own thread."""
        self.world.take()
        self.request = request
        self._back.release()
        self._go.acquire()
        answer, self.answer = self.answer, None
        if self._is_stopped:
            raise Stopped
        return answer

    def check(self) -> None:
        """Raise Stopped where others have failed, in a training that goes on without waiting."""
        if self._is_stopped:
            raise Stopped

    def go_on(self) -> None:
        """Run until it waits for something or is over. Raises what it raised."""
        if self._thread.ident is None:
            self._thread.start()
        self.request = None
        self.world.put()
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            if hasattr(self.error, "add_note"):  # Python 3.11
                self.error.add_note(f"in the run {self.name!r} of several that train together")
            raise self.error

    def stop(self) -> None:
        """End it where it waits, or as soon as it would."""
        self._is_stopped = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join()


def in_turns(trainings: Sequence[Training], serve: Callable[[list[Training]], None]) -> None:
    """Run trainings until all are over; serve: answers the requests of those whose turn it is.

    Raises what one of them raises; the others are ended then.
    """
    left = list(trainings)
    try:
        while left:
            for training in left:
                training.is_alone = len(left) == 1
                if training.request is None or training.answer is not None:
                    training.go_on()
            left = [training for training in left if not training.is_over]
            if left:
                first = min(training.request.order for training in left)
                serve([training for training in left if training.request.order == first])
    finally:
        for training in left:
            training.stop()
