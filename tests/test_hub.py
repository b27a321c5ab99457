"""Reading from the Hub: what is there, what is not and why, and every way in which an answer can go wrong."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import GPT2LMHeadModel

from hf_lora import LoRAConfig, LoRAModel, inspect_adapter
from hf_lora.errors import HubAccessError, HubError, HubNotFoundError

from .cases import move
from .hub import Fault, Hub, corrupt, half, reset, status
from .peek import Source, fetch, fetch_range, holds_token, is_repo_id, list_files, redacted
from .tiny import tiny

SMALL = {"small.json": b'{"a": 1}', "deep/w.safetensors": bytes(range(256)) * 40}
IDS = torch.tensor([[1, 2, 3]])


def cached(hub: Hub) -> list[Path]:
    """Return the contents in the cache."""
    return sorted(p for p in (hub.home / "hub").rglob("blobs/*") if p.is_file())


def read(file: str) -> bytes | None:
    """Return what comes of a file of me/x."""
    path = fetch("me/x", file)
    return path and path.read_bytes()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny("gpt2", cls=GPT2LMHeadModel).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


# --- what is there ----------------------------------------------------------------------------------------------


def test_a_file_of_a_repo_is_fetched_into_the_cache_and_asked_for_once_more_only_by_its_head(hub: Hub) -> None:
    hub.add("me/x", SMALL)
    path = fetch("me/x", "w.safetensors", subfolder="deep")
    assert path is not None
    assert path.read_bytes() == SMALL["deep/w.safetensors"]
    before = len(hub.requests)
    assert fetch("me/x", "deep/w.safetensors") == path
    assert [r.line.split()[0] for r in hub.requests[before:]] == ["HEAD"]
    assert fetch("me/x", "nope.json") is None
    assert fetch("me/x", "small.json", subfolder="deep") is None


def test_a_revision_is_a_branch_or_a_commit(hub: Hub) -> None:
    first = hub.add("me/x", {"f.json": b"1"})
    hub.add("me/x", {"f.json": b"2"})
    hub.add("me/x", {"f.json": b"3"}, revision="dev")
    contents = {r: fetch("me/x", "f.json", revision=r) for r in (None, first, "dev")}
    assert [p.read_bytes() for p in contents.values() if p] == [b"2", b"1", b"3"]


def test_a_range_is_read_without_the_rest(hub: Hub) -> None:
    hub.add("me/x", SMALL)
    content = SMALL["deep/w.safetensors"]
    assert fetch_range("me/x", "w.safetensors", 8, 20, subfolder="deep") == content[8:20]
    assert fetch_range("me/x", "small.json", 2, 1000) == SMALL["small.json"][2:]
    assert fetch_range("me/x", "small.json", 500, 1000) == b""
    assert fetch_range("me/x", "small.json", 3, 3) == b""
    assert cached(hub) == []
    hub.ranges = False
    assert fetch_range("me/x", "deep/w.safetensors", 300, 310) == content[300:310]


def test_the_token_goes_to_the_hub_and_not_to_where_its_files_lie(hub: Hub) -> None:
    hub.add("me/x", SMALL, private=True)
    fetch("me/x", "deep/w.safetensors")
    fetch_range("me/x", "deep/w.safetensors", 0, 9)
    assert len(hub.asked("/cdn/")) == 2
    assert not any("authorization" in request.headers for request in hub.asked("/cdn/"))
    assert all("authorization" in request.headers for request in hub.asked("/me/x/"))


def test_the_files_of_a_repo_are_listed_with_their_sizes(hub: Hub) -> None:
    hub.add("me/x", SMALL)
    assert list_files("me/x") == {"small.json": 8, "deep/w.safetensors": 10240}
    assert list_files("me/x", subfolder="deep") == {"w.safetensors": 10240}
    assert list_files("me/x", subfolder="nowhere") == {}


# --- what is not there, and why ---------------------------------------------------------------------------------


def ask_file(name: str, **kwargs: object) -> object:
    return fetch(name, "small.json", **kwargs)


def ask_range(name: str, **kwargs: object) -> object:
    return fetch_range(name, "small.json", 0, 4, **kwargs)


@pytest.mark.parametrize("ask", [ask_file, ask_range])
def test_each_refusal_is_its_own_error_that_says_what_to_do(
    hub: Hub, ask: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/open", SMALL)
    hub.add("me/private", SMALL, private=True)
    hub.add("org/gated", SMALL, gated=True)
    cases = [
        ("me/none", {}, HubNotFoundError, "token in use"),
        ("me/none", {"token": False}, HubNotFoundError, "hf auth login"),
        ("me/private", {"token": hub.stranger}, HubNotFoundError, "token in use"),
        ("me/private", {"token": False}, HubNotFoundError, "hf auth login"),
        ("org/gated", {}, HubAccessError, "https://huggingface.co/org/gated"),
        ("org/gated", {"token": False}, HubAccessError, "log in"),
        ("me/open", {"revision": "v9"}, HubNotFoundError, "'v9'"),
        ("me/open", {"token": "hf_expired"}, HubAccessError, "hf auth login"),
        ("me/open", {"token": True}, HubAccessError, "token is needed to read"),
    ]
    for name, kwargs, kind, message in cases:
        if kwargs.get("token") is True:  # with nobody logged in
            monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubError) as caught:
            ask(name, **kwargs)
        assert type(caught.value) is kind, (name, kwargs)
        assert message in str(caught.value)
        assert isinstance(caught.value, OSError)
    assert ask("me/open")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.granted.add("me")
    assert ask("org/gated")
    assert ask("me/private")
    with pytest.raises(HubError, match="'a/b/c'"):
        fetch_range("a/b/c", "f", 0, 9)


def test_a_model_s_load_says_the_same(hub: Hub) -> None:
    hub.add("org/gated", SMALL, gated=True)
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    for load in (LoRAModel.from_pretrained, lambda name: model.load_adapter(name, "second")):
        with pytest.raises(HubNotFoundError, match="me/none"):
            load("me/none")
        with pytest.raises(HubAccessError, match="org/gated.*terms"):
            load("org/gated")
    assert list(model.peft_config) == ["default"]


def test_too_many_requests_and_a_broken_hub_are_errors_that_say_when_to_try_again(hub: Hub) -> None:
    hub.add("me/x", SMALL)
    ways = (ask_file, ask_range, LoRAModel.from_pretrained, inspect_adapter)
    for code, seconds, told in ((429, 300, "300 seconds"), (429, 21, "21 seconds"), (503, 300, "status 503")):
        hub.faults.clear()
        hub.fail_next("me/x", status(code, retry_after=seconds), times=99)
        for ask in ways:
            with pytest.raises(HubError, match=told):
                ask("me/x")
    assert max(hub.slept) <= 1  # nobody waits five minutes without being told
    for fault, told in ((status(500), "status 500"), (reset(), "connection .*http://hub.test")):
        hub.faults.clear()
        hub.fail_next("/me/x/", fault, times=99)
        for ask in (ask_file, ask_range):
            with pytest.raises(HubError, match=told):
                ask("me/x")


def test_a_name_that_no_repo_can_have_is_left_to_the_caller(hub: Hub) -> None:
    for name in ("./nowhere", "a/b/c", "/no/such/place", "C:\\models\\x", "~/x", ""):
        assert not is_repo_id(name)
        assert fetch(name, "adapter_config.json") is None
    assert "neither a directory or file of this machine nor the id of a Hub repo" in Source.of("a/b/c", {}).missing
    assert Source.of("a/b", {"subfolder": "s"}).missing == "the folder s of a/b holds no adapter"
    assert hub.requests == []


# --- offline ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["HF_HUB_OFFLINE", "local_files_only", "unreachable", "broken"])
def offline(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, bool]]:
    def go() -> dict[str, bool]:
        if request.param == "HF_HUB_OFFLINE":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        elif request.param == "unreachable":
            hub.close()
        elif request.param == "broken":
            hub.fail_next("", status(503), times=999)
        return {"local_files_only": True} if request.param == "local_files_only" else {}

    return go


def test_offline_the_cache_answers(hub: Hub, offline: Callable[[], dict[str, bool]]) -> None:
    hub.add("me/x", {**SMALL, "adapter_config.json": b"{}"})
    path = fetch("me/x", "small.json")
    assert fetch("me/x", "adapter_config.json") is not None
    assert fetch("me/x", "adapter_model.safetensors") is None
    kwargs = offline()
    assert fetch("me/x", "small.json", **kwargs) == path
    assert fetch("me/x", "adapter_model.safetensors", **kwargs) is None  # known from before
    for name, file, more in (
        ("me/y", "small.json", {}), ("me/x", "small.json", {"revision": "dev"}),
        ("me/x", "adapter_model.bin", {}), ("me/x", "small.json", {"force_download": True}),
    ):  # fmt: skip
        with pytest.raises(HubError):
            fetch(name, file, **kwargs, **more)


def test_a_base_in_the_cache_gets_its_adapter(hub: Hub, base: Path, offline: Callable[[], dict[str, bool]]) -> None:
    hub.add("me/base", base)
    GPT2LMHeadModel.from_pretrained("me/base")
    shutil.rmtree(hub.home / "hub" / "models--me--base" / ".no_exist", ignore_errors=True)
    kwargs = offline()
    assert fetch("me/base", "adapter_config.json", **kwargs) is None
    assert len(hub.slept) <= 3  # no network is no reason to wait half a minute
    if kwargs or constants.HF_HUB_OFFLINE:
        before = len(hub.requests)
        model = LoRAModel.from_pretrained("me/base", LoRAConfig(r=2), **kwargs)
        assert isinstance(model, GPT2LMHeadModel)
        assert len(hub.requests) == before


def test_a_tokenizer_in_the_cache_makes_no_base_of_an_adapter(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/x", {"tokenizer.json": b"{}", "adapter_config.json": b"{}"})
    fetch("me/x", "tokenizer.json")
    hub.fail_next("^HEAD ", status(503))
    assert fetch("me/x", "adapter_config.json") is not None
    shutil.rmtree(hub.home / "hub")
    fetch("me/x", "tokenizer.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"adapter_config\.json of me/x.*cache"):
        fetch("me/x", "adapter_config.json")


def test_offline_ranges_and_lists_come_from_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/x", SMALL)
    fetch("me/x", "deep/w.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_range("me/x", "deep/w.safetensors", 3, 9) == bytes(range(3, 9))
    assert list_files("me/x") == {"deep/w.safetensors": 10240}
    for ask in (lambda: fetch_range("me/y", "f", 0, 9), lambda: list_files("me/y")):
        with pytest.raises(HubError, match="me/y.*cache"):
            ask()


# --- what goes wrong on the way ---------------------------------------------------------------------------------

ONCE = {"503": status(503), "reset": reset(), "half": half(), "corrupt": corrupt()}


@pytest.mark.parametrize("fault", ONCE.values(), ids=ONCE)
@pytest.mark.parametrize("at", ["^HEAD /me/x", "^GET "])
@pytest.mark.parametrize("file", ["small.json", "deep/w.safetensors"])
def test_what_goes_wrong_once_is_made_good(hub: Hub, fault: Fault, at: str, file: str) -> None:
    hub.add("me/x", SMALL)
    hub.fail_next(at, fault)
    assert read(file) == SMALL[file]
    if at.startswith("^GET") and not fault.corrupt:  # a part has no checksum
        hub.fail_next(at, fault)
        assert fetch_range("me/x", file, 2, 6) == SMALL[file][2:6]
    assert sum(hub.slept) < 60


@pytest.mark.parametrize("file", ["small.json", "deep/w.safetensors"])
def test_bytes_that_are_corrupted_every_time_never_stay_in_the_cache(hub: Hub, file: str) -> None:
    hub.add("me/x", SMALL)
    hub.fail_next("^GET ", corrupt(), times=99)
    with pytest.raises(HubError, match="download"):
        fetch("me/x", file)
    assert cached(hub) == []
    hub.faults.clear()
    assert read(file) == SMALL[file]


def test_what_somebody_else_left_damaged_in_the_cache_is_fetched_anew(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/x", SMALL)
    path = fetch("me/x", "small.json")
    assert path is not None
    path.write_bytes(b'{"b": 1}')
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="cache"):
        fetch("me/x", "small.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert read("small.json") == SMALL["small.json"]


def test_a_cache_without_symlinks_is_verified_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    hub.add("me/x", SMALL)
    hub.fail_next("^GET ", corrupt())
    assert read("deep/w.safetensors") == SMALL["deep/w.safetensors"]
    assert not any(path.is_symlink() for path in (hub.home / "hub").rglob("*"))


# --- secrets ----------------------------------------------------------------------------------------------------


def test_no_error_and_no_log_holds_a_token(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub.add("me/x", SMALL)
    secret = "an-own-secret-of-a-company"
    for token in (hub.token, secret):
        for code in (400, 401, 403, 404, 429, 500):
            hub.faults.clear()
            echo = f"bad token {token}, Bearer {token}, see https://h/x?X-Amz-Signature=0123"
            hub.fail_next("me/x", status(code, retry_after=99, message=echo), times=99)
            with pytest.raises(HubError) as caught:
                fetch_range("me/x", "small.json", 0, 4, token=token)
            assert token not in str(caught.value)
            assert token not in repr(caught.value)
            assert "0123" not in str(caught.value)
            assert caught.value.__suppress_context__
    assert hub.token not in caplog.text
    assert secret not in caplog.text


def test_what_looks_like_a_token_is_told_from_the_library_s_name() -> None:
    assert redacted("hf_lora and hf_hub_download stay") == "hf_lora and hf_hub_download stay"
    assert redacted(f"a hf_{'Ab1' * 11}, b") == "a ***, b"
    assert redacted("to http://me:secret@mirror/x") == "to http://***@mirror/x"
    assert not holds_token(b"pip install hf_lora; hf_hub_download")
    assert holds_token(b"hf_" + b"Ab1" * 11)


# --- an adapter ---------------------------------------------------------------------------------------------------


def test_an_adapter_of_the_hub_loads_through_every_fault(hub: Hub, base: Path, tmp_path: Path) -> None:
    model = LoRAModel.from_model(GPT2LMHeadModel.from_pretrained(base), LoRAConfig(r=2))
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    wanted = model.eval()(IDS).logits
    hub.add("me/adapter", tmp_path / "adapter")
    for fault in ONCE.values():
        hub.fail_next("^(GET|HEAD) ", fault)
    loaded = LoRAModel.from_pretrained("me/adapter", base_model=GPT2LMHeadModel.from_pretrained(base))
    assert torch.equal(loaded.eval()(IDS).logits, wanted)
