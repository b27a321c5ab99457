"""One commit to a repo of the Hub: all files or none, made exactly once, and verified afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..errors import HubAccessError, HubError
from ..files.hub_calls import FAILURES, PATIENCE, WAITS, Request, as_hub_error, call, wait_for
from ..files.hub_files import digest

__all__ = ["commit"]


def commit(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    message: str,
    description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Put files into a repo, made where it is missing, in one commit, and return what the Hub says of it.

    files: path in the repo -> file. revision: the branch, made from main where it is missing. create_pr: propose the
    commit as a pull request instead. private: of a repo that is made. Where the files are there already, there is no
    commit, and the last one is returned.
    Raises HubError; also where private=True and the repo is public, and where the Hub has other bytes afterwards.
    """
    api, subject = HfApi(token=token), Request(repo_id, revision, token, "write to")
    repo_id = call(lambda: str(api.create_repo(subject.repo, private=private, exist_ok=True).repo_id), subject)
    subject = replace(subject, repo=repo_id)
    info = call(lambda: api.model_info(repo_id), subject)
    if private and info.private is False:
        raise HubError(
            f"{repo_id} exists and is public, so nothing was pushed to it as private=True asks; make it private at "
            f"https://huggingface.co/{repo_id}/settings, or choose another name."
        )
    _make_branch(api, subject, repo_id, create_pr)
    made = _Once(api, subject, repo_id, files, create_pr).commit(message, description)
    if wrong := _differing(api, subject, repo_id, files, made.oid):
        raise HubError(
            f"{', '.join(wrong)} on {repo_id} (commit {made.oid}) is not what was sent: missing, perhaps left out by a "
            ".gitignore of the repo, or of other bytes by its checksum. What was sent is unchanged here; push it again."
        )
    return made


class _Once:
    """A commit on its way.

    huggingface_hub sends a commit once. Where its answer is lost, it may have arrived or not, so that before sending
    it again this looks whether it is there; and it names the head it was made for, so that one which arrives late
    after all is refused by the Hub instead of being made twice.
    """

    def __init__(self, api: HfApi, subject: Request, repo_id: str, files: Mapping[str, Path], create_pr: bool) -> None:
        self.api, self.subject, self.repo_id, self.files, self.create_pr = api, subject, repo_id, files, create_pr

    def commit(self, message: str, description: str | None) -> CommitInfo:
        """Make the commit. Raises HubError where it is not there after four tries."""
        pulls = self._pulls() if self.create_pr else {}
        head, failed = self._head(), 0.0
        for delay in (*WAITS, None):
            try:
                return self.api.create_commit(
                    self.repo_id, [CommitOperationAdd(name, str(path)) for name, path in self.files.items()],
                    commit_message=message, commit_description=description, revision=self.subject.revision,
                    create_pr=self.create_pr, parent_commit=None if self.create_pr else head,
                )  # fmt: skip
            except FAILURES as error:
                failed = failed or time.monotonic()
                overtaken = isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)
                wait = delay if overtaken else wait_for(error, delay)
                if not overtaken and wait_for(error, 0.0) is None:
                    raise as_hub_error(error, self.subject) from None
                arrived = self._arrived(head, pulls, error)
                if arrived is not None:
                    return _info(self.api, self.repo_id, *arrived, message, description)
                if wait is None or time.monotonic() - failed + wait > PATIENCE:
                    raise as_hub_error(error, self.subject) from None
            time.sleep(wait)
            head = self._head()
        raise AssertionError("the last try returns or raises")

    def _arrived(self, head: str, pulls: Mapping[str, str], error: Exception) -> tuple[str, str | None] | None:
        """Return (commit, pull request) that hold the files since then; None where the commit did not arrive."""
        try:
            if self.create_pr:
                new = {ref: sha for ref, sha in self._pulls().items() if ref not in pulls}
            else:
                now = self._head()
                new = {"": now} if now != head else {}
            for ref, sha in new.items():
                if not _differing(self.api, self.subject, self.repo_id, self.files, sha):
                    return sha, ref or None
        except HubError:
            raise HubError(
                f"{as_hub_error(error, self.subject)} Whether the commit arrived all the same could not be found out; "
                f"see https://huggingface.co/{self.repo_id}/commits/main, or push again: it is not made twice."
            ) from None
        return None

    def _head(self) -> str:
        info = call(lambda: self.api.model_info(self.repo_id, revision=self.subject.revision), self.subject)
        return str(info.sha)

    def _pulls(self) -> dict[str, str]:
        refs = call(lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True), self.subject)
        return {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}


def _make_branch(api: HfApi, subject: Request, repo_id: str, create_pr: bool) -> None:
    branch = subject.revision
    if branch is None or branch == "main" or branch.startswith("refs/"):
        return
    try:
        call(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), subject)
    except HubAccessError:
        if not create_pr:  # to somebody else's repo: the branch is there, or the commit is refused
            raise


def _differing(api: HfApi, subject: Request, repo_id: str, files: Mapping[str, Path], sha: str) -> list[str]:
    """Return which files a commit holds not at all, or with other bytes."""
    infos = call(lambda: api.get_paths_info(repo_id, list(files), revision=sha), subject)
    found = {info.path: info for info in infos if isinstance(info, huggingface_hub.hf_api.RepoFile)}
    wrong = []
    for name, path in files.items():
        info = found.get(name)
        etag = "" if info is None else info.lfs.sha256 if info.lfs else info.blob_id
        if digest(path, etag) != etag:
            wrong.append(name)
    return wrong


def _info(
    api: HfApi, repo_id: str, sha: str, pull: str | None, message: str, description: str | None
) -> CommitInfo:  # fmt: skip
    url = f"{api.endpoint}/{repo_id}"
    return CommitInfo(
        commit_url=f"{url}/commit/{sha}", commit_message=message, commit_description=description or "", oid=sha,
        pr_url=f"{url}/discussions/{pull.removeprefix('refs/pr/')}" if pull else None,
    )  # fmt: skip
