"""The engine: jobs of many adapters wait, then generate in one batch, a step at a time, while others come and leave."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from batch import BASE, Batch
from torch import Tensor

from hf_lora import AdapterCache
from hf_lora.errors import AdapterStateError

log = logging.getLogger(__name__)


class BusyError(Exception):
    """As many jobs wait as may."""


class StoppedError(Exception):
    """The engine is stopped, or stopping."""


@dataclass(eq=False)
class Job:
    """One answer to generate.

    model: the name that was asked for; key: its adapter's in the cache, BASE for none. news: pieces of text, at last
    None. outcome: why it ended ("stop", "length", "cancelled"), or an Exception.
    """

    model: str
    key: str
    prompt: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: list[str]
    tokens: list[int] = field(default_factory=list)
    news: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    outcome: str | Exception | None = None
    cancelled: bool = False  # set it where nobody waits any more
    held: bool = False  # whether the cache holds the adapter for it
    sent: int = 0  # characters

    def __post_init__(self) -> None:
        self.random = torch.Generator()
        self.random.seed() if self.seed is None else self.random.manual_seed(self.seed)

    def choose(self, logits: Tensor) -> int:
        """Return the next token of float32 logits (vocab,), as Transformers' temperature and top_p do."""
        if logits.isnan().any():
            raise ArithmeticError("the model computed NaN")
        if self.temperature < 1e-5:
            return int(logits.argmax())
        likely, order = (logits / self.temperature).softmax(0).sort(descending=True)
        likely[likely.cumsum(0) - likely >= self.top_p] = 0
        return int(order[torch.multinomial(likely, 1, generator=self.random)])

    def take(self, token: int, tokenizer: Any, ends: Collection[int]) -> tuple[str, str | None]:
        """Add a token. Return the text that is new and sure, and the reason if the token was the last."""
        self.tokens.append(token)
        before = self.prompt[-8:]  # alone, a text may lose its first blank
        both = [before, before + (self.tokens[:-1] if token in ends else self.tokens)]
        start, whole = tokenizer.batch_decode(both, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = whole[len(start) :]
        stops = [place for place in map(text.find, self.stop) if place >= 0]
        reason = "stop" if stops or token in ends else "length" if len(self.tokens) >= self.max_tokens else None
        if stops:
            text = text[: min(stops)]
        elif reason is None:  # what may begin a stop string, or a character that is not whole, waits
            begun = [len(text) - n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
            text = text[: min(begun, default=len(text))].rstrip("\ufffd")
        new, self.sent = text[self.sent :], max(self.sent, len(text))
        return new, reason


class Engine:
    """Generates for jobs of many adapters in one batch. All but the computing happens in the event loop.

    One thread makes adapters resident, in the order of the requests; another computes. Between two steps one job joins
    at most, so that rows wait for one prompt at a time. Nobody waits for those who read. counts: for the metrics.
    """

    def __init__(self, model: Any, tokenizer: Any, cache: AdapterCache, max_rows: int, max_waiting: int) -> None:
        self.tokenizer, self.cache, self.batch = tokenizer, cache, Batch(model)
        self.max_rows, self.max_waiting, self.counts = max_rows, max_waiting, Counter[str]()
        ends = model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else {*(ends or ())}
        self.jobs, self.rows = set[Job](), list[Job]()  # those that have not ended; those of the batch, in its order
        self._asked, self._ready = asyncio.Queue[Job](), asyncio.Queue[Job]()
        self._leaving, self._tried = set[str](), {BASE}  # keys of adapters
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._loader, self._computer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._tasks = [asyncio.create_task(work) for work in (self._bring(), self._compute())]

    async def stop(self) -> None:
        """End all jobs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for job in [*self.jobs]:
            self._end(job, StoppedError())
        for thread in (self._loader, self._computer):
            thread.shutdown(wait=False)

    @property
    def alive(self) -> bool:
        """Whether jobs are taken."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    @property
    def waiting(self) -> int:
        """How many jobs wait for their adapter or for a row."""
        return sum(not job.cancelled for job in self.jobs.difference(self.rows))

    def submit(self, job: Job) -> None:
        """Take a job. Raises BusyError, StoppedError."""
        if not self.alive:
            raise StoppedError
        if self.waiting >= self.max_waiting:
            raise BusyError
        self.jobs.add(job)
        self._asked.put_nowait(job)

    def try_adapter(self, key: str) -> None:
        """Generate with a resident adapter in a row beside the base's, once. Raises what computing raises."""
        if key not in self._tried:
            batch = Batch(self.batch.model)
            for name in (BASE, key):
                batch.join(name, [1])
            batch.step([1, 1])
            self._tried.add(key)

    def unload(self, key: str) -> None:
        """Drop an adapter as soon as no job needs it."""
        self._leaving.add(key)
        self._tidy()

    async def _bring(self) -> None:
        """Make the adapters of jobs resident, one after another."""
        while True:
            job = await self._asked.get()
            try:
                if not job.cancelled:
                    await self._in(self._loader, self.cache.acquire, job.key)
                    job.held = True
                    await self._in(self._loader, self.try_adapter, job.key)
                self._ready.put_nowait(job)
            except Exception as error:
                self._end(job, error)

    async def _compute(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception as error:  # of a step, which may be half done
                self.batch.clear()
                rows, self.rows = self.rows, []
                for job in rows:
                    self._end(job, error)

    async def _turn(self) -> None:
        """Let a job join, those that ended leave, and all rows step."""
        running = sum(job.outcome is None for job in self.rows)
        if not self.rows or (running < self.max_rows and not self._ready.empty()):
            await self._join(await self._ready.get())
        for job in self.rows:
            if job.cancelled:
                self._end(job, "cancelled")
        stay = [place for place, job in enumerate(self.rows) if job.outcome is None]
        if len(stay) < len(self.rows):
            self.rows = [self.rows[place] for place in stay]
            await self._in(self._computer, self.batch.keep, stay)
        if self.rows:
            await self._advance(self.rows, self.batch.step, [job.tokens[-1] for job in self.rows])

    async def _join(self, job: Job) -> None:
        try:
            if job.cancelled:
                return self._end(job, "cancelled")
            await self._advance([job], self.batch.join, job.key, job.prompt)
            return self.rows.append(job)
        except Exception as error:  # the others go on
            return self._end(job, error)

    async def _advance(self, jobs: list[Job], compute: Callable[..., Tensor], *args: Any) -> None:
        """Give every one of some jobs its next token. Raises what computing raises."""
        for job, (text, outcome) in zip(
            jobs, await self._in(self._computer, self._next, jobs, compute, *args), strict=True
        ):
            if text:
                job.news.put_nowait(text)
            if outcome is not None:
                self._end(job, outcome)

    def _next(self, jobs: list[Job], compute: Callable[..., Tensor], *args: Any) -> list[tuple[str, Any]]:
        """Return of each job the new text, and how it ended or None. In the computer's thread."""
        results = list[tuple[str, Any]]()
        for job, logits in zip(jobs, compute(*args).float().cpu(), strict=True):
            try:
                results.append(job.take(job.choose(logits), self.tokenizer, self._ends))
            except Exception as error:
                results.append(("", error))
        return results

    def _end(self, job: Job, outcome: str | Exception) -> None:
        if job.outcome is not None:
            return
        job.outcome = outcome
        self.jobs.discard(job)
        if job.held:
            self.cache.release(job.key)
        self._tidy()
        name, reason = json.dumps(job.model, ensure_ascii=False), outcome if isinstance(outcome, str) else "error"
        self.counts[f'requests_total{{model={name},reason="{reason}"}}'] += 1
        self.counts.update(prompt_tokens_total=len(job.prompt), generated_tokens_total=len(job.tokens))
        if isinstance(outcome, Exception):
            log.error("an answer of %s failed", job.model, exc_info=outcome)
        job.news.put_nowait(None)

    def _tidy(self) -> None:
        """Drop adapters that leave and that no job needs any more."""
        for key in self._leaving.difference(job.key for job in self.jobs):
            with suppress(AdapterStateError):  # it is on its way into CPU memory; the next time then
                self.cache.unregister(key)
                self._leaving.discard(key)
                self._tried.discard(key)

    @staticmethod
    async def _in(thread: ThreadPoolExecutor, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *args)
