"""What stands before the app: the limits of requests, in bytes and seconds, and the end of those nobody waits for."""

from dataclasses import dataclass
from typing import Any

import anyio
from engine import Engine
from protocol import APIError


@dataclass(frozen=True)
class Limits:
    """What a request may take, and all of them together."""

    rows: int = 8  # answers that generate at once
    waiting: int = 64  # requests that wait for that; more are refused (429)
    resident: int = 32  # adapters on the model at once
    length: int = 4096  # tokens of a prompt with its answer, at most what the model has room for
    answer: int = 1024  # tokens of an answer
    body: int = 2**20  # bytes of a request
    seconds: int = 300  # from a request's first byte to its answer's last


class Guard:
    """Stands before the app. A request that is too large, too slow, or that nobody waits for any more, ends.

    Whoever leaves, or reads nothing, ends its own request only; jobs in scope["jobs"] are cancelled with it.
    """

    def __init__(self, app: Any, limits: Limits, engine: Engine) -> None:
        self._app, self._limits, self._counts = app, limits, engine.counts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        statuses: list[int] = []

        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        scope["jobs"] = []
        try:
            with anyio.move_on_after(self._limits.seconds):
                return await self._run(scope, receive, tell)
            if not statuses:
                with anyio.move_on_after(1):
                    await APIError(408, f"A request has {self._limits.seconds} seconds.").response()(
                        scope, receive, tell
                    )
        finally:
            self._counts.update(f'responses_total{{status="{status}"}}' for status in statuses)
            for job in scope["jobs"]:
                job.cancelled = True

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        """Read a request, then run the app until it has answered or its client is gone."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limits.body:
                return await APIError(413, f"A request has {self._limits.body} bytes.").response()(scope, receive, send)
        messages = [{"type": "http.request", "body": bytes(body)}]

        async def again() -> Any:
            return messages.pop() if messages else await anyio.sleep_forever()

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self._app(scope, again, send)
            group.cancel_scope.cancel()
        return None
