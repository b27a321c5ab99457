"""A server of many adapters of one base, in OpenAI's words.

python examples/serve/server.py BASE --adapters FOLDER
"""

import argparse
import itertools
import json
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import uvicorn
from batch import BASE, check
from engine import BusyError, Engine, Job, StoppedError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from guard import Guard, Limits
from protocol import NAME, APIError, Chat, Completion, Form, Load, Unload
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lora import AdapterCache, LoRAConfig, LoRAModel
from hf_lora.errors import LoRAError

log = logging.getLogger(__name__)


class Adapters:
    """The models that can be asked for by name: the base, and folders below one folder. keys: theirs in the cache."""

    def __init__(self, base: str, folder: Path, engine: Engine) -> None:
        self._folder, self._engine = folder.resolve(strict=True), engine
        self.keys, self.paths = {base: BASE}, {base: base}
        self._numbers, self._changing = itertools.count(), threading.Lock()
        for name in sorted(path.parent.name for path in self._folder.glob("*/adapter_config.json")):
            place = self._place(name)
            if place and re.fullmatch(NAME, name) and name not in self.keys:
                self._serve(name, name, self._registered(name, place))
            else:
                log.warning("%r is not served: it needs another name, or lies elsewhere", name)

    def key(self, name: str) -> str:
        """Return the key of an adapter in the cache. Raises APIError."""
        if name not in self.keys:
            raise APIError(404, f"The model {name!a:.99} does not exist.", "model", "model_not_found")
        return self.keys[name]

    def load(self, name: str, path: str) -> None:
        """Read an adapter, try it, and answer for it from now on. Raises APIError."""
        with self._changing:
            if name in self.keys:
                raise APIError(400, f"The model {name!r} is there already; unload it first.", "lora_name")
            place = None if Path(path).is_absolute() else self._place(path)
            if place is None:
                raise APIError(
                    400, f"{path!a:.99} is no adapter's folder below the server's; name it from there.", "lora_path"
                )
            key = self._registered(name, place)
            try:
                with self._engine.cache.using(key):
                    self._engine.try_adapter(key)
            except Exception as error:
                self._engine.cache.unregister(key)
                if isinstance(error, LoRAError):
                    raise APIError(400, f"{error}".replace(f"{self._folder}{os.sep}", ""), "lora_path") from error
                raise
            self._serve(name, path, key)

    def unload(self, name: str) -> str:
        """Answer for an adapter no more, but for the requests that are here. Return its key. Raises APIError."""
        with self._changing:
            if (key := self.key(name)) == BASE:
                raise APIError(400, "The base can't be unloaded.", "lora_name")
            del self.keys[name], self.paths[name]
            return key

    def _serve(self, name: str, path: str, key: str) -> None:
        self.keys[name], self.paths[name] = key, path

    def _registered(self, name: str, place: Path) -> str:
        """Return a key of the cache for a folder: without dots, and not that of one that is leaving."""
        key = f"{name.replace('.', '_')}-{next(self._numbers)}"
        self._engine.cache.register(key, place)  # read when it is first asked for
        return key

    def _place(self, path: str) -> Path | None:
        """Return an adapter's folder, None where it, or a file of it, does not lie below the folder of all."""
        try:
            place = (self._folder / path).resolve(strict=True)
            inside = all(self._folder in each.resolve().parents for each in (place, *place.iterdir()))
            return place if inside and (place / "adapter_config.json").is_file() else None
        except (OSError, ValueError, RuntimeError):  # ValueError: NUL; RuntimeError: links in a circle
            return None


