"""The Hub, for reading: files of a repo fetched and verified, parts of files, what files there are.

Each takes the Hub arguments of `from_pretrained`: revision, subfolder, token, cache_dir, force_download,
local_files_only. Each raises HubNotFoundError, HubAccessError or HubError with what to do about it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import HubError
from .hub_calls import FAILURES, Request, call, cannot_connect
from .names import CONFIG_NAME
from .privacy import is_repo_id

__all__ = ["digest", "fetch", "fetch_range", "file_size", "list_files"]

_PIECE = 1 << 20  # bytes read at a time


def fetch(repo_id: str, file: str, **kwargs: Any) -> Path | None:
    """Return where a file of a repo lies in the cache, downloaded if need be and verified by its checksum.

    None only where the repo has no such file, and for names that no repo can have. Where the Hub cannot be asked
    (offline, `local_files_only`, unreachable, no access any more), what the cache holds of the repo is what there is.
    """
    if not is_repo_id(repo_id):
        return None
    if _offline(kwargs):
        _refuse_forced(repo_id, kwargs)
        return _from_cache(repo_id, file, kwargs, HubError(
            f"{_where(repo_id, kwargs)} is not in the cache with {file}, and nothing may be downloaded: "
            f"{'local_files_only=True' if kwargs.get('local_files_only') else 'HF_HUB_OFFLINE is set'}."
        ))  # fmt: skip
    if _known_missing(repo_id, file, kwargs):
        return None
    try:
        if _is_cached_base(repo_id, kwargs) and not _has(repo_id, file, kwargs):
            return None
        return _download(repo_id, file, kwargs)
    except HubError as error:
        if kwargs.get("force_download") or isinstance(error, _CorruptedError):
            raise
        return _from_cache(repo_id, file, kwargs, error)


def fetch_range(repo_id: str, file: str, start: int, stop: int, **kwargs: Any) -> bytes:
    """Return the bytes [start, stop) of a file of a repo, fewer where it ends before; the rest is not downloaded.

    Offline they are read from the cache. Raises HubNotFoundError where there is no such file.
    """
    if _offline(kwargs):
        path = fetch(repo_id, file, **kwargs)
        if path is None:
            raise HubError(f"{_where(repo_id, kwargs)} is not in the cache with {file}, and nothing may be downloaded.")
        with open(path, "rb") as local:
            local.seek(start)
            return local.read(stop - start)

    def ask() -> bytes:
        content, url, headers = b"", _url(repo_id, file, kwargs), build_hf_headers(token=kwargs.get("token"))
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
            if answer.status_code == 416:  # the file ends before start
                return b""
            if answer.status_code >= 400:
                answer.read()
            hf_raise_for_status(answer)
            skip = 0 if answer.status_code == 206 else start  # 200: the server does not know ranges
            for piece in answer.iter_bytes():
                content += piece
                if len(content) >= skip + stop - start:
                    break
        return content[skip : skip + stop - start]

    return b"" if stop <= start else call(ask, _subject(repo_id, kwargs))


def file_size(repo_id: str, file: str, **kwargs: Any) -> int | None:
    """Return a file's size in bytes; None where the repo has no such file."""
    return list_files(repo_id, **kwargs).get(file)


def list_files(repo_id: str, **kwargs: Any) -> dict[str, int]:
    """Return the files of a repo (or of its subfolder) with their sizes in bytes; offline, those in the cache."""
    subfolder = kwargs.get("subfolder") or ""
    if _offline(kwargs):
        snapshot = _snapshot(repo_id, kwargs)
        if snapshot is None:
            raise HubError(f"{_where(repo_id, kwargs)} is not in the cache, and nothing may be downloaded.")
        top = snapshot / subfolder
        return {p.relative_to(top).as_posix(): p.stat().st_size for p in sorted(top.rglob("*")) if p.is_file()}

    def ask() -> dict[str, int]:
        entries = huggingface_hub.HfApi().list_repo_tree(
            repo_id, subfolder or None, recursive=True, revision=kwargs.get("revision"), token=kwargs.get("token")
        )
        try:
            return {e.path: e.size for e in entries if isinstance(e, huggingface_hub.hf_api.RepoFile)}
        except EntryNotFoundError:  # no such subfolder
            return {}

    under = f"{subfolder}/" if subfolder else ""
    return {path.removeprefix(under): size for path, size in call(ask, _subject(repo_id, kwargs)).items()}


def digest(path: Path, etag: str) -> str | None:
    """Return what a file's content is called in the form of this ETag; None where it is no checksum.

    The Hub's ETag is the sha256 of what lies in LFS or Xet, and git's name, the sha1 of a blob, of other files.
    """
    if len(etag) == 64:
        hasher = hashlib.sha256()
    elif len(etag) == 40:
        hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    else:
        return None
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


class _CorruptedError(HubError):
    """What was downloaded is, twice, not what the Hub has."""


