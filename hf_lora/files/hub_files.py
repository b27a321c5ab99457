"""The Hub, for reading: files of a repo fetched and verified, parts of files, what files there are.

Each takes the Hub arguments of `from_pretrained`: revision, subfolder, token, cache_dir, force_download,
local_files_only. Each raises HubNotFoundError, HubAccessError or HubError with what to do about it.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import HubError
from .hub_calls import FAILURES, Request, call
from .names import CONFIG_NAME
from .privacy import is_repo_id

_PIECE = 1 << 20  # bytes read at a time


def fetch(repo_id: str, file: str, **kwargs: Any) -> Path | None:
    """Return where a file of a repo lies in the cache, downloaded if need be and verified by its checksum.

    None only where the repo has no such file, and for names that no repo can have. Where the Hub cannot be asked
    (offline, `local_files_only`, unreachable, no access any more), what the cache holds of the repo is what there is.
    """
    if not is_repo_id(repo_id):
        return None
    if _is_base_without(repo_id, file, kwargs):
        return None
    for again in (False, True):
        path = _download(repo_id, file, {**kwargs, "force_download": True} if again else kwargs)
        if path is None or _is_whole(path, repo_id, file, kwargs):
            return path
        if _offline(kwargs):
            raise HubError(f"{path} in the cache is corrupted, by its checksum; load it once with the network.")
        path.resolve().unlink()  # the content that the cache's link leads to
        path.unlink(missing_ok=True)
    revision = kwargs.get("revision")
    raise HubError(
        f"{file} of {repo_id}{f' at revision {revision}' if revision else ''} arrived twice with other bytes than the "
        "Hub has, by their checksum: the download is corrupted. It was deleted from the cache; try again, or look at "
        "the proxy in between."
    )


def fetch_range(repo_id: str, file: str, start: int, stop: int, **kwargs: Any) -> bytes:
    """Return the bytes [start, stop) of a file of a repo, fewer where it ends before; the rest is not downloaded.

    Offline they are read from the cache. Raises HubNotFoundError where there is no such file.
    """
    if _offline(kwargs):
        path = fetch(repo_id, file, **kwargs)
        with open(path or os.devnull, "rb") as local:
            local.seek(start)
            return local.read(stop - start)

    def ask() -> bytes:
        headers = build_hf_headers(token=kwargs.get("token"))
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        url = _url(repo_id, file, kwargs)
        answer = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        if answer.status_code == 416:  # the file ends before start
            return b""
        hf_raise_for_status(answer)
        return answer.content if answer.status_code == 206 else answer.content[start:stop]  # 200: no ranges there

    return b"" if stop <= start else call(ask, _subject(repo_id, kwargs))


def list_files(repo_id: str, **kwargs: Any) -> dict[str, int]:
    """Return the files of a repo (or of its subfolder) with their sizes in bytes; offline, those in the cache."""
    subfolder, revision = kwargs.get("subfolder") or "", kwargs.get("revision")

    def look() -> dict[str, int]:
        snapshot = huggingface_hub.snapshot_download(
            repo_id, revision=revision, cache_dir=kwargs.get("cache_dir"), local_files_only=True
        )
        top = Path(snapshot, subfolder)
        return {p.relative_to(top).as_posix(): p.stat().st_size for p in sorted(top.rglob("*")) if p.is_file()}

    def ask() -> dict[str, int]:
        api = huggingface_hub.HfApi(token=kwargs.get("token"))
        try:
            entries = list(api.list_repo_tree(repo_id, subfolder or None, recursive=True, revision=revision))
        except EntryNotFoundError:  # no such subfolder
            return {}
        files = {e.path: e.size for e in entries if isinstance(e, huggingface_hub.hf_api.RepoFile)}
        return {path.removeprefix(f"{subfolder}/"): size for path, size in files.items()}

    return call(look if _offline(kwargs) else ask, _subject(repo_id, kwargs))


def _download(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> Path | None:
    def ask() -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(repo_id, file, **kwargs))
        except RemoteEntryNotFoundError:
            return None
        except (LocalEntryNotFoundError, RuntimeError):
            # The Hub could not be asked, and the cache does not have it. After a failed connection huggingface_hub
            # 1.3 to 1.26 goes on with the client that it closed, which is a RuntimeError of httpx.
            if kwargs.get("force_download") or _cached(repo_id, file, kwargs) is not huggingface_hub._CACHED_NO_EXIST:
                raise
            return None

    return call(ask, _subject(repo_id, kwargs, f"read {file} of"))


def _is_whole(path: Path, repo_id: str, file: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a file has the checksum that the Hub announced, its ETag."""
    # That is the sha256 of what lies in LFS or Xet, and git's name, the sha1 of a blob, of other files. A cached file's
    # blob is named so; a cache without symlinks keeps none, and the Hub is asked.
    if path.is_symlink():
        etag = Path(os.readlink(path)).name
    elif _offline(kwargs):
        return True
    else:
        url = _url(repo_id, file, kwargs)
        ask = _subject(repo_id, kwargs)
        etag = call(lambda: huggingface_hub.get_hf_file_metadata(url, token=kwargs.get("token")), ask).etag or ""
    if len(etag) == 64:
        hasher = hashlib.sha256()
    elif len(etag) == 40:
        hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    else:  # no checksum
        return True
    with open(path, "rb") as content:
        while piece := content.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest() == etag


def _is_base_without(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the cache holds a base that has no such file, as far as can be found out at once."""
    # hf_hub_download would ask for half a minute whether the network has come back; a base that loads without the
    # network goes on doing so.
    is_cached = {name: isinstance(_cached(repo_id, name, kwargs), str) for name in ("config.json", CONFIG_NAME, file)}
    if not is_cached["config.json"] or is_cached[CONFIG_NAME] or kwargs.get("force_download"):
        return False
    if not _offline(kwargs):
        api = huggingface_hub.HfApi(token=kwargs.get("token"))
        with suppress(*FAILURES):
            return not api.file_exists(repo_id, _inside(file, kwargs), revision=kwargs.get("revision"))
    return not is_cached[file]


def _cached(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> Any:
    """Return a file's path in the cache, _CACHED_NO_EXIST where the repo is known not to have it, or None."""
    return huggingface_hub.try_to_load_from_cache(
        repo_id, _inside(file, kwargs), cache_dir=kwargs.get("cache_dir"), revision=kwargs.get("revision")
    )


def _offline(kwargs: Mapping[str, Any]) -> bool:
    return bool(constants.HF_HUB_OFFLINE or kwargs.get("local_files_only"))


def _subject(repo_id: str, kwargs: Mapping[str, Any], doing: str = "read") -> Request:
    return Request(repo_id, kwargs.get("revision"), kwargs.get("token"), doing)


def _inside(file: str, kwargs: Mapping[str, Any]) -> str:
    subfolder = kwargs.get("subfolder")
    return f"{subfolder}/{file}" if subfolder else file


def _url(repo_id: str, file: str, kwargs: Mapping[str, Any]) -> str:
    return huggingface_hub.hf_hub_url(repo_id, _inside(file, kwargs), revision=kwargs.get("revision"))
