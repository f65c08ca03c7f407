"""TAP and VizieR: one query becomes one table, or one typed error.

Put here how services are spoken to. Keep out which catalogues there are and what their columns mean.

The queries are built and sent by pyvo (TAP 1.1, UWS 1.1) and astroquery (VizieR's ASU); the answer is read here, as
both pass over what must stop us: pyvo warns of an overflow and astroquery drops it, VizieR's client returns None for a
web page, and neither notices that a body ended early where the server named no length. The Gaia archive is asked by
pyvo too: importing astroquery.gaia asks its server for messages, without a time-out, and prints them; its queries have
no time-out either, a limit of 2000 rows where they are synchronous, and lose the word of an overflow.
"""

from __future__ import annotations

import gzip
import io
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import requests
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential

from panoramic.errors import ReferenceCatalogQueryError, ReferenceCatalogUnavailableError
from resources.http_session import RETRY_STATUS, prepare_session

if TYPE_CHECKING:
    from astropy.table import Table

UNFINISHED = {"PENDING", "QUEUED", "EXECUTING", "RUN", "HELD", "SUSPENDED", "UNKNOWN"}
LATER = "; try again later, or name a local file of it (reference.files)"
REASON_LENGTH = 300


@dataclass(frozen=True)
class Patience:
    """How long a service is waited for.

    Parameters
    ----------
    connect_s, read_s : for a connection, and for each silence of an answer.
    retries : of a request that got no answer or one of 429, 500, 502, 503, 504.
    backoff_s : before the first retry; each further one waits twice as long, or what ``Retry-After`` says.
    job_s : for an asynchronous job as a whole.
    poll_s : the longest wait between two looks at a job.
    sleep : how to wait between looks.
    """

    connect_s: float = 10.0
    read_s: float = 60.0
    retries: int = 2
    backoff_s: float = 2.0
    job_s: float = 600.0
    poll_s: float = 10.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)


class _TimedSession(requests.Session):
    """A session whose every request has a time-out: pyvo brings none."""

    def __init__(self, connect_s: float, read_s: float) -> None:
        super().__init__()
        self._timeouts = (connect_s, read_s)

    def request(self, *args: Any, **settings: Any) -> requests.Response:
        """Send a request; a time-out of the caller's own stands."""
        settings["timeout"] = settings.get("timeout") or self._timeouts
        return super().request(*args, **settings)


def open_session(patience: Patience) -> requests.Session:
    """A session with time-outs and retries."""
    session = _TimedSession(patience.connect_s, patience.read_s)
    prepare_session(session, patience.read_s, None, patience.retries, patience.backoff_s, parallel=1)
    return session


def tap_query(
    url: str, adql: str, *, mode: Literal["sync", "async"], maximum: int, what: str, patience: Patience
) -> Table | None:
    """The rows of a TAP query.

    Parameters
    ----------
    url : of the service, without ``/sync``.
    maximum : rows that are asked for at most (MAXREC); an answer with as many counts as truncated.
    what : the service and its table, for messages.

    Returns
    -------
    The table as the service names it; None where it sent none.

    Raises
    ------
    ReferenceCatalogQueryError, ReferenceCatalogUnavailableError
    """
    import pyvo

    with open_session(patience) as session, _typed(what):
        service = pyvo.dal.TAPService(url, session=session)
        if mode == "sync":
            response = service.create_query(adql, maxrec=maximum).submit()
            return read_votable(response, what, maximum)
        job = service.submit_job(adql, maxrec=maximum)
        try:
            job.run()
            _wait(job, what, patience)
            response = session.get(job.result_uri or f"{job.url}/results/result", stream=True)
            return read_votable(response, what, maximum)
        finally:
            _delete(session, job.url)


def _wait(job: Any, what: str, patience: Patience) -> None:
    """Until an asynchronous job is done."""
    looks = Retrying(
        retry=retry_if_result(lambda phase: phase in UNFINISHED),
        wait=wait_exponential(min=min(0.5, patience.poll_s), max=patience.poll_s),
        stop=stop_after_delay(patience.job_s),
        sleep=patience.sleep,
    )
    try:
        phase = looks(lambda: job.phase)
    except RetryError as error:
        raise ReferenceCatalogUnavailableError(f"{what}: not done after {patience.job_s:.0f} s{LATER}") from error
    if phase != "COMPLETED":
        summary = job.job.errorsummary
        reason = summary.message.content if summary and summary.message else f"the job ended as {phase}"
        raise ReferenceCatalogQueryError(f"{what}: refused the query: {_short(reason)}")


def _delete(session: requests.Session, url: str) -> None:
    """A courtesy to the service, which deletes old jobs by itself too: it must not hide what happened before."""
    try:
        session.delete(url, allow_redirects=False)
    except requests.RequestException:
        return


