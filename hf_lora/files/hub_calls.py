"""One call of huggingface_hub: tried again where that can help, its errors as ours, and no token in any of them."""

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

__all__ = [
    "FAILURES",
    "WAITS",
    "Request",
    "as_hub_error",
    "call",
    "cannot_connect",
    "wait_for",
]

# What huggingface_hub lets through from the connection: httpx's errors in version 1, httpx2's in version 2.
_CONNECTION: type[Exception] = HfHubHTTPError.__bases__[0]
FAILURES: tuple[type[Exception], ...] = (_CONNECTION, OSError, ValueError, RuntimeError)

_TRANSIENT = (408, 429, 500, 502, 503, 504)
WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth try, where the Hub does not say
PATIENCE = 20.0  # seconds after the first failure in which a further try may start; upstream tries within each, too

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What a call is about, for its errors: what it does ("read", "write"), where, as whom."""

    repo: str
    revision: str | None = None
    token: str | bool | None = None
    doing: str = "read"


def call(action: Callable[[], T], subject: Request) -> T:
    """Return what an action returns, tried up to four times where the Hub or the connection fails for the moment.

    `Retry-After` is kept to; where it asks for more than 20 seconds the call fails at once and says so.
    Raises HubError and its kinds; what huggingface_hub raises for a missing file (EntryNotFoundError) is one of them,
    so an action that may meet it has to catch it.
    """
    failed = 0.0
    for delay in (*WAITS, None):
        try:
            return action()
        except FAILURES as error:
            failed = failed or time.monotonic()
            wait = wait_for(error, delay)
            if wait is None or time.monotonic() - failed + wait > PATIENCE:
                raise as_hub_error(error, subject) from None
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def wait_for(error: BaseException, otherwise: float | None) -> float | None:
    """Return the seconds to wait before another try: what the Hub asks for, or else `otherwise`.

    None where another try cannot help, where the Hub asks for too long a wait, or where `otherwise` is None.
    """
    given_up = isinstance(error, LocalEntryNotFoundError)  # by upstream, after six tries
    error = _root(error)
    if otherwise is None or given_up or isinstance(error, OfflineModeIsEnabled):
        return None
    if isinstance(error, HfHubHTTPError):
        if error.response is None or error.response.status_code not in _TRANSIENT:
            return None
        asked = _retry_after(error)
        return otherwise if asked is None else float(asked) if asked <= PATIENCE else None
    cut_short = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return otherwise if cut_short or _is_of_connection(error) else None


def cannot_connect(error: BaseException) -> bool:
    """Whether no connection came about at all, as without a network."""
    return type(_root(error)).__name__ in ("ConnectError", "ConnectTimeout")


def as_hub_error(error: BaseException, subject: Request) -> HubError:
    """Return the HubError that says what happened and what to do about it."""
    error = _root(error)
    repo = subject.repo
    login = "log in with `hf auth login`, or pass token="
    if isinstance(error, GatedRepoError):
        then = "log in" if not _has_token(subject) else "wait for the approval where its owner gives one"
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
        why = "the token in use may not see it" if _has_token(subject) else f"you are not logged in ({login})"
        return HubNotFoundError(f"{repo} does not exist on the Hub, or it is private and {why}; check the name.")
    if isinstance(error, LocalTokenNotFoundError):
        return HubAccessError(f"a token is needed to {subject.doing} {repo}, and there is none: {login}.")
    if isinstance(error, HFValidationError):
        return HubError(f"{repo!r} is not the id of a Hub repo, which is 'name' or 'owner/name'.")
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"cannot {subject.doing} {repo}: HF_HUB_OFFLINE is set, so the Hub is not asked.")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return _of_status(error, subject)
    if _is_of_connection(error):
        told, endpoint = redacted(str(error), subject.token) or type(error).__name__, redacted(constants.ENDPOINT)
        return HubError(
            f"cannot {subject.doing} {repo}: the connection to {endpoint} failed ({told}). Check the network "
            "and try again."
        )
    return HubError(f"cannot {subject.doing} {repo}: {redacted(str(error), subject.token)}")


def _of_status(error: HfHubHTTPError, subject: Request) -> HubError:
    status = error.response.status_code
    told = redacted(error.server_message or str(error), subject.token)
    doing = f"cannot {subject.doing} {subject.repo}"
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
        hint = "" if _has_token(subject) else ", or log in (`hf auth login`), which raises the limit"
        return HubError(f"{doing}: too many requests for the Hub's rate limit; try again {_later(error)}{hint}.")
    if status >= 500 or status == 408:
        return HubError(f"{doing}: the Hub answers with status {status} ({told}); try again {_later(error)}.")
    return HubError(f"{doing}: the Hub refused with status {status}: {told}")


def _is_of_connection(error: BaseException) -> bool:
    # huggingface_hub 1.3 closes its client after a failed connection, and then tries again with it
    closed = isinstance(error, RuntimeError) and "client has been closed" in str(error)
    return closed or isinstance(error, (_CONNECTION, ConnectionError, TimeoutError))


def _root(error: BaseException) -> BaseException:
    """Return what really happened, below the general errors that huggingface_hub raises from it."""
    while isinstance(error.__cause__, FAILURES) and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _has_token(subject: Request) -> bool:
    return subject.token is not False and (isinstance(subject.token, str) or get_token() is not None)


def _later(error: HfHubHTTPError) -> str:
    asked = _retry_after(error)
    return "later" if asked is None else f"in {asked} seconds"


def _retry_after(error: HfHubHTTPError) -> int | None:
    asked = error.response.headers.get("Retry-After", "").strip()
    return int(asked) if asked.isdigit() else None
