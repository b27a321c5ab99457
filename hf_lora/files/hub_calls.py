"""One call of huggingface_hub, its errors as ours: what happened, what to do, and no token."""

import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import constants, errors
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status

from ..errors import HubAccessError, HubError, HubNotFoundError
from .privacy import redacted

# What huggingface_hub lets through from the connection: httpx's errors in version 1, httpx2's in version 2.
_CONNECTION: type[Exception] = HfHubHTTPError.__bases__[0]
FAILURES: tuple[type[Exception], ...] = (_CONNECTION, OSError, ValueError, RuntimeError)

_LOGIN = "log in with `hf auth login`, or pass token=."
_OFFLINE = "cannot {doing} {repo}: that takes the Hub, and {offline}; only what is in the cache can be read."
# What huggingface_hub raises, what we raise instead, and what is told: what happened and what to do.
_ERRORS: dict[type[Exception], tuple[type[HubError], str]] = {
    errors.GatedRepoError: (
        HubAccessError,
        "{repo} is gated: accept its terms at https://huggingface.co/{repo}, wait where its owner approves of each "
        f"reader, then {_LOGIN}",
    ),
    errors.DisabledRepoError: (HubAccessError, "the Hub has disabled access to {repo}."),
    errors.RevisionNotFoundError: (
        HubNotFoundError,
        "{repo} has no revision {revision!r}; see https://huggingface.co/{repo} under 'Files' for its branches and "
        "commits, and pass revision=.",
    ),
    errors.RepositoryNotFoundError: (
        HubNotFoundError,
        "{repo} does not exist on the Hub, or it is private and the token in use, if there is one, may not see it: "
        f"check the name, or {_LOGIN}",
    ),
    errors.LocalTokenNotFoundError: (HubAccessError, f"a token is needed to {{doing}} {{repo}}: {_LOGIN}"),
    errors.HFValidationError: (HubError, "{repo!r} is not the id of a Hub repo, which is 'name' or 'owner/name'."),
    OfflineModeIsEnabled: (HubError, _OFFLINE),
    LocalEntryNotFoundError: (HubError, _OFFLINE),
}
_STATUSES: dict[int, tuple[type[HubError], str]] = {
    401: (HubAccessError, "the Hub does not know the token in use ({told}); run `hf auth login` anew."),
    403: (
        HubAccessError,
        "the token in use may not do this ({told}). Use one with that right "
        "(https://huggingface.co/settings/tokens), or a repo of your own.",
    ),
    404: (HubNotFoundError, "{told}"),
    429: (HubError, f"too many requests for the Hub's rate limit; try again {{later}}. To raise it, {_LOGIN}"),
}
_TRANSIENT = (408, 500, 502, 503, 504)
_WAIT = 1.0  # seconds before the second try
_LONGEST = 20  # seconds that an answer may ask to be waited for
_IS_OURS: ContextVar[bool] = ContextVar("_IS_OURS", default=False)

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What a call is about, for its errors: what it does ("read", "write to"), where, as whom."""

    repo: str
    revision: str | None = None
    token: str | bool | None = None
    doing: str = "read"


def call(action: Callable[[], T], subject: Request, again: bool = True) -> T:
    """Return what an action returns, tried once more (`again`) where the Hub or the connection failed for the moment.

    huggingface_hub itself tries longer where much would be lost. Raises HubError and its kinds; what huggingface_hub
    raises for a missing file (EntryNotFoundError) is one of them, so an action that may meet it has to catch it.
    """
    hooks = getattr(get_session(), "event_hooks", {}).get("response", [])  # one client for everybody in this process
    if _refuse_to_wait not in hooks:
        hooks.append(_refuse_to_wait)
    token = _IS_OURS.set(True)
    try:
        return action()
    except HubError:
        raise
    except FAILURES as error:
        cause: Exception = error  # below the general errors that huggingface_hub raises from it
        while isinstance(cause.__cause__, FAILURES) and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        given_up = isinstance(error, LocalEntryNotFoundError)  # by upstream, after several tries
        if given_up or not again or not _may_pass(cause):
            raise _as_hub_error(cause, subject) from None
    finally:
        _IS_OURS.reset(token)
    time.sleep(_WAIT)
    return call(action, subject, again=False)


def _refuse_to_wait(response: Any) -> None:
    """Raise what an answer stands for that asks to be waited for longer than anybody would; only inside a `call`."""
    # huggingface_hub would sleep, five times over.
    if _IS_OURS.get() and response.status_code >= 400:
        asked = re.fullmatch(r"\s*(\d+)\s*", response.headers.get("Retry-After", ""))
        limit = re.search(r"\bt=(\d+)", response.headers.get("RateLimit", ""))
        if max(int(found[1]) if found else 0 for found in (asked, limit)) > _LONGEST:
            response.read()
            hf_raise_for_status(response)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _TRANSIENT
    return _is_of_connection(error) or "Consistency check failed" in str(error)


def _is_of_connection(error: Exception) -> bool:
    offline = isinstance(error, OfflineModeIsEnabled)
    return isinstance(error, (_CONNECTION, ConnectionError, TimeoutError)) and not offline


def _as_hub_error(error: Exception, subject: Request) -> HubError:
    fields: dict[str, Any] = {**vars(subject), "revision": subject.revision or "main"}
    fields["offline"] = f"{'HF_HUB_OFFLINE' if constants.HF_HUB_OFFLINE else 'local_files_only=True'} is set"
    for theirs, (ours, text) in _ERRORS.items():
        if isinstance(error, theirs):
            return ours(text.format(**fields))
    told = redacted(str(error), subject.token) or type(error).__name__
    ours, text = HubError, "{told}"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        told, status = redacted(error.server_message or str(error), subject.token), error.response.status_code
        asked = error.response.headers.get("Retry-After", "").strip()
        fields["later"] = f"in {asked} seconds" if asked.isdigit() else "later"
        default = f"the Hub answers with status {status} ({{told}})" + "; try again {later}." * (status in _TRANSIENT)
        ours, text = _STATUSES.get(status, (HubError, default))
    elif _is_of_connection(error):
        text = f"the connection to {redacted(constants.ENDPOINT)} failed ({{told}}). Check the network and try again."
    return ours(f"cannot {subject.doing} {subject.repo}: {text.format(**fields, told=told)}")
