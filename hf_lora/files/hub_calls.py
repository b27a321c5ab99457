"""One call of huggingface_hub, its errors as ours: what happened, what to do, and no token."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import HubAccessError, HubError, HubNotFoundError
from .privacy import redacted

__all__ = ["FAILURES", "Request", "as_hub_error", "call"]

# What huggingface_hub lets through from the connection: httpx's errors in version 1, httpx2's in version 2.
_CONNECTION: type[Exception] = HfHubHTTPError.__bases__[0]
FAILURES: tuple[type[Exception], ...] = (_CONNECTION, OSError, ValueError, RuntimeError)

_TRANSIENT = (408, 500, 502, 503, 504)
_WAIT = 1.0  # seconds before the second try

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What a call is about, for its errors: what it does ("read", "write"), where, as whom."""

    repo: str
    revision: str | None = None
    token: str | bool | None = None
    doing: str = "read"

    @property
    def has_token(self) -> bool:
        """Whether a token is sent."""
        return self.token is not False and (isinstance(self.token, str) or get_token() is not None)


def call(action: Callable[[], T], subject: Request, again: bool = True) -> T:
    """Return what an action returns, tried once more (`again`) where the Hub or the connection failed for the moment.

    huggingface_hub itself tries longer where much would be lost. Raises HubError and its kinds; what huggingface_hub
    raises for a missing file (EntryNotFoundError) is one of them, so an action that may meet it has to catch it.
    """
    try:
        return action()
    except HubError:
        raise
    except FAILURES as error:
        if not again or not _may_pass(error):
            raise as_hub_error(error, subject) from None
    time.sleep(_WAIT)
    return call(action, subject, again=False)


def as_hub_error(error: BaseException, subject: Request) -> HubError:
    """Return the HubError that says what happened and what to do about it."""
    error = _root(error)
    repo = subject.repo
    login = "log in with `hf auth login`, or pass token="
    if isinstance(error, GatedRepoError):
        then = "wait for the approval where its owner gives one" if subject.has_token else "log in"
        return HubAccessError(
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo} with your account, then {then} "
            "(`hf auth login`, or token=)."
        )
    if isinstance(error, DisabledRepoError):
        return HubAccessError(f"the Hub has disabled access to {repo}.")
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError(
            f"{repo} has no revision {subject.revision or 'main'!r}; see https://huggingface.co/{repo} under 'Files' "
            "for its branches and commits, and pass revision=."
        )
    if isinstance(error, RepositoryNotFoundError):
        why = "the token in use may not see it" if subject.has_token else f"you are not logged in ({login})"
        return HubNotFoundError(f"{repo} does not exist on the Hub, or it is private and {why}; check the name.")
    if isinstance(error, LocalTokenNotFoundError):
        return HubAccessError(f"a token is needed to {subject.doing} {repo}, and there is none: {login}.")
    if isinstance(error, HFValidationError):
        return HubError(f"{repo!r} is not the id of a Hub repo, which is 'name' or 'owner/name'.")
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "local_files_only=True"
        cache = ", and the cache does not have it" if subject.doing.startswith("read") else ""
        return HubError(f"cannot {subject.doing} {repo}: the Hub is not asked ({why}){cache}.")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return _of_status(error, subject)
    told = redacted(str(error), subject.token) or type(error).__name__
    if _is_of_connection(error):
        told = f"the connection to {redacted(constants.ENDPOINT)} failed ({told}). Check the network and try again."
    return HubError(f"cannot {subject.doing} {repo}: {told}")


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, LocalEntryNotFoundError):  # given up by upstream, after several tries
        return False
    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _TRANSIENT
    return _is_of_connection(error) or "Consistency check failed" in str(error)


def _root(error: BaseException) -> BaseException:
    """Return what really happened, below the general errors that huggingface_hub raises from it."""
    while isinstance(error.__cause__, FAILURES) and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _is_of_connection(error: BaseException) -> bool:
    offline = isinstance(error, OfflineModeIsEnabled)
    return isinstance(error, (_CONNECTION, ConnectionError, TimeoutError)) and not offline


def _of_status(error: HfHubHTTPError, subject: Request) -> HubError:
    status = error.response.status_code
    told = redacted(error.server_message or str(error), subject.token)
    doing = f"cannot {subject.doing} {subject.repo}"
    asked = error.response.headers.get("Retry-After", "").strip()
    later = f"in {asked} seconds" if asked.isdigit() else "later"
    if status == 401:
        return HubAccessError(f"{doing}: the Hub does not know the token in use ({told}); run `hf auth login` anew.")
    if status == 403:
        return HubAccessError(
            f"{doing}: the token in use may not do this ({told}). Use one with that right "
            "(https://huggingface.co/settings/tokens), or a repo of your own."
        )
    if status == 404:
        return HubNotFoundError(f"{doing}: {told}")
    if status == 429:
        hint = "" if subject.has_token else ", or log in (`hf auth login`), which raises the limit"
        return HubError(f"{doing}: too many requests for the Hub's rate limit; try again {later}{hint}.")
    if status >= 500 or status == 408:
        return HubError(f"{doing}: the Hub answers with status {status} ({told}); try again {later}.")
    return HubError(f"{doing}: the Hub refused with status {status}: {told}")