def vizier_query(
    server: str,
    table: str,
    columns: Sequence[str],
    circle: tuple[float, float, float],
    *,
    what: str,
    patience: Patience,
) -> Table | None:
    """All rows of a VizieR table in a circle (RA, Dec, radius in deg, ICRS).

    Parameters
    ----------
    server : e.g. ``https://vizier.cds.unistra.fr``.

    Returns
    -------
    The table; None where VizieR sent none, as it does where nothing lies in the circle.

    Raises
    ------
    ReferenceCatalogQueryError, ReferenceCatalogUnavailableError
    """
    from astropy import units
    from astropy.coordinates import SkyCoord
    from astroquery.vizier import VizierClass

    client = VizierClass(columns=list(columns), row_limit=-1, timeout=(patience.connect_s, patience.read_s))
    client._server_to_url = lambda return_type="votable": f"{server.rstrip('/')}/viz-bin/{return_type}"
    prepare_session(client._session, patience.read_s, None, patience.retries, patience.backoff_s, parallel=1)
    ra, dec, radius = circle
    with client._session, _typed(what):
        response = client.query_region_async(
            SkyCoord(ra, dec, unit="deg"), radius=radius * units.deg, catalog=table, frame="icrs", cache=False
        )
        return read_votable(response, what)


# --- answers --------------------------------------------------------------------------------


def read_votable(response: requests.Response, what: str, maximum: int | None = None) -> Table | None:
    """The one table of an answer; None where it holds none.

    Raises
    ------
    ReferenceCatalogQueryError
        The service refused the query.
    ReferenceCatalogUnavailableError
        It answered with an error, a web page, a part of a table, or not with all rows.
    """
    from astropy.io import votable
    from astropy.io.votable.exceptions import VOWarning

    body = response.content
    if body[:2] == b"\x1f\x8b":  # the Gaia archive may send a compressed file rather than a compressed answer
        try:
            body = gzip.decompress(body)
        except (OSError, EOFError, zlib.error) as error:
            raise ReferenceCatalogUnavailableError(f"{what}: the answer ends in the middle{LATER}") from error
    if response.status_code >= 400:
        message = f"{what}: status {response.status_code}: {_short(body.decode('utf-8', 'replace'))}"
        if response.status_code in RETRY_STATUS or response.status_code >= 500:
            raise ReferenceCatalogUnavailableError(message + LATER)
        raise ReferenceCatalogQueryError(message)
    if b"<VOTABLE" not in body[:4096].upper():
        raise ReferenceCatalogUnavailableError(f"{what}: the answer is no table (a web page?){LATER}")
    if not re.search(rb"</(\w+:)?VOTABLE>\s*\Z", body[-200:]):
        raise ReferenceCatalogUnavailableError(f"{what}: the answer ends in the middle{LATER}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # services' VOTables have many small faults
            tree = votable.parse(io.BytesIO(body), verify="ignore")
            tables = [t for t in tree.iter_tables() if t.fields]
            rows = tables[0].to_table(use_names_over_ids=True) if tables else None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError, VOWarning) as error:
        raise ReferenceCatalogUnavailableError(f"{what}: the answer can't be read: {error}{LATER}") from error
    _look_at_status(tree, what)
    if rows is not None and maximum is not None and len(rows) >= maximum:
        raise ReferenceCatalogUnavailableError(f"{what}: the answer was cut at {len(rows)} rows")
    return rows


def _look_at_status(tree: Any, what: str) -> None:
    for name, value, content in _infos(tree):
        status = value.upper() if name == "QUERY_STATUS" else ""
        if status == "OVERFLOW":
            raise ReferenceCatalogUnavailableError(f"{what}: the answer was cut (overflow); sources are missing")
        if status == "ERROR" or name in ("ERROR", "ERRORS"):
            raise ReferenceCatalogQueryError(f"{what}: refused the query: {_short(content or value)}")


def _infos(tree: Any) -> Iterator[tuple[str, str, str]]:
    """Name, value and text of all INFO elements, wherever the service put them."""
    holders = [tree, *tree.resources]
    for resource in holders[1:]:
        holders += resource.resources
    for holder in [*holders, *tree.iter_tables()]:
        for info in holder.infos:
            yield str(info.name or "").upper(), str(info.value or ""), str(info.content or "")


def _short(text: str) -> str:
    """A message without markup, on one line."""
    words = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    return words[:REASON_LENGTH] or "no reason given"


@contextmanager
def _typed(what: str) -> Iterator[None]:
    """Failures of a service as our own error."""
    from pyvo.dal.exceptions import (
        DALAccessError,
        DALQueryError,
        DALServiceError,
    )

    try:
        yield
    except requests.RequestException as error:
        # after its last retry a time-out comes as a ConnectionError
        late = isinstance(error, requests.Timeout) or "timed out" in str(error).lower()
        reason = "no answer in time" if late else f"can't be reached: {_short(str(error))}"
        raise ReferenceCatalogUnavailableError(f"{what}: {reason}{LATER}") from error
    except DALQueryError as error:
        raise ReferenceCatalogQueryError(f"{what}: refused the query: {_short(str(error))}") from error
    except DALServiceError as error:
        if 400 <= (error.code or 0) < 500 and error.code not in RETRY_STATUS:
            raise ReferenceCatalogQueryError(f"{what}: status {error.code}: {_short(str(error))}") from error
        raise ReferenceCatalogUnavailableError(f"{what}: {_short(str(error))}{LATER}") from error
    except (DALAccessError, ValueError, AttributeError) as error:  # a job's description that is none
        raise ReferenceCatalogUnavailableError(
            f"{what}: the answer can't be read: {_short(str(error))}{LATER}"
        ) from error