def create_app(model: Any, tokenizer: Any, base: str, folder: Path, limits: Limits) -> FastAPI:
    """Return the app. model: a LoRAModel of a decoder; base: its name; folder: below which its adapters lie."""
    check(model)
    cache = AdapterCache(model, max_adapters=limits.resident)
    engine = Engine(model, tokenizer, cache, limits.rows, limits.waiting)
    adapters, started = Adapters(base, folder, engine), int(time.time())
    vocabulary = model.get_input_embeddings().num_embeddings
    length = min(limits.length, getattr(model.config, "max_position_embeddings", None) or limits.length)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.stop()

    app = FastAPI(title="hf_lora", lifespan=lifespan)
    app.add_middleware(Guard, limits=limits, engine=engine)
    app.state.engine = engine
    for kind in (APIError, BusyError, StoppedError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, lambda _, error: told(error).response())

    def job_of(asked: Completion | Chat) -> Job:
        """Return the job of a request. Raises APIError."""
        key, tokens = adapters.key(asked.model), asked.tokens(tokenizer)
        if not tokens or not 0 <= min(tokens) <= max(tokens) < vocabulary:
            raise APIError(400, "The prompt has no tokens, or some that the model does not know.", "prompt")
        wanted, most = asked.max_completion_tokens or asked.max_tokens, min(limits.answer, length - len(tokens))
        if most < (wanted or 1):
            room = f"there is room for {length} together, {limits.answer} in an answer"
            message = f"The prompt has {len(tokens)} tokens and the answer {wanted or 'some'}; {room}."
            raise APIError(400, message, "max_tokens", "context_length_exceeded")
        temperature, top_p = (1.0 if value is None else value for value in (asked.temperature, asked.top_p))
        wanted = wanted or min(asked.usual, most)
        return Job(asked.model, key, tokens, wanted, temperature, top_p, asked.seed, asked.stops)

    async def answer(asked: Completion | Chat, request: Request) -> Response:
        job = await run_in_threadpool(job_of, asked)
        job.key = adapters.key(job.model)  # it may have been unloaded, and come again
        request.scope["jobs"].append(job)
        engine.submit(job)
        form, pieces = Form(asked), [await job.news.get()]
        if asked.stream and not isinstance(job.outcome, Exception):
            events = stream(job, form, pieces[0], bool(asked.stream_options and asked.stream_options.include_usage))
            return StreamingResponse(events, media_type="text/event-stream")
        while pieces[-1] is not None:
            pieces.append(await job.news.get())
        if isinstance(job.outcome, Exception):
            raise told(job.outcome)
        return JSONResponse(form.body("".join(pieces[:-1]), job.outcome, usage=usage(job)))

    @app.post("/v1/completions")
    async def completions(asked: Completion, request: Request) -> Response:
        return await answer(asked, request)

    @app.post("/v1/chat/completions")
    async def chat_completions(asked: Chat, request: Request) -> Response:
        return await answer(asked, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        about = {"object": "model", "created": started, "owned_by": "hf_lora", "parent": base}
        return {"object": "list", "data": [{"id": n, "root": p, **about} for n, p in sorted(adapters.paths.items())]}

    @app.post("/v1/load_lora_adapter")
    async def load_lora_adapter(asked: Load) -> dict[str, str]:
        await run_in_threadpool(adapters.load, asked.lora_name, asked.lora_path)
        return {"status": f"{asked.lora_name} is loaded"}

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(asked: Unload) -> dict[str, str]:
        engine.unload(await run_in_threadpool(adapters.unload, asked.lora_name))
        return {"status": f"{asked.lora_name} is unloaded"}

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if engine.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        now = {"requests_running": len(engine.rows), "requests_waiting": engine.waiting}
        now |= {f"adapters_{key}": number for key, number in cache.info()._asdict().items()}
        lines = [f"hf_lora_{name} {number}\n" for name, number in sorted({**now, **engine.counts}.items())]
        return PlainTextResponse("".join(lines), media_type="text/plain; version=0.0.4")

    return app


async def stream(job: Job, form: Form, piece: str | None, with_usage: bool) -> AsyncIterator[str]:
    """Yield an answer as server-sent events, from its first piece on."""
    events = [form.body(None, is_part=True)] if form.is_chat else []
    while piece is not None:
        for body in (*events, form.body(piece, is_part=True)):
            yield f"data: {json.dumps(body)}\n\n"
        events, piece = [], await job.news.get()
    if isinstance(job.outcome, Exception):
        yield f"data: {json.dumps(told(job.outcome).body)}\n\n"
        return
    events.append(form.body("", job.outcome, is_part=True))
    if with_usage:
        events.append({**form.body("", is_part=True), "choices": [], "usage": usage(job)})
    for body in events:
        yield f"data: {json.dumps(body)}\n\n"
    yield "data: [DONE]\n\n"


def usage(job: Job) -> dict[str, int]:
    """Return OpenAI's count of tokens."""
    prompt, answer = len(job.prompt), len(job.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def told(error: Exception) -> APIError:
    """Return what a client is told of an error."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, BusyError):
        return APIError(429, "Too many requests wait already; try again.")
    if isinstance(error, StoppedError):
        return APIError(503, "The server is stopping.")
    if isinstance(error, HTTPException):
        return APIError(error.status_code, error.detail)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or None
        message = first["msg"].removeprefix("Value error, ")
        return APIError(400, f"{where}: {message}" if where else message, where)
    return APIError(500, "The model or the adapter failed; the server's log says why.")


def main() -> None:
    """Load the base, and serve."""
    parser = argparse.ArgumentParser(description="Serve many adapters of one base, in OpenAI's words.")
    parser.add_argument("base", help="a decoder: a model of the Hub, or a folder")
    parser.add_argument("--adapters", type=Path, required=True, help="the folder below which all adapters lie")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name}", type=int, default=limit.default)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    model = AutoModelForCausalLM.from_pretrained(given.base, dtype="auto").to(given.device).eval()
    model = LoRAModel.from_model(model, LoRAConfig(r=1), "none")
    model.delete_adapter("none")  # the cache brings others
    limits = Limits(**{limit.name: getattr(given, limit.name) for limit in fields(Limits)})
    name = Path(given.base).resolve().name if Path(given.base).is_dir() else given.base
    app = create_app(model, AutoTokenizer.from_pretrained(given.base), name, given.adapters, limits)
    uvicorn.run(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