def _download(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> Path | None:
    for again in (False, True):
        wanted = {**kwargs, "force_download": True} if again else kwargs
        path = call(_asking(repo_id, file, wanted), _subject(repo_id, kwargs))
        if path is None or _is_whole(path, repo_id, file, kwargs):
            return path
        _forget(path)
    raise _CorruptedError(
        f"{file} of {_where(repo_id, kwargs)} arrived twice with other bytes than the Hub has, by their checksum: the "
        "download is corrupted. It was deleted from the cache; try again, or look at the proxy in between."
    )


def _asking(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> Callable[[], Path | None]:
    def ask() -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(repo_id, file, **kwargs))
        except RemoteEntryNotFoundError:
            return None

    return ask


def _is_whole(path: Path, repo_id: str, file: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a file has the checksum that the Hub announced."""
    etag = _etag_in_cache(path)
    if etag is None:
        url = _url(repo_id, file, kwargs)
        asked = call(
            lambda: huggingface_hub.get_hf_file_metadata(url, token=kwargs.get("token")), _subject(repo_id, kwargs)
        )
        etag = asked.etag or ""
    return digest(path, etag) in (None, etag)


def _etag_in_cache(path: Path) -> str | None:
    """Return the name of a cached file's blob, which is its ETag; a cache without symlinks keeps none."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _forget(path: Path) -> None:
    """Take a file out of the cache, the content with the name."""
    if path.is_symlink():
        path.parent.joinpath(os.readlink(path)).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _from_cache(repo_id: str, file: str, kwargs: Mapping[str, Any], otherwise: HubError) -> Path | None:
    """Return a file as the cache has it, None where the repo is known not to have it, or raise `otherwise`.

    Of a base the file asked for is not there as far as anybody can tell: a base that loads without the network goes
    on doing so.
    """
    cached = huggingface_hub.try_to_load_from_cache(
        repo_id, _inside(file, kwargs), cache_dir=kwargs.get("cache_dir"), revision=kwargs.get("revision")
    )
    if isinstance(cached, str):
        etag = _etag_in_cache(Path(cached))
        if etag is not None and digest(Path(cached), etag) not in (None, etag):
            raise HubError(f"{cached} in the cache is corrupted, by its checksum; load it once with the network.")
        return Path(cached)
    if cached is None and not _is_cached_base(repo_id, kwargs):
        raise otherwise
    return None


def _is_cached_base(repo_id: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether the cache holds a repo's config.json and no adapter_config.json."""
    snapshot = _snapshot(repo_id, kwargs)
    if snapshot is None or kwargs.get("force_download"):
        return False
    return (snapshot / _inside("config.json", kwargs)).exists() and not (
        snapshot / _inside(CONFIG_NAME, kwargs)
    ).exists()


def _has(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a repo has a file, as far as can be found out: without a network, no.

    hf_hub_download would ask for half a minute whether the network has come back.
    """

    def ask() -> bool:
        try:
            huggingface_hub.get_hf_file_metadata(_url(repo_id, file, kwargs), token=kwargs.get("token"))
        except RemoteEntryNotFoundError:
            return False
        except FAILURES as error:
            if cannot_connect(error):
                return False
            raise
        return True

    return call(ask, _subject(repo_id, kwargs))


def _known_missing(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether the cache remembers that this commit, which nothing can change, has no such file."""
    revision = kwargs.get("revision") or ""
    if kwargs.get("force_download") or not re.fullmatch("[0-9a-f]{40}", revision):
        return False
    inside, cache = _inside(file, kwargs), kwargs.get("cache_dir")
    found = huggingface_hub.try_to_load_from_cache(repo_id, inside, cache_dir=cache, revision=revision)
    return found is huggingface_hub._CACHED_NO_EXIST


def _snapshot(repo_id: str, kwargs: Mapping[str, Any]) -> Path | None:
    """Return the folder in the cache that holds a repo's files at a revision."""
    repo = Path(kwargs.get("cache_dir") or constants.HF_HUB_CACHE).expanduser()
    repo /= repo_folder_name(repo_id=repo_id, repo_type="model")
    revision = kwargs.get("revision") or constants.DEFAULT_REVISION
    ref = repo / "refs" / revision
    path = repo / "snapshots" / (ref.read_text().strip() if ref.is_file() else revision)
    return path if path.is_dir() else None


def _offline(kwargs: Mapping[str, Any]) -> bool:
    return bool(constants.HF_HUB_OFFLINE or kwargs.get("local_files_only"))


def _refuse_forced(repo_id: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("force_download"):
        raise HubError(f"force_download=True needs the network, and nothing of {repo_id} may be downloaded.")


def _subject(repo_id: str, kwargs: Mapping[str, Any]) -> Request:
    return Request(repo_id, kwargs.get("revision"), kwargs.get("token"))


def _where(repo_id: str, kwargs: Mapping[str, Any]) -> str:
    revision = kwargs.get("revision")
    return f"{repo_id} at revision {revision}" if revision else repo_id


def _inside(file: str, kwargs: Mapping[str, Any]) -> str:
    subfolder = kwargs.get("subfolder")
    return f"{subfolder}/{file}" if subfolder else file


def _url(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> str:
    return huggingface_hub.hf_hub_url(repo_id, _inside(file, kwargs), revision=kwargs.get("revision"))
