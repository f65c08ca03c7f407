"""MAST, the Mikulski Archive for Space Telescopes, as an archive.

Put here the archive's own terms: services, filters, paging. Keep out how bytes travel (`downloads.py`).

The keyword service lists one row per file, mostly the highest level of an exposure; the checksum and size of a row
belong to that row's own file name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from astropy.time import Time

from panoramic.errors import ArchiveUnavailableError, EmptyArchiveError, InputError
from panoramic.observations import is_null
from panoramic.survey import MastArchive as MastRules
from resources.archive import ArchiveLook
from resources.downloads import Fetcher
from resources.exposure_files import FULL_FRAME
from resources.http_session import prepare_session, service_error

SERVICE = "Mast.Jwst.Filtered.Nircam"
PRODUCT_LEVELS = ("2a", "2b")
PAGE_ROWS = 5000
OVERLAP_DAYS = 1.0  # rows whose ingestion ended late, after younger ones were already seen
EXECUTING_PAUSE_S = 1.0
END_OF_TIME_MJD = 99999.0


class MastArchive:
    """The archive at STScI, through astroquery's client.

    Parameters
    ----------
    rules : the survey's ``archive`` section: address, time-out, parallel downloads.
    programs : the programs that are asked for.
    download_folder : where files go.
    token : for data that are not public, or None; sent as a header, never stored or logged.
    backoff_factor : *seconds*, before the first retry; each further one waits twice as long.
    retries : of a request that got no answer or one of 429, 500, 502, 503, 504.
    page_rows : rows of one reply.
    shape : rows and columns of a full-frame exposure.
    """

    def __init__(
        self,
        rules: MastRules,
        programs: Sequence[int],
        download_folder: Path,
        token: str | None = None,
        backoff_factor: float = 2.0,
        retries: int = 5,
        page_rows: int = PAGE_ROWS,
        shape: tuple[int, int] = FULL_FRAME,
    ) -> None:
        self.rules, self.programs, self.url = rules, tuple(programs), rules.url.rstrip("/")
        self._token, self._backoff, self._retries = token, backoff_factor, retries
        self._page_rows, self._shape, self._folder = page_rows, shape, download_folder
        self._opened_client: Any = None
        self._opened_fetcher: Fetcher | None = None

    # --- the interface ----------------------------------------------------------------------

    @property
    def reference_catalog_folder(self) -> Path | None:
        """MAST brings no reference catalogues."""
        return None

    @property
    def crds_cache(self) -> Path | None:
        """MAST brings no CRDS cache."""
        return None

    @property
    def grizli_folder(self) -> Path | None:
        """MAST brings no grizli configuration."""
        return None

    def look(self, since_mjd: float | None = None) -> ArchiveLook:
        """All rows of the programs, or those ingested since a date (with a day's overlap).

        Raises
        ------
        InputError, EmptyArchiveError
            The survey names no program; MAST has nothing of them.
        ArchiveUnavailableError, ArchiveAccessError
            No answer, a refusal, or an answer that does not hold together (rows missing or twice).
        """
        if not self.programs:
            raise InputError("a survey on MAST needs programs: name them in the survey file")
        filters: list[dict[str, Any]] = [
            {"paramName": "program", "values": [str(p) for p in self.programs]},
            {"paramName": "productLevel", "values": list(PRODUCT_LEVELS)},
        ]
        if since_mjd is not None:
            window = {"min": since_mjd - OVERLAP_DAYS, "max": END_OF_TIME_MJD}
            filters.append({"paramName": "ingestCompletionDate_mjd", "values": [window]})
        rows = self._rows({"columns": "*", "filters": filters})
        if not rows and since_mjd is None:
            names = ", ".join(map(str, self.programs))
            raise EmptyArchiveError(
                f"{self.url} has no NIRCam exposure (level {', '.join(PRODUCT_LEVELS)}) of program {names}"
            )
        return ArchiveLook(rows, [], self.url, float(Time.now().mjd), complete=since_mjd is None)

    def fetch(self, filename: str, size: int | None = None, checksum: str | None = None) -> Path:
        """Download and verify a file; see `resources.downloads.Fetcher.fetch`."""
        return self._fetcher().fetch(Path(filename).name, size, checksum)

    # --- inside -----------------------------------------------------------------------------

    def _client(self) -> Any:
        """The client of astroquery, turned to our address; its session waits, retries and signs."""
        if self._opened_client is None:
            from astroquery.mast import MastClass

            client = MastClass()
            portal = client._portal_api_connection  # the address is per instance only here
            portal.MAST_REQUEST_URL = f"{self.url}/api/v0/invoke"
            portal.COLUMNS_CONFIG_URL = f"{self.url}/portal/Mashup/Mashup.asmx/columnsconfig"
            portal.MAST_DOWNLOAD_URL = f"{self.url}/api/v0.1/Download/file"
            session = client._session
            settings = (self.rules.timeout_s, self._token, self._retries, self._backoff, self.rules.parallel_downloads)
            prepare_session(session, *settings)
            session.hooks["response"].append(self._pause_while_executing)
            self._opened_client = client
        return self._opened_client

    def _fetcher(self) -> Fetcher:
        if self._opened_fetcher is None:
            self._opened_fetcher = Fetcher(
                self._client()._session,
                lambda name: f"{self.url}/api/v0.1/Download/file?uri={quote(f'mast:JWST/product/{name}', safe='')}",
                self._folder,
                self.rules.parallel_downloads,
                pause_s=self._backoff,
                shape=self._shape,
            )
        return self._opened_fetcher

    def _pause_while_executing(self, response: requests.Response, **_: Any) -> None:
        """Wait before the same question: astroquery repeats it at once while a query runs, 20 times a second."""
        if response.request.url == f"{self.url}/api/v0/invoke" and b'"EXECUTING"' in response.content[:200]:
            time.sleep(min(EXECUTING_PAUSE_S, self._backoff))

    def _rows(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """All pages of a query, or an error: never fewer rows than the archive says there are."""
        rows: dict[Any, dict[str, Any]] = {}
        received, total = 0, math.inf
        page = 0
        while received < total:
            page += 1
            reply = self._page(parameters, page)
            try:
                data, says = reply["data"], int(reply["paging"]["rowsFiltered"])
                new = {row["ArchiveFileID"]: row for row in data}
            except (KeyError, TypeError, ValueError) as error:
                raise ArchiveUnavailableError(
                    f"{self.url}: page {page} is malformed ({error!r}); look again later"
                ) from error
            if page > 1 and says != total:
                raise ArchiveUnavailableError(f"{self.url}: the rows changed while they were read; look again")
            total = says
            if not data and received < total:
                raise ArchiveUnavailableError(f"{self.url}: page {page} is empty after {received} of {total} rows")
            received += len(data)
            rows.update(new)
        if len(rows) != total:
            raise ArchiveUnavailableError(
                f"{self.url}: {total} rows announced, {len(rows)} different ones came; look again"
            )
        return [{column: None if is_null(value) else value for column, value in row.items()} for row in rows.values()]

    def _page(self, parameters: dict[str, Any], page: int) -> dict[str, Any]:
        what = f"{self.url}, {SERVICE}"
        try:
            responses = self._client().service_request_async(SERVICE, parameters, pagesize=self._page_rows, page=page)
            reply = responses[-1].json()
        except (requests.RequestException, TimeoutError, ValueError) as error:
            raise service_error(error, what, self._token is not None) from error
        if not isinstance(reply, dict) or reply.get("status") != "COMPLETE":
            message = reply.get("msg") or reply.get("status") if isinstance(reply, dict) else type(reply).__name__
            raise ArchiveUnavailableError(f"{what}: the query failed: {message or 'an empty answer'}")
        return reply
