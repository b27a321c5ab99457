"""What the test Hub answers: the part of the Hub's protocol that uploads and downloads of models use."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

__all__ = ["Answers", "httpx"]

# httpx where huggingface_hub is of version 1, httpx2 in version 2.
httpx: Any = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])

LFS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".model")
_SUB = "revision|tree|preupload|commit|branch"
_API = re.compile(rf"/api/models/((?:[^/]+/)?(?!(?:{_SUB})(?:/|$))[^/]+)(?:/({_SUB})(?:/(.*))?)?$")
_RESOLVE = re.compile(r"/((?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)$")
_LFS_BATCH = re.compile(r"/(.+)\.git/info/lfs/objects/batch$")


class _Refusal(Exception):
    """An answer other than 2xx. code: X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        self.status, self.message, self.code, self.body = status, message, code, body


def git_sha(content: bytes) -> str:
    """Return the name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    """Return what the Hub calls a file's content: its sha256 where it is in LFS, git's name otherwise."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS) else git_sha(content)


class Answers:
    """Answers one request at a time, out of the Hub's state."""

    endpoint: str
    cdn: str
    repos: dict[str, Any]
    blobs: dict[str, bytes]
    tokens: dict[str, tuple[str, bool]]
    granted: set[str]
    ranges: bool
    new_repo: Any

    def answer(self, request: Any) -> tuple[int, bytes, dict[str, str]]:
        """Carry a request out and return the answer's status, body and headers."""
        self.headers, self.query = request.headers, {k: v[0] for k, v in parse_qs(request.url.query.decode()).items()}
        try:
            answer = self._route(request.url.raw_path.decode().partition("?")[0], request.content)
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            headers |= refusal.body.pop("headers", {})
            return refusal.status, json.dumps({"error": refusal.message, **refusal.body}).encode(), headers
        return answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode(), {})

    def _route(self, path: str, body: bytes) -> Any:
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if match := _LFS_BATCH.match(path):
            return self._batch(unquote(match[1]), json.loads(body))
        if path.startswith("/lfs/"):
            return self._store(path[5:], body)
        if path.startswith("/cdn/"):
            return self._bytes(self.blobs[path[5:]], {"ETag": f'"{path[5:]}"'})
        if match := _API.match(path):
            name, what, rest = unquote(match[1]), match[2] or "revision", match[3] or "main"
            revision, _, inner = rest.partition("/")
            return getattr(self, f"_{what}")(name, unquote(revision), unquote(inner), body)
        if match := _RESOLVE.match(path):
            return self._resolve(unquote(match[1]), unquote(match[2]), unquote(match[3]))
        raise _Refusal(404, f"no such path: {path}")

    # --- who may do what ----------------------------------------------------------------------------------------

    def _user(self) -> tuple[str, bool]:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.tokens:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens.get(given, ("", False))

    def _repo(self, name: str, *, write: bool = False, files: bool = False, pr: bool = False) -> Any:
        user, may_write = self._user()
        repo, owner = self.repos.get(name), name.partition("/")[0]
        if repo is None or (repo.private and user != owner):
            raise _Refusal(404 if user else 401, "Repository not found" if user else "Invalid username or password.", "RepoNotFound")  # fmt: skip
        if files and repo.gated and user != owner and user not in self.granted:
            told = "you are not in the authorized list" if user else "you must be authenticated to access it"
            raise _Refusal(403 if user else 401, f"Access to model {name} is restricted: {told}.", "GatedRepo")
        if write and not (may_write and (pr or user == owner)):
            raise _Refusal(403 if user else 401, f"You don't have the rights to write to {name} with this token.")
        return repo

    def _at(self, repo: Any, revision: str) -> Any:
        commit = repo.at(revision)
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _whoami(self) -> Any:
        user, _ = self._user()
        if not user:
            raise _Refusal(401, "Invalid username or password.")
        return {"name": user}

    # --- writing ------------------------------------------------------------------------------------------------

    def _create(self, wanted: dict[str, Any]) -> Any:
        user, may_write = self._user()
        name = f"{wanted.get('organization') or user}/{wanted['name']}"
        if not user or not may_write or name.partition("/")[0] != user:
            raise _Refusal(403 if user else 401, f"You don't have the rights to create a model under {name}.")
        url = {"url": f"{self.endpoint}/{name}", "name": name}
        if name in self.repos:
            raise _Refusal(409, "You already created this model repo", **url)
        repo = self.repos[name] = self.new_repo(private=wanted.get("private") is True or wanted.get("visibility") == "private")  # fmt: skip
        repo.commit("main", None, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return url

    def _validate(self, content: str) -> Any:
        head = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            data = yaml.safe_load(head[1]) if head else {}
            validate_repo_id(data.get("base_model") or "none")
        except (yaml.YAMLError, HFValidationError) as error:
            raise _Refusal(400, "Invalid metadata", errors=[{"message": str(error)}], warnings=[]) from None
        return {"errors": [], "warnings": []}

    def _branch(self, name: str, branch: str, _: str, body: bytes) -> Any:
        repo = self._repo(name, write=True)
        if branch in repo.refs:
            raise _Refusal(409, f"Reference already exists: {branch}")
        repo.refs[branch] = self._at(repo, json.loads(body).get("startingPoint") or "main").sha
        return {}

    def _preupload(self, name: str, revision: str, _: str, body: bytes) -> Any:
        commit = self._at(self._repo(name, write=True, pr="create_pr" in self.query), revision)
        files = []
        for path in (wanted["path"] for wanted in json.loads(body)["files"]):
            known = {"oid": etag(path, commit.files[path])} if path in commit.files else {}
            mode = "lfs" if path.endswith(LFS) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"commitOid": commit.sha, "files": files}

    def _batch(self, name: str, wanted: dict[str, Any]) -> Any:
        self._repo(name, write=True, pr=True)
        objects = []
        for each in wanted["objects"]:
            actions = {"upload": {"href": f"{self.endpoint}/lfs/{each['oid']}?X-Amz-Signature=once"}}
            objects.append({**each} if each["oid"] in self.blobs else {**each, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "XAmzContentSHA256Mismatch")
        self.blobs[oid] = body
        return 200, b"", {"ETag": f'"{oid}"'}

    def _commit(self, name: str, revision: str, _: str, body: bytes) -> Any:
        pr = "create_pr" in self.query
        repo = self._repo(name, write=True, pr=pr)
        base = self._at(repo, revision)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        values = [operation["value"] for operation in operations]
        files = {v["path"]: base64.b64decode(v["content"]) if "content" in v else self.blobs[v["oid"]] for v in values}
        number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
        ref = f"refs/pr/{number}" if pr else revision
        sha = repo.commit(ref, base.sha, files, header["value"]["summary"], header["value"].get("description", ""))
        url = f"{self.endpoint}/{name}"
        answer = {"success": True, "commitUrl": f"{url}/commit/{sha}", "commitOid": sha}
        return {**answer, "pullRequestUrl": f"{url}/discussions/{number}"} if pr else answer

    # --- reading ------------------------------------------------------------------------------------------------

    def _revision(self, name: str, revision: str, _: str, body: bytes) -> Any:
        repo = self._repo(name)
        commit = self._at(repo, revision)
        files = [{"rfilename": file} for file in commit.files]
        return {"id": name, "sha": commit.sha, "private": repo.private, "tags": [], "siblings": files}

    def _tree(self, name: str, revision: str, inner: str, body: bytes) -> Any:
        repo = self._repo(name)
        files = self._at(repo, revision).files
        under = f"{inner}/" if inner else ""
        found = {f: c for f, c in files.items() if f.startswith(under)}
        if inner and not found:
            raise _Refusal(404, f"{inner} does not exist on {revision}", "EntryNotFound")
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        folders = sorted({f[: f.index("/", len(under))] for f in found if "/" in f[len(under) :]})
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in folders]
        return entries + [_entry(f, c) for f, c in found.items() if deep or "/" not in f[len(under) :]]

    def _resolve(self, name: str, revision: str, path: str) -> Any:
        commit = self._at(self._repo(name, files=True), revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise _Refusal(404, "Entry not found", "EntryNotFound", headers=headers)
        content = commit.files[path]
        tag = etag(path, content)
        if not path.endswith(LFS):
            return self._bytes(content, {**headers, "ETag": f'"{tag}"'})
        self.blobs[tag] = content
        linked = {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        return 302, b"", {**headers, **linked, "Location": f"{self.cdn}/cdn/{tag}"}

    def _bytes(self, content: bytes, headers: dict[str, str]) -> Any:
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not self.ranges:
            return 200, content, headers
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content) - 1) + 1, len(content))
        if start >= len(content):
            return 416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"}
        return 206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    lfs = {"oid": etag(path, content), "size": len(content), "pointerSize": 134}
    told = {"type": "file", "oid": git_sha(content), "size": len(content), "path": path}
    return {**told, "lfs": lfs} if path.endswith(LFS) else told
