"""A small Hub in memory, which the real huggingface_hub client talks to by a transport of its own.

    def test_something(hub: Hub) -> None:  # the fixture: a Hub that this process is logged in to as "me"
        hub.add("me/base", {"config.json": b"{}"})           # a repo with one commit
        model.push_to_hub("me/adapter")
        assert set(hub.files("me/adapter")) == {...}         # exactly these files
        hub.fail_next(r"^POST .*/commit/", status(503, retry_after=2))

A process started by the test reaches it on loopback, with `env=hub.environ()`. Xet is switched off both ways: without
it every client falls back to LFS. `time.sleep` only notes in `hub.slept` how long a client wanted to wait.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

from .hub_protocol import Answers, httpx

__all__ = ["Fault", "Hub", "corrupt", "half", "hub", "reset", "status"]

# Made-up tokens in the form of real ones, so that tests see whether one leaks: whose each is, and whether it may write.
TOKENS = {
    "hf_OwnerOwnerOwnerOwnerOwnerOwnerOwner": ("me", True),
    "hf_ReaderReaderReaderReaderReaderRead": ("me", False),
    "hf_StrangerStrangerStrangerStrangerStr": ("stranger", True),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with an answer. done: the request is carried out first, only its answer is lost."""

    code: int = 0
    retry_after: int | None = None
    message: str = "as the test asked"
    reset: bool = False
    half: bool = False
    corrupt: bool = False
    done: bool = False


# An HTTP status, after which the client is told when to try again; a connection that is reset instead of an answer; one
# that closes after half of the announced body; and a body of the right length with other bytes.
status = Fault
reset = partial(Fault, reset=True)
half = partial(Fault, half=True)
corrupt = partial(Fault, corrupt=True)


@dataclass(frozen=True)
class Request:
    """What a client asked: `line` is the method and the path with its query; `body` as it was sent."""

    line: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Commit:
    """A state of a repo: its files, how it came about."""

    sha: str
    files: Mapping[str, bytes]
    title: str
    description: str = ""
    parent: str | None = None


@dataclass
class Repo:
    """A repo: `refs` are branches ("main") and pull requests ("refs/pr/1") by name."""

    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a pull request or a sha stands for."""
        return self.commits.get(self.refs.get(revision, revision))

    def commit(self, ref: str, base: str | None, files: Mapping[str, bytes], title: str, description: str = "") -> str:
        """Put files on top of a commit's, let `ref` point there, and return the new sha."""
        parent = self.commits.get(base or "")
        sha = hashlib.sha1(f"{len(self.commits)} {ref} {title}".encode()).hexdigest()
        whole = {**(parent.files if parent else {}), **files}
        self.commits[sha] = Commit(sha, whole, title, description, base)
        self.refs[ref] = sha
        return sha


class Hub(Answers):
    """The Hub's state, and what tests ask of it.

    repos: by id. requests: every one so far. blobs: what was uploaded by LFS, by sha256. granted: who may read gated
    repos. tokens: token -> (user, may write). token, reader and stranger are the tokens of the repos' owner, of the
    owner for reading only, and of somebody else. ranges: whether it knows the Range header.
    """

    token, reader, stranger = TOKENS
    endpoint = "http://hub.test"
    cdn = "http://cdn.test"  # another host: where LFS files really lie
    new_repo = Repo

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.granted: set[str] = set()
        self.ranges = self.reachable = True
        self.tokens = dict(TOKENS)
        self.slept: list[float] = []
        self.lock = threading.RLock()
        self.faults: list[tuple[re.Pattern[str], Fault]] = []
        self._server: ThreadingHTTPServer | None = None

    def client(self) -> Any:
        """Return an HTTP client as huggingface_hub makes it, but for where it leads."""
        hooks = {"request": [hf_request_event_hook]}
        return httpx.Client(transport=httpx.MockTransport(self.handle), event_hooks=hooks, follow_redirects=True)

    def handle(self, request: Any) -> Any:
        """Answer any request: note it, do it, and let go wrong what the test asked for."""
        if not self.reachable:
            raise httpx.ConnectError("nobody listens", request=request)
        line = f"{request.method} {request.url.raw_path.decode()}"
        with self.lock:
            self.requests.append(Request(line, request.headers, request.content))
            fault = self.next_fault(line)
            if fault.done or not (fault.reset or fault.code):
                code, content, headers = self.answer(request)
        if fault.reset:
            raise httpx.ReadError("[Errno 104] Connection reset by peer", request=request)
        if fault.code:
            later = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return httpx.Response(fault.code, json={"error": fault.message}, headers=later)
        if fault.corrupt:
            content = bytes(b ^ 0x55 for b in content)
        sent: Any = b"" if request.method == "HEAD" else _cut(content) if fault.half else content
        return httpx.Response(code, content=sent, headers={"Content-Length": str(len(content)), **headers})

    def close(self) -> None:
        """From now on the Hub is unreachable."""
        self.reachable = False
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def add(
        self, name: str, files: Mapping[str, bytes] | Path, *, revision: str = "main",
        private: bool = False, gated: bool = False,
    ) -> str:  # fmt: skip
        """Put files (or all of a folder's) on top of a repo's branch, made where it is missing; return the sha."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        with self.lock:
            repo = self.repos.setdefault(name, Repo())
            repo.private, repo.gated = private, gated
            base = repo.refs.get(revision) or repo.refs.get("main")
            return repo.commit(revision, base, files, "Added by the test")

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return a repo's files, as they are on the Hub."""
        commit = self.repos[name].at(revision)
        assert commit is not None, f"{name} has no {revision}: {list(self.repos[name].refs)}"
        return dict(commit.files)

    def log(self, name: str, revision: str = "main") -> list[Commit]:
        """Return a branch's commits, newest first."""
        commit, found = self.repos[name].at(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.repos[name].commits.get(commit.parent or "")
        return found

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests whose line matches, oldest first."""
        return [r for r in self.requests if re.search(pattern, r.line)]

    def fail_next(self, pattern: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests whose line ("GET /path?query") matches go wrong."""
        self.faults += [(re.compile(pattern), fault)] * times

    def next_fault(self, line: str) -> Fault:
        """Return what goes wrong with this request, and forget it."""
        for index, (pattern, fault) in enumerate(self.faults):
            if pattern.search(line):
                del self.faults[index]
                return fault
        return Fault()

    def environ(self) -> dict[str, str]:
        """Return the environment of a process that is to use this Hub, on loopback, and this test's cache."""
        if self._server is None:
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), _on_loopback(self))
            threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
            self.cdn = f"http://localhost:{self._server.server_address[1]}"
        return {
            **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}", "HF_TOKEN": self.token,
            "HF_HOME": str(self.home), "HF_HUB_CACHE": str(self.home / "hub"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip


def _cut(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


def _on_loopback(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Return a handler of real requests that asks the Hub, for reading only."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = f"http://{self.headers['Host']}{self.path}"
            answer = hub.handle(httpx.Request(self.command, url, headers=dict(self.headers)))
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of its own for this process, an empty cache, and a login as "me"; nothing really sleeps."""
    server = Hub(tmp_path_factory.mktemp("hf_home"))
    here: dict[str, Any] = {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(server.home),
        "HF_HUB_CACHE": str(server.home / "hub"),
        "HF_TOKEN_PATH": str(server.home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in here.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # keeps the endpoint it was made with
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.chdir(server.home)  # where no folder has the name of one of its repos
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (server.slept.append(seconds), sleep(0))[1])
    huggingface_hub.set_client_factory(server.client)
    try:
        yield server
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
        server.close()
