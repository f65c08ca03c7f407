"""MAST, the Mikulski Archive for Space Telescopes, as an archive.

Put here the archive's own terms: services, filters, paging, tokens. Keep out how bytes travel (`downloads.py`).

The keyword service lists one row per file, mostly the highest level of an exposure; the checksum and size of a row
belong to that row's own file name. The missions search knows which programs exist, and each file's size.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from astropy.time import Time

from panoramic.errors import (
    ArchiveAccessError,
    ArchiveUnavailableError,
    EmptyArchiveError,
    InputError,
    ServiceError,
    UnknownProgramError,
)
from panoramic.observations import is_null, split_filename
from panoramic.provenance import digest_of
from panoramic.survey import MastArchive as MastRules
from resources.archive import GRANTED_KEY, ArchiveFault, ArchiveLook, FileRequest, Progress, fetch_all
from resources.downloads import Fetcher, SeldomProgress
from resources.exposure_files import FULL_FRAME
from resources.http_session import prepare_session, service_error

SERVICE = "Mast.Jwst.Filtered.Nircam"
PRODUCT_LEVELS = ("2a", "2b")
PAGE_ROWS = 5000
FILE_SETS_PER_REQUEST = 1000
OVERLAP_DAYS = 1.0  # rows whose ingestion ended late, after younger ones were already seen
EXECUTING_PAUSE_S = 1.0
FILES_ASKED = 5  # of a program, where the first ones are listed and not there
END_OF_TIME_MJD = 99999.0

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class MastArchive:
    """The archive at STScI, through astroquery's client.

    Parameters
    ----------
    rules : the survey's ``archive`` section: address, time-out, parallel downloads, products.
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
        self._opened_missions: Any = None
        self._opened_fetcher: Fetcher | None = None
        self._token_is_known = False
        self._sizes: dict[str, int] | None = {}  # by file name; None once the service was found to be down
        self._lock = threading.RLock()

    # --- the interface ----------------------------------------------------------------------

    @property
    def rights(self) -> str:
        """A digest of the token, salted with the address; empty without one."""
        return digest_of([self.url, self._token])[:12] if self._token else ""

    @property
    def reference_catalog_folder(self) -> Path | None:
        """``reference_catalogs/`` of the companions' folder, if there is one."""
        return self._companion("reference_catalogs")

    @property
    def crds_cache(self) -> Path | None:
        """``crds/`` of the companions' folder, if there is one."""
        return self._companion("crds")

    @property
    def grizli_folder(self) -> Path | None:
        """``grizli/`` of the companions' folder, if there is one."""
        return self._companion("grizli")

    def look(self, since_mjd: float | None = None) -> ArchiveLook:
        """All rows of the programs, or those ingested since a date (with a day's overlap).

        With a token, rows that are not public yet and that the token has rights to carry `GRANTED_KEY`.

        Raises
        ------
        InputError
            The survey names no program.
        UnknownProgramError, EmptyArchiveError
            Nothing came at all: a program does not exist; the programs have no NIRCam exposure. (Where other programs
            have rows, one that does not exist is a fault of the look.)
        ArchiveUnavailableError
            No answer, or one that does not hold together (rows missing or twice).
        ArchiveAccessError
            A refusal, or a token that the archive does not know.
        """
        if not self.programs:
            raise InputError("a survey on MAST needs programs: name them in the survey file")
        self._check_token()
        filters: list[dict[str, Any]] = [
            {"paramName": "program", "values": [str(p) for p in self.programs]},
            {"paramName": "productLevel", "values": list(PRODUCT_LEVELS)},
        ]
        if since_mjd is not None:
            window = {"min": since_mjd - OVERLAP_DAYS, "max": END_OF_TIME_MJD}
            filters.append({"paramName": "ingestCompletionDate_mjd", "values": [window]})
        rows = self._rows({"columns": "*", "filters": filters})
        at = float(Time.now().mjd)
        faults = self._absent_programs(rows) if since_mjd is None else []
        if self._token:
            self._mark_granted(rows, at)
        return ArchiveLook(rows, faults, self.url, at, complete=since_mjd is None, rights=self.rights)

    def fetch(
        self, filename: str, size: int | None = None, checksum: str | None = None, cal_ver: str | None = None
    ) -> Path:
        """Download and verify a file; see `resources.downloads.Fetcher.fetch`."""
        request = FileRequest(Path(filename).name, size, checksum, cal_ver)
        return self._fetcher().fetch(self._prepared([request])[0])

    def fetch_many(self, requests: Sequence[FileRequest], on_progress: Progress | None = None) -> dict[str, Path]:
        """Download and verify files in parallel; each file's ``_uncal`` too, if the survey asks for it.

        The result has the ``_uncal`` files under their own names.
        """
        wanted = [dataclasses.replace(request, filename=Path(request.filename).name) for request in requests]
        if "uncal" in self.rules.products:
            wanted += [
                FileRequest(f"{one.filename.removesuffix('_rate.fits')}_uncal.fits", file_id=one.file_id)
                for one in wanted
                if one.filename.endswith("_rate.fits")
            ]
        prepared = self._prepared(wanted)
        fetcher, tell = self._fetcher(), None if on_progress is None else SeldomProgress(on_progress)
        return fetch_all(prepared, lambda request: fetcher.fetch(request, tell), self.rules.parallel_downloads)

    # --- inside -----------------------------------------------------------------------------

    def _companion(self, name: str) -> Path | None:
        """A part of the survey's own folder that goes with MAST's exposures."""
        folder = self.rules.companions / name if self.rules.companions else None
        return folder if folder is not None and folder.is_dir() else None

    def _client(self) -> Any:
        """The client of astroquery, turned to our address; its session waits, retries and signs."""
        with self._lock:
            if self._opened_client is None:
                from astroquery.mast import MastClass

                client = MastClass()
                portal = client._portal_api_connection  # the address is per instance only here
                portal.MAST_REQUEST_URL = f"{self.url}/api/v0/invoke"
                portal.COLUMNS_CONFIG_URL = f"{self.url}/portal/Mashup/Mashup.asmx/columnsconfig"
                portal.MAST_DOWNLOAD_URL = f"{self.url}/api/v0.1/Download/file"
                session = client._session
                rules = self.rules
                prepare_session(
                    session, rules.timeout_s, self._token, self._retries, self._backoff, rules.parallel_downloads
                )
                # in place of astroquery's own hook, which writes all headers, the token's too, to its debug log
                session.hooks["response"] = [self._pause_while_executing]
                self._opened_client = client
            return self._opened_client

    def _missions(self) -> Any:
        """The client of the missions search, on the same session."""
        with self._lock:
            if self._opened_missions is None:
                from astroquery.mast import MastMissionsClass

                missions = MastMissionsClass(mission="jwst")
                service = missions._service_api_connection
                service._session = self._client()._session
                service.SERVICE_URL, service.MISSIONS_DOWNLOAD_URL = self.url, f"{self.url}/search/"
                missions.mission = "jwst"  # makes the address anew
                self._opened_missions = missions
            return self._opened_missions

    def _fetcher(self) -> Fetcher:
        with self._lock:
            if self._opened_fetcher is None:
                self._opened_fetcher = Fetcher(
                    self._client()._session,
                    self._address,
                    self._folder,
                    self.rules.parallel_downloads,
                    pause_s=self._backoff,
                    shape=self._shape,
                )
            return self._opened_fetcher

    def _address(self, name: str) -> str:
        return f"{self.url}/api/v0.1/Download/file?uri={quote(f'mast:JWST/product/{name}', safe='')}"

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

    # --- programs ---------------------------------------------------------------------------

    def _absent_programs(self, rows: list[dict[str, Any]]) -> list[ArchiveFault]:
        """Faults of the programs that do not exist; an error where no program has a row."""
        there = {str(row.get("program")).lstrip("0") for row in rows}
        absent = [program for program in self.programs if str(program) not in there]
        try:
            unknown = [program for program in absent if not self._exists(program)]
        except ServiceError as error:
            if not rows:
                raise
            logger.warning("no row of program %s, and whether it exists can't be asked: %s", _listed(absent), error)
            return []
        reason = f"{self.url} knows no such program; mend `programs` in the survey file"
        without_images = [program for program in absent if program not in unknown]
        if not rows and unknown:
            raise UnknownProgramError(f"program {_listed(unknown)}: {reason}")
        if not rows:
            raise EmptyArchiveError(
                f"{self.url} has no NIRCam exposure (level {', '.join(PRODUCT_LEVELS)}) of program {_listed(absent)}, "
                f"though it knows the program: was NIRCam used, and are the data taken?"
            )
        if without_images:
            logger.warning("program %s exists, without NIRCam exposures", _listed(without_images))
        return [ArchiveFault(f"program {program}", reason, "unknown_program") for program in unknown]

    def _exists(self, program: int) -> bool:
        """Whether the archive has any file set of a program, of whatever instrument."""
        question = {"limit": 1, "offset": 0, "select_cols": ["fileSetName"], "conditions": [{"program": str(program)}]}

        def ask() -> bool:
            service = self._missions()._service_api_connection
            return bool(service.missions_request_async("search", question).json()["results"])

        return self._asked_missions(f"search for program {program}", ask)

    def _asked_missions(self, what: str, ask: Callable[[], Answer]) -> Answer:
        """What the missions search answers, its failures as our errors."""
        from astroquery.exceptions import InvalidQueryError
        from astroquery.exceptions import TimeoutError as AstroqueryTimeoutError

        what = f"{self.url}, {what}"
        try:
            with self._lock:  # the client keeps its present service in itself
                return ask()
        except (requests.RequestException, ValueError) as error:
            raise service_error(error, what, self._token is not None) from error
        except (InvalidQueryError, AstroqueryTimeoutError) as error:  # its word for the status 400 and 500
            raise ArchiveUnavailableError(f"{what}: the service failed; try again later") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ArchiveUnavailableError(f"{what}: the answer is malformed ({error!r}); try again later") from error

    # --- tokens -----------------------------------------------------------------------------

    def _check_token(self) -> None:
        """Ask once who the token belongs to: the archive would ignore a wrong one until a file is refused."""
        with self._lock:
            if self._token and not self._token_is_known:
                self._ask_who()
                self._token_is_known = True

    def _ask_who(self) -> None:
        what = f"{self.url}/whoami"
        try:
            response = self._client()._session.get(what)
            response.raise_for_status()
            nobody = response.json()["anon"]
        except (requests.RequestException, ValueError) as error:
            raise service_error(error, what, has_token=True) from error
        except (KeyError, TypeError) as error:
            raise ArchiveUnavailableError(f"{what}: the answer is malformed ({error!r}); try again later") from error
        if nobody:
            raise ArchiveAccessError(
                f"{what}: the MAST token is wrong or expired; set a new one (MAST_API_TOKEN), or none for public data"
            )

    def _mark_granted(self, rows: list[dict[str, Any]], at_mjd: float) -> None:
        """Mark the rows that are not public and that the token has rights to, by one request for each program."""
        waiting: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            release = row.get("publicReleaseDate_mjd")
            if isinstance(release, (int, float)) and release > at_mjd and row.get("filename"):
                waiting.setdefault(str(row.get("program")), []).append(row)
        for of_program in waiting.values():
            answers = (self._has_rights(str(row["filename"])) for row in of_program[:FILES_ASKED])
            if next((answer for answer in answers if answer is not None), False):
                for row in of_program:
                    row[GRANTED_KEY] = True

    def _has_rights(self, filename: str) -> bool | None:
        """Whether the token opens a file: one byte is asked for. None where the file is listed and not there.

        Raises
        ------
        ArchiveUnavailableError
            The archive did not say: to take that for a no would make the data come and go.
        """
        try:
            with self._client()._session.get(
                self._address(filename), headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"}, stream=True
            ) as response:
                if response.status_code in (401, 403):
                    return False
                if response.status_code == 404:
                    logger.warning("%s is listed, but is not there", filename)
                    return None
                response.raise_for_status()
                return True
        except requests.RequestException as error:
            raise service_error(error, f"{filename}: whether the token opens it", has_token=True) from error

    # --- files ------------------------------------------------------------------------------

    def _prepared(self, requests_: Sequence[FileRequest]) -> list[FileRequest]:
        """The requests with the sizes of those files that must be fetched and of which nothing tells their bytes."""
        absent = {request.filename for request in requests_ if not self._fetcher().is_present(request)}
        if absent:
            self._check_token()
        untold = {r.filename for r in requests_ if r.filename in absent and not (r.size or r.checksum)}
        sizes = self._sizes_of(untold)
        return [
            dataclasses.replace(r, size=sizes[r.filename]) if r.filename in untold and r.filename in sizes else r
            for r in requests_
        ]

    def _sizes_of(self, filenames: Collection[str]) -> dict[str, int]:
        """Sizes in bytes by the missions search's product list, as far as it tells them."""
        with self._lock:
            if self._sizes is None or not filenames:
                return self._sizes or {}
            sets = {_file_set(name) for name in filenames if name not in self._sizes} - {""}
            wanted = sorted(sets)
            try:
                for first in range(0, len(wanted), FILE_SETS_PER_REQUEST):
                    self._sizes |= self._product_sizes(wanted[first : first + FILE_SETS_PER_REQUEST])
            except ServiceError as error:
                logger.warning("files are held to their FITS structure alone, for their sizes can't be had: %s", error)
                known, self._sizes = self._sizes, None
                return known
            return self._sizes

    def _product_sizes(self, file_sets: list[str]) -> dict[str, int]:
        def ask() -> dict[str, int]:
            missions = self._missions()
            products = missions._extract_products(missions.get_product_list_async(file_sets))
            return {str(p["filename"]): int(p["size"]) for p in products if not is_null(p["size"])}

        return self._asked_missions(f"product list of {len(file_sets)} file sets", ask)


def _listed(programs: Sequence[int]) -> str:
    return ", ".join(map(str, programs))


def _file_set(filename: str) -> str:
    """The archive's name of all detectors' files of one exposure, e.g. ``jw02514162001_03201_00003``."""
    try:
        return split_filename(filename)["dataset"].rpartition("_")[0]
    except InputError:
        return ""
