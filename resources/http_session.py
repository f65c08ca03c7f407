"""HTTP sessions that wait, retry and give up as the archive wishes, and what their failures mean.

Put here what concerns every request. Keep out what is asked for.
"""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from panoramic.errors import ArchiveAccessError, ArchiveUnavailableError, ServiceError

RETRY_STATUS = (429, 500, 502, 503, 504)
LONGEST_WAIT_S = 300


class TokenAuth(AuthBase):
    """MAST's token as a header: requests drops it on a redirect to another host, which a cookie is not."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign one request."""
        request.headers["Authorization"] = f"token {self._token}"
        return request


class _PatientAdapter(HTTPAdapter):
    """An adapter with a time-out for requests that bring none (astroquery passes none)."""

    def __init__(self, timeout_s: float, **settings: Any) -> None:
        self._timeout_s = timeout_s
        super().__init__(**settings)

    def send(self, request: requests.PreparedRequest, *args: Any, **settings: Any) -> requests.Response:
        """Send with the default time-out."""
        if settings.get("timeout") is None:
            settings["timeout"] = self._timeout_s
        return super().send(request, *args, **settings)


def prepare_session(
    session: requests.Session, timeout_s: float, token: str | None, retries: int, backoff_factor: float, parallel: int
) -> None:
    """Give a session time-out, retries with back-off (``Retry-After`` respected) and token.

    Parameters
    ----------
    backoff_factor : *seconds*; the k-th retry waits ``backoff_factor * 2^k`` and a random bit.
    parallel : connections that may be open at once.
    """
    retry = Retry(
        total=retries,
        backoff_factor=backoff_factor,
        backoff_jitter=backoff_factor,
        backoff_max=LONGEST_WAIT_S,
        retry_after_max=LONGEST_WAIT_S,
        status_forcelist=RETRY_STATUS,
        allowed_methods=None,  # a query is a POST, and harmless
        raise_on_status=False,  # the last answer says more than "too many retries"
    )
    adapter = _PatientAdapter(timeout_s, max_retries=retry, pool_maxsize=parallel)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    if token:
        session.auth = TokenAuth(token)


def service_error(error: Exception, what: str, has_token: bool) -> ServiceError:
    """The typed error of a failed request.

    Parameters
    ----------
    what : what was asked of whom, for the message.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        hint = "the token is wrong, expired or has no right to it" if has_token else "set a MAST token (MAST_API_TOKEN)"
        return ArchiveAccessError(f"{what}: refused with status {status}; {hint}")
    if status is not None:
        return ArchiveUnavailableError(f"{what}: status {status}; try again later")
    if isinstance(error, requests.JSONDecodeError | ValueError):
        return ArchiveUnavailableError(f"{what}: the answer is no JSON (a web page?); try again later")
    if isinstance(error, requests.Timeout | TimeoutError) or "timed out" in str(error).lower():
        return ArchiveUnavailableError(f"{what}: no answer in time; try again later")
    return ArchiveUnavailableError(f"{what}: {type(error).__name__}: {error}; try again later")
