"""A gate that many calls of a model pass side by side, and that closes while numbers change in place.

Where tensors stay the same objects, as compiled code wants them, several cannot change at one moment. So a change waits
until every call that runs has ended, and holds back those that come meanwhile.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import AdapterStateError


class Gate:
    """`with gate:` is a call, which may hold others of its thread; `with gate.closed(what):` a change."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._running, self._waiting = 0, 0
        self._own = threading.local()  # depth: how many calls this thread is in, one inside the other

    def __enter__(self) -> None:
        depth = getattr(self._own, "depth", 0)
        if not depth:
            with self._state:
                while self._waiting:
                    self._state.wait()
                self._running += 1
        self._own.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._own.depth -= 1
        if not self._own.depth:
            with self._state:
                self._running -= 1
                if self._waiting:
                    self._state.notify_all()

    @contextmanager
    def closed(self, what: str) -> Iterator[None]:
        """Let no call run inside a `with` block. Raises AdapterStateError inside of a call, which it would wait for."""
        if getattr(self._own, "depth", 0):
            raise AdapterStateError(f"{what}: this thread is inside of a call of the model, which has to end first.")
        with self._state:
            self._waiting += 1
            try:
                self._state.wait_for(lambda: not self._running)
                yield
            finally:
                self._waiting -= 1
                self._state.notify_all()

    def __reduce__(self) -> tuple[Any, ...]:
        return Gate, ()  # nobody is inside of a copy
