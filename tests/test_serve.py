"""The example of a server: every answer is its adapter's own, whoever else asks, reads slowly, leaves, or cheats."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TemperatureLogitsWarper, TopPLogitsWarper

from hf_lora import LoRAConfig, LoRAModel

from . import tiny
from .cases import move

for needed in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(needed, reason='the example of a server needs pip install ".[serve]"')

import httpx
import uvicorn
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "serve"))
from batch import BASE, Batch, check
from engine import Job
from server import Limits, create_app

sys.path.pop(0)

CHAT = "{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no developers') }}{% endif %}{{ m.content }} {% endfor %}"
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token 7 is the word "w7"."""
    vocabulary = {f"w{i}": i for i in range(tiny.VOCAB)} | {"?": tiny.VOCAB}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", chat_template=CHAT)


def llama(r: int = 2) -> LoRAModel:
    base = tiny.tiny("llama", noisy=True, max_position_embeddings=4096)
    return LoRAModel.from_model(base, LoRAConfig(r=r), "own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of adapters, two of them a level deeper, one broken, with links out of it."""
    top = tmp_path_factory.mktemp("adapters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for seed, place in enumerate(["fr", "de", "v1.5", "more/late", "more/other", "../outside"]):
            model = llama(1 + seed % 3)
            move(model, seed)
            model.save_pretrained(top / place, adapter_name="own")
    (top / "link").symlink_to(top / "../outside")
    (top / "inner").mkdir()
    (top / "inner" / "adapter_config.json").symlink_to(top / "../outside/adapter_config.json")
    (top / "broken").mkdir()
    (top / "broken" / "adapter_config.json").write_text((top / "fr" / "adapter_config.json").read_text())
    (top / "broken" / "adapter_model.safetensors").write_bytes(b"no tensors")
    return top


def make(folder: Path, eos: int | None = None, **limits: Any) -> Any:
    model = llama()
    model.delete_adapter("own")
    model.generation_config.eos_token_id = eos
    return create_app(model, words(), "base", folder, Limits(**{"resident": 2, "length": 200, "answer": 50, **limits}))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    """Return the client of a server with room for two adapters."""
    with TestClient(make(folder, body=10_000), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def want(folder: Path) -> Callable[..., str]:
    """Return a function of what an adapter alone generates, greedily."""
    model, tokenizer = llama(), words()
    for name in ("fr", "de", "v1.5", "more/late", "more/other"):
        model.load_adapter(folder / name, name.replace(".", "_"))

    def generate(name: str, prompt: str, tokens: int, **more: Any) -> str:
        given = tokenizer(prompt, return_tensors="pt").input_ids
        with model.adapters_active(name.replace(".", "_")) if name != "base" else model.adapters_disabled():
            out = model.generate(given, do_sample=False, max_new_tokens=tokens, **more)
        return f" {tokenizer.decode(out[0, given.shape[1] :])}"

    return generate


def body_of(model: str = "fr", prompt: Any = "w5 w6", max_tokens: int = 4, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, **more}


def text(response: Any) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def events(response: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, whose last says that it is done."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def metric(client: Any, name: str) -> float:
    found = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    return float(found.get(f"hf_lora_{name}", 0))


def within(app: Any, body: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Run a coroutine of an app's engine and a client in the app's own event loop."""

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://it") as c:
            await asyncio.wait_for(body(app.state.engine, c), 60)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def held(engine: Any) -> threading.Event:
    """Return what steps of a server wait for from now on."""
    hold, step = threading.Event(), engine.batch.step
    engine.batch.step = lambda tokens: (hold.wait(60), step(tokens))[1]
    return hold


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_rows_of_different_adapters_and_lengths_answer_as_each_alone(folder: Path, want: Callable[..., str]) -> None:
    asked = [
        ("fr", "w5 w6 w7 w8 w9", 9),
        ("base", "w9", 12),
        ("de", "w30 w31 w3", 7),
        ("v1.5", "w1 w2", 10),
        ("fr", "w8", 5),
    ]
    rows = []

    async def together(engine: Any, c: Any) -> None:
        hold, step = held(engine), engine.batch.step
        engine.batch.step = lambda tokens: (rows.append(len(tokens)), step(tokens))[1]
        tasks = [asyncio.create_task(c.post(COMPLETIONS, json=body_of(*each))) for each in asked]
        await until(lambda: sum(job.held for job in engine.jobs) == len(asked))
        hold.set()
        got = await asyncio.gather(*tasks)
        assert [text(each) for each in got] == [want(*each) for each in asked]
        assert got[0].json()["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        assert got[0].json()["choices"][0]["finish_reason"] == "length"

    within(make(folder, resident=4), together)
    assert max(rows) >= 4
    assert len({want(name, "w5 w6", 9) for name, *_ in asked}) == 4  # or nothing is shown


def test_rows_that_come_and_leave_are_what_the_model_computes_of_all_tokens() -> None:
    model = LoRAModel.from_model(tiny.tiny("llama", noisy=True).double(), LoRAConfig(r=2), "a")
    move(model, 1)
    batch, texts = Batch(model), dict[str, list[int]]()
    names = {"x": "a", "y": BASE, "z": "a", "u": BASE}
    order = list[str]()

    def right(logits: torch.Tensor, keys: list[str]) -> None:
        for got, key in zip(logits, keys, strict=True):
            want = model(torch.tensor([texts[key]]), adapter_names=[names[key]]).logits[0, -1]
            assert (got - want).abs().max() < 1e-10

    for round_, (joins, leaves) in enumerate([("x", ""), ("yz", ""), ("", "x"), ("u", "z"), ("x", "uy")]):
        for key in joins:
            texts[key] = [(7 * round_ + 3 * i) % 40 for i in range(1 + (5 * round_ + ord(key)) % 7)]
            right(batch.join(names[key], texts[key]), [key])
            order.append(key)
        batch.keep([place for place, key in enumerate(order) if key not in leaves])
        order = [key for key in order if key not in leaves]
        tokens = [11 + 5 * place for place, _ in enumerate(order)]
        for key, token in zip(order, tokens, strict=True):
            texts[key] = [*texts[key], token]
        with torch.no_grad():
            right(batch.step(tokens), order)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma2"])
def test_a_decoder_can_be_served(family: str) -> None:
    check(LoRAModel.from_model(tiny.tiny(family, noisy=True), LoRAConfig(r=1)))


def test_what_keeps_no_keys_and_values_is_refused_before_anybody_asks() -> None:
    with pytest.raises(ValueError, match="Mamba.*computes something else"):
        check(LoRAModel.from_model(tiny.tiny("mamba", noisy=True), LoRAConfig(r=1)))
    with pytest.raises(ValueError, match="T5.*keeps no keys"):
        check(LoRAModel.from_model(tiny.tiny("t5", noisy=True), LoRAConfig(r=1)))


def test_a_stream_and_a_chat_say_the_same_in_openais_form(client: TestClient, want: Callable[..., str]) -> None:
    parts = events(client.post(COMPLETIONS, json=body_of(stream=True)))
    assert "".join(part["choices"][0]["text"] for part in parts) == want("fr", "w5 w6", 4)
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * 4 + ["length"]
    assert {part["object"] for part in parts} == {"text_completion"}
    assert len({part["id"] for part in parts}) == 1
    messages = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    chat = {"model": "fr", "messages": messages, "temperature": 0, "max_completion_tokens": 4}
    whole = client.post(CHATS, json=chat).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": want("fr", "w5 w6", 4)}
    assert whole["object"] == "chat.completion"
    first, *parts, last, usage = events(
        client.post(CHATS, json={**chat, "stream": True, "stream_options": {"include_usage": True}})
    )
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == want("fr", "w5 w6", 4)
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert last["object"] == "chat.completion.chunk"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_and_what_follows_is_never_sent(
    client: TestClient, want: Callable[..., str], stream: bool
) -> None:
    whole = want("fr", "w5 w6", 9)
    for stop in (whole[4:9], [whole[12:14], "never", whole[7:9]], whole[:3], "w", [f"{whole[-4:]}!"]):
        stops = [stop] if isinstance(stop, str) else stop
        places = [place for place in map(whole.find, stops) if place >= 0]
        response = client.post(COMPLETIONS, json=body_of(max_tokens=9, stop=stop, stream=stream))
        choices = [each["choices"][0] for each in (events(response) if stream else [response.json()])]
        assert "".join(choice["text"] for choice in choices) == (whole[: min(places)] if places else whole)
        assert choices[-1]["finish_reason"] == ("stop" if places else "length")


def test_the_end_of_a_text_ends_an_answer_as_in_generate(folder: Path, want: Callable[..., str]) -> None:
    end = int(want("fr", "w5 w6", 9).split()[4][1:])
    with TestClient(make(folder, eos=end)) as client:
        response = client.post(COMPLETIONS, json=body_of(max_tokens=9))
    answer = want("fr", "w5 w6", 9, eos_token_id=end)
    assert len(answer.split()) < 9
    assert text(response) + f" w{end}" == answer
    assert response.json()["choices"][0]["finish_reason"] == "stop"


def test_a_seed_fixes_what_is_drawn(client: TestClient, want: Callable[..., str]) -> None:
    def drawn(**more: Any) -> str:
        return text(client.post(COMPLETIONS, json=body_of(max_tokens=12, **{"temperature": 1.5, **more})))

    assert drawn(seed=1) == drawn(seed=1, n=1, logprobs=None, user="me") != drawn(seed=2)
    assert drawn(top_p=1e-6) == drawn(temperature=0) == want("fr", "w5 w6", 12)


def job(**more: Any) -> Job:
    return Job(
        **{
            "model": "m",
            "key": BASE,
            "prompt": [1],
            "max_tokens": 99,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": 0,
            "stop": [],
            **more,
        }
    )


def test_temperature_and_top_p_are_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, draw = [], torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, *args, **kwargs: (seen.append(p), draw(p, *args, **kwargs))[1])
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 2
    for temperature, top_p in ((0.7, 0.9), (1.3, 0.5), (1.0, 1.0)):
        scores = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits[None]))
        token = job(temperature=temperature, top_p=top_p).choose(logits)
        got, want = seen[-1] / seen[-1].sum(), scores[0].softmax(0)
        assert torch.allclose(got, want.sort(descending=True).values, atol=1e-6)
        assert want[token] > 0


def test_half_a_character_waits_for_its_other_half() -> None:
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    it = job(prompt=fast("né")["input_ids"])
    assert [it.take(token, fast, ())[0] for token in fast("aé漢")["input_ids"]] == ["a", "", "é", "", "", "漢"]
    it.max_tokens = len(it.tokens) + 1
    assert it.take(fast("é")["input_ids"][0], fast, ()) == ("\ufffd", "length")


# --- what is refused --------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, Any, int, str]] = {
    "unknown": (COMPLETIONS, body_of("it"), 404, "The model 'it' does not exist."),
    "a key of the cache": (COMPLETIONS, body_of("fr-0"), 404, "does not exist"),
    "the rows' word for the base": (COMPLETIONS, body_of(BASE), 404, "does not exist"),
    "a path": (CHATS, {"model": "../outside", "messages": [{"role": "user", "content": "w1"}]}, 404, "does not exist"),
    "half a surrogate": (COMPLETIONS, body_of("\ud800"), 400, "model: "),
    "half a surrogate in a prompt": (COMPLETIONS, body_of(prompt="w1 \ud800"), 400, "prompt"),
    "half a surrogate in a chat": (CHATS, {"model": "fr", "messages": [{"role": "user", "content": "\ud800"}]}, 400, ""),
    "half a surrogate to stop": (COMPLETIONS, body_of(stop="\ud800"), 400, "stop"),
    "a long prompt": (COMPLETIONS, body_of(prompt="w1 " * 198), 400, "198 tokens and the answer 4; there is room for 200"),
    "a long answer": (COMPLETIONS, body_of(max_tokens=51), 400, "50 in an answer"),
    "no prompt": (COMPLETIONS, body_of(prompt=""), 400, "no tokens"),
    "strange tokens": (COMPLETIONS, body_of(prompt=[1, 48]), 400, "does not know"),
    "negative tokens": (COMPLETIONS, body_of(prompt=[-1]), 400, "does not know"),
    "two prompts": (COMPLETIONS, body_of(prompt=["w1", "w2"]), 400, "prompt"),
    "two answers": (COMPLETIONS, body_of(n=2), 400, "n=2 is not supported"),
    "logprobs": (COMPLETIONS, body_of(logprobs=0), 400, "logprobs=0 is not supported"),
    "a strange word": (COMPLETIONS, body_of(temperture=1), 400, "Unrecognized request argument supplied: 'temperture'"),
    "a strange letter": (COMPLETIONS, body_of(**{"\ud800": 1}), 400, "valid string"),
    "a hot answer": (COMPLETIONS, body_of(temperature=2.1), 400, "temperature: "),
    "a text for a number": (COMPLETIONS, body_of(temperature="1"), 400, "temperature: "),
    "no number": (COMPLETIONS, '{"model": "fr", "prompt": "w1", "temperature": NaN}', 400, "temperature: "),
    "a large seed": (COMPLETIONS, body_of(seed=2**63), 400, "seed: "),
    "no top_p": (COMPLETIONS, body_of(top_p=0), 400, "top_p: "),
    "an empty stop": (COMPLETIONS, body_of(stop=""), 400, "stop: "),
    "five stops": (COMPLETIONS, body_of(stop=["a"] * 5), 400, "stop"),
    "options of no stream": (COMPLETIONS, body_of(stream_options={"include_usage": True}), 400, "stream_options: "),
    "no messages": (CHATS, {"model": "fr", "messages": []}, 400, "messages: "),
    "a role of nobody": (CHATS, {"model": "fr", "messages": [{"role": "tool", "content": ""}]}, 400, "messages.0.role: "),
    "a chat that the template refuses": (CHATS, {"model": "fr", "messages": [{"role": "developer", "content": ""}]}, 400, "no developers"),
    "no JSON": (COMPLETIONS, "{", 400, ""),
    "deep JSON": (COMPLETIONS, "[" * 5000, 400, ""),
    "no UTF-8": (COMPLETIONS, b"\xff", 400, ""),
    "too much": (COMPLETIONS, body_of(prompt="w1 " * 4000), 413, "10000 bytes"),
    "no page": ("/v1/%2e%2e/x", {}, 404, "Not Found"),
    **{
        f"adapter at {path!a:.20}": (LOAD, {"lora_name": "new", "lora_path": path}, 400, "no adapter's folder below")
        for path in ("../outside", "more/../../outside", "link", "inner", "%2e%2e/outside", ".", "more", "a\0b", "nowhere", "~", "x" * 999)
    },
    "adapter nowhere": (LOAD, {"lora_name": "new", "lora_path": ""}, 400, "lora_path: "),
    "adapter in pieces": (LOAD, {"lora_name": "new", "lora_path": "broken"}, 400, "broken"),
    **{
        f"adapter named {name!a:.20}": (LOAD, {"lora_name": name, "lora_path": "fr"}, 400, "lora_name: ")
        for name in ("../x", "a/b", "", "x" * 65, "new\n", ".x", "né", "a\0b", "%2e")
    },
    "adapter twice": (LOAD, {"lora_name": "fr", "lora_path": "fr"}, 400, "is there already"),
    "adapter as the base": (LOAD, {"lora_name": "base", "lora_path": "fr"}, 400, "is there already"),
    "unload nobody": (UNLOAD, {"lora_name": "nobody"}, 404, "does not exist"),
    "unload the base": (UNLOAD, {"lora_name": "base"}, 400, "can't be unloaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_openais_form(client: TestClient, folder: Path, case: str) -> None:
    path, given, status, words_ = WRONG[case]
    content = given if isinstance(given, str | bytes) else json.dumps(given)
    before = client.get("/v1/models").json(), metric(client, "adapters_registered")
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert words_ in error["message"]
    assert len(error["message"]) < 600
    assert str(folder) not in response.text
    assert (client.get("/v1/models").json(), metric(client, "adapters_registered")) == before
    assert metric(client, "requests_waiting") == metric(client, "requests_running") == 0


def test_an_absolute_path_is_refused_though_it_lies_below(client: TestClient, folder: Path) -> None:
    response = client.post(LOAD, json={"lora_name": "new", "lora_path": str(folder / "fr")})
    assert response.status_code == 400


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_adapters_come_leave_and_come_again_as_others(client: TestClient, want: Callable[..., str]) -> None:
    for place in ("more/late", "more/other"):
        assert client.post(COMPLETIONS, json=body_of("late")).status_code == 404
        assert client.post(LOAD, json={"lora_name": "late", "lora_path": place}).status_code == 200
        found = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
        assert found.keys() == {"base", "broken", "fr", "de", "v1.5", "late"}
        assert (found["late"]["root"], found["late"]["parent"]) == (place, "base")
        assert text(client.post(COMPLETIONS, json=body_of("late", max_tokens=9))) == want(place, "w5 w6", 9)
        assert client.post(UNLOAD, json={"lora_name": "late"}).status_code == 200
    assert metric(client, "adapters_registered") == 4
    assert metric(client, 'requests_total{model="late",reason="length"}') == 2


def test_who_was_answered_when_an_adapter_is_unloaded_still_is(folder: Path, want: Callable[..., str]) -> None:
    async def body(engine: Any, c: Any) -> None:
        hold = held(engine)
        running = asyncio.create_task(c.post(COMPLETIONS, json=body_of(max_tokens=9)))
        await until(lambda: engine.rows)
        assert (await c.post(UNLOAD, json={"lora_name": "fr"})).status_code == 200
        assert (await c.post(COMPLETIONS, json=body_of())).status_code == 404
        assert (await c.post(LOAD, json={"lora_name": "fr", "lora_path": "de"})).status_code == 200
        other = asyncio.create_task(c.post(COMPLETIONS, json=body_of(max_tokens=9)))
        hold.set()
        assert text(await running) == want("fr", "w5 w6", 9)
        assert text(await other) == want("de", "w5 w6", 9)
        assert engine.cache.info().registered == 4

    within(make(folder), body)


def test_who_waits_for_an_adapter_that_is_unloaded_is_answered_too(folder: Path, want: Callable[..., str]) -> None:
    async def body(engine: Any, c: Any) -> None:
        hold = held(engine)
        asked = [asyncio.create_task(c.post(COMPLETIONS, json=body_of("fr")))]
        await until(lambda: engine.rows)
        asked.append(asyncio.create_task(c.post(COMPLETIONS, json=body_of("de"))))  # for whose adapter there is no room
        await until(lambda: engine.waiting)
        assert (await c.post(UNLOAD, json={"lora_name": "de"})).status_code == 200
        hold.set()
        assert [text(each) for each in await asyncio.gather(*asked)] == [want(n, "w5 w6", 4) for n in ("fr", "de")]
        assert engine.cache.info().registered == 3

    within(make(folder, resident=1), body)


def test_no_more_wait_than_may_and_who_leaves_makes_room(folder: Path, want: Callable[..., str]) -> None:
    async def body(engine: Any, c: Any) -> None:
        hold = held(engine)
        running = asyncio.create_task(c.post(COMPLETIONS, json=body_of()))
        await until(lambda: engine.rows)
        waiting = [asyncio.create_task(c.post(COMPLETIONS, json=body_of("de"))) for _ in range(2)]
        await until(lambda: engine.waiting == 2)
        refused = await c.post(COMPLETIONS, json=body_of("base"))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        waiting.pop().cancel()
        await until(lambda: engine.waiting == 1)
        waiting.append(asyncio.create_task(c.post(COMPLETIONS, json=body_of("base"))))
        await until(lambda: engine.waiting == 2)
        hold.set()
        got = [text(each) for each in await asyncio.gather(running, *waiting)]
        assert got == [want(name, "w5 w6", 4) for name in ("fr", "de", "base")]
        assert not engine.jobs
        assert engine.cache.info().pinned == 0

    within(make(folder, rows=1, waiting=2), body)


def test_a_failure_ends_whom_it_concerns(
    folder: Path, want: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(engine: Any, c: Any) -> None:
        broken, fine = await asyncio.gather(*[c.post(COMPLETIONS, json=body_of(name)) for name in ("broken", "fr")])
        assert text(fine) == want("fr", "w5 w6", 4)
        assert broken.status_code == 500
        assert broken.json()["error"]["type"] == "server_error"
        step = engine.batch.step
        engine.batch.step = lambda tokens: 1 / 0
        assert (await c.post(COMPLETIONS, json=body_of())).status_code == 500
        engine.batch.step = step
        assert text(await c.post(COMPLETIONS, json=body_of())) == want("fr", "w5 w6", 4)
        assert engine.cache.info().pinned == 0
        assert (await c.get("/health")).status_code == 200
        await engine.stop()
        assert (await c.get("/health")).status_code == 503
        assert (await c.post(COMPLETIONS, json=body_of())).status_code == 503

    within(make(folder), body)
    assert "ZeroDivisionError" in caplog.text


def scope_of(path: str) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }


async def forever(*_: Any) -> Any:
    await asyncio.Event().wait()


def test_who_reads_nothing_stops_nobody(folder: Path, want: Callable[..., str]) -> None:
    app = make(folder, rows=1)

    async def body(engine: Any, c: Any) -> None:
        given = [{"type": "http.request", "body": json.dumps(body_of(stream=True)).encode(), "more_body": False}]
        receive = lambda: forever() if not given else asyncio.sleep(0, given.pop())  # noqa: E731
        slow = [asyncio.create_task(app(scope_of(COMPLETIONS), receive, forever))]
        await until(lambda: engine.counts['requests_total{model="fr",reason="length"}'])
        assert text(await c.post(COMPLETIONS, json=body_of("de"))) == want("de", "w5 w6", 4)
        assert not slow[0].done()
        slow[0].cancel()

    within(app, body)


@pytest.mark.parametrize("slow", ["sends nothing", "reads nothing"])
def test_who_takes_too_long_is_cut_off(folder: Path, slow: str) -> None:
    app, sent = make(folder, seconds=0.3), []

    async def send(message: Any) -> None:
        sent.append(message)
        if slow == "reads nothing":
            await forever()

    async def body(engine: Any, _: Any) -> None:
        given = [{"type": "http.request", "body": json.dumps(body_of(stream=True)).encode(), "more_body": False}]
        receive = lambda: forever() if slow == "sends nothing" or not given else asyncio.sleep(0, given.pop())  # noqa: E731
        await app(scope_of(COMPLETIONS), receive, send)
        await until(lambda: not engine.jobs)
        statuses = [each["status"] for each in sent if "status" in each]
        assert statuses in ([[408]] if slow == "sends nothing" else [[200], [408]])  # 408: on a slow machine
        assert not any("more_body" in each and not each["more_body"] for each in sent[:-1])

    within(app, body)


@contextmanager
def running(app: Any) -> Iterator[httpx.Client]:
    """Serve an app by uvicorn, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("stream", [False, True])
def test_who_disconnects_frees_its_row(folder: Path, want: Callable[..., str], stream: bool) -> None:
    app = make(folder, rows=1, length=4000, answer=3990)
    hold = held(app.state.engine)
    with running(app) as client:
        content = json.dumps(body_of(max_tokens=3990, stream=stream)).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(head.encode() + content)
            wait_for(lambda: app.state.engine.rows)
            if stream:
                assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
        wait_for(lambda: all(job.cancelled for job in app.state.engine.jobs))
        hold.set()
        assert text(client.post(COMPLETIONS, json=body_of("de"))) == want("de", "w5 w6", 4)
        assert metric(client, 'requests_total{model="fr",reason="cancelled"}') == 1
        assert metric(client, "generated_tokens_total") < 20
