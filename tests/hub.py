"""A small Hub on loopback, which the real huggingface_hub client talks to.

    from .hub import Hub, hub  # the fixture: a Hub that this process is logged in to as "me"

    def test_something(hub: Hub) -> None:
        hub.add("me/base", {"config.json": b"{}"})           # a repo with one commit
        model.push_to_hub("me/adapter")
        assert set(hub.files("me/adapter")) == {...}         # exactly these files
        hub.fail_next(r"^POST .*/commit/", status(503, retry_after=2))

huggingface_hub reads HF_ENDPOINT and the cache's place when it is imported, so the fixture changes the constants that
it has read; a process started by the test gets them by `env=hub.environ()`. Xet is switched off both ways: its
content-addressed store is a protocol of its own, and without it every client falls back to LFS. `time.sleep` only
notes in `hub.slept` how long a client wanted to wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from .hub_protocol import Handler

__all__ = ["Fault", "Hub", "Request", "corrupt", "half", "hub", "reset", "status"]

# Made-up tokens in the form of real ones, so that tests see whether one leaks.
TOKENS = {
    "hf_OwnerOwnerOwnerOwnerOwnerOwnerOwner": ("me", True),
    "hf_ReaderReaderReaderReaderReaderRead": ("me", False),
    "hf_StrangerStrangerStrangerStrangerStr": ("stranger", True),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with an answer. done: the request is carried out first, only its answer is lost."""

    code: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    message: str = ""
    reset: bool = False
    half: bool = False
    corrupt: bool = False
    done: bool = False


def status(code: int, *, retry_after: int | None = None, error_code: str = "", message: str = "", done: bool = False) -> Fault:  # fmt: skip
    """Answer with an HTTP status; error_code is what the Hub sends as X-Error-Code."""
    headers = [("Retry-After", str(retry_after))] if retry_after is not None else []
    headers += [("X-Error-Code", error_code)] if error_code else []
    return Fault(code, tuple(headers), message or f"status {code}, as the test asked", done=done)


def reset(*, done: bool = False) -> Fault:
    """Reset the TCP connection instead of answering."""
    return Fault(reset=True, done=done)


def half() -> Fault:
    """Announce the whole body, send half of it and close."""
    return Fault(half=True)


def corrupt() -> Fault:
    """Send a body of the right length with other bytes."""
    return Fault(corrupt=True)


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


class Hub:
    """The server's state, and what tests ask of it.

    repos: by id. requests: every one so far. blobs: what was uploaded by LFS, by sha256. granted: who may read gated
    repos. tokens: token -> (user, may write). token, reader and stranger are the tokens of the repos' owner, of the
    owner for reading only, and of somebody else. ranges: whether it knows the Range header.
    """

    token, reader, stranger = TOKENS

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.granted: set[str] = set()
        self.ranges = True
        self.tokens = dict(TOKENS)
        self.slept: list[float] = []
        self.lock = threading.RLock()
        self.home = Path()
        self.connections: set[socket.socket] = set()
        self._faults: list[tuple[re.Pattern[str], Fault]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.cdn = f"http://localhost:{self._server.server_address[1]}"  # another host: where LFS files really lie
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering: from now on the Hub is unreachable, also for a client that kept its connection."""
        self._server.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

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
        self._faults += [(re.compile(pattern), fault)] * times

    def next_fault(self, line: str) -> Fault:
        """Return what goes wrong with this request, and forget it."""
        with self.lock:
            for index, (pattern, fault) in enumerate(self._faults):
                if pattern.search(line):
                    del self._faults[index]
                    return fault
        return Fault()

    def environ(self) -> dict[str, str]:
        """Return the environment of a process that is to use this Hub and this test's cache."""
        return {
            **os.environ, "HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token, "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.home / "hub"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of its own for this process, an empty cache, and a login as "me"; nothing really sleeps."""
    server = Hub()
    server.home = tmp_path_factory.mktemp("hf_home")
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
    close_session()
    try:
        yield server
    finally:
        close_session()
        if server._thread.is_alive():
            server.close()
