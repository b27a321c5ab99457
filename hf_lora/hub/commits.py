"""One commit to a repo of the Hub: all files of a folder or none, and never a token among them."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from ..errors import HubError, ModelError
from ..files.hub_calls import Request, call
from ..files.privacy import holds_token, named_path


def commit(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    paths: Sequence[str] = (),
) -> CommitInfo:
    """Put a folder's files into a repo, made where it is missing, in one commit, and return what the Hub says of it.

    revision: the branch, made from main where it is missing. create_pr: propose the commit as a pull request instead.
    private: of a repo that is made. paths: of this machine, which no file may name. Where the files are there already,
    there is no commit, and the last one is returned.
    Raises ModelError where a file holds a path or a token, and HubError; also where private=True and the repo is
    public.
    """
    _refuse_secrets(folder, paths, token)
    api = HfApi(token=token)

    def upload() -> CommitInfo:
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        except KeyError:  # the client reads the url of a repo that is there, which this answer lacks
            raise HubError(
                f"cannot write to {repo_id}: the Hub answers that it conflicts with something, and not with what; look "
                f"at https://huggingface.co/{repo_id} and try again."
            ) from None
        if private and not api.model_info(repo).private:
            raise HubError(
                f"{repo} exists and is public, so nothing was pushed to it as private=True asks; make it private at "
                f"https://huggingface.co/{repo}/settings, or choose another name."
            )
        if not (create_pr or revision in (None, "main") or str(revision).startswith("refs/")):
            api.create_branch(repo, branch=str(revision), exist_ok=True)
        return api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, commit_description=description,
            revision=revision, create_pr=create_pr,
        )  # fmt: skip

    # Files that have arrived are not sent again; a pull request whose answer is lost would be opened twice.
    return call(upload, Request(repo_id, revision, token, "write to"), again=not create_pr)


def _refuse_secrets(folder: Path, paths: Sequence[str], token: str | bool | None) -> None:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = file.relative_to(folder).as_posix(), file.read_bytes()
        if path := named_path(content, paths):
            raise ModelError(f"{name} would publish the local path {path!r}; take it out of there first.")
        if holds_token(content, token):
            raise ModelError(f"{name} would publish what is, or looks like, a token; take it out first.")
