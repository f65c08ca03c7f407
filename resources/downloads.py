"""Downloads of which no wrong byte is ever used: resumed, verified, then moved into place.

Put here how one file comes over HTTP. Keep out which files are wanted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
from astropy.io import fits
from packaging.version import InvalidVersion, Version

from panoramic.errors import (
    ArchiveUnavailableError,
    ChecksumMismatchError,
    DiskFullError,
    ExposureFileError,
    InputError,
    MissingKeywordError,
    TruncatedFileError,
    WrongShapeError,
)
from panoramic.observations import split_filename
from panoramic.provenance import digest_file
from resources.archive import FileRequest, Progress
from resources.exposure_files import FULL_FRAME, check_exposure, read_headers
from resources.file_facts import FileFacts
from resources.http_session import service_error

CHUNK = 64 * 1024
PROGRESS_S = 5.0


class Fetcher:
    """Fetches files by name into a folder.

    Parameters
    ----------
    session : with time-outs, retries and token.
    address : URL of a file by its name.
    folder : files end up in ``folder/{first 7 letters}/{name}`` (the program of a JWST file).
    parallel : how many files at once, in this process.
    attempts : how often a body that was cut or spoilt is asked for again.
    pause_s : wait before the second attempt, *seconds*; doubled for each further one.
    shape : rows and columns of a full-frame exposure.
    """

    def __init__(
        self,
        session: requests.Session,
        address: Callable[[str], str],
        folder: Path,
        parallel: int = 4,
        attempts: int = 4,
        pause_s: float = 2.0,
        shape: tuple[int, int] = FULL_FRAME,
    ) -> None:
        self._session, self._address, self.folder = session, address, Path(folder)
        self._attempts, self._pause_s, self._shape = attempts, pause_s, shape
        self._slots = threading.BoundedSemaphore(parallel)
        self._facts = FileFacts(self.folder / "digests.sqlite")

    def place(self, name: str) -> Path:
        """Where a file ends up."""
        return self.folder / name[:7] / name

    def is_present(self, request: FileRequest) -> bool:
        """Whether the file is there and right, so that `fetch` would ask the archive nothing."""
        try:
            return self._is_right(self.place(request.filename), _plain(request))
        except OSError:
            return False  # `fetch` will say what is wrong with it

    def fetch(self, request: FileRequest, on_progress: Progress | None = None) -> Path:
        """The verified local file; one that is there and right is not fetched again.

        Parameters
        ----------
        request : without a checksum the file is held to its size, its FITS structure and its CAL_VER, as far as they
            are known.
        on_progress : told after each chunk of the transfer.

        Raises
        ------
        TruncatedFileError, WrongShapeError, MissingKeywordError, ChecksumMismatchError
            What came was wrong at each attempt; nothing of it is left.
        ArchiveUnavailableError, ArchiveAccessError, DiskFullError
        """
        request = _plain(request)
        name, target = request.filename, self.place(request.filename)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._slots, _alone(target):
                if not self._is_right(target, request):
                    self._download(target, request, on_progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                _discard(target)
                raise DiskFullError(f"{name}: no room in {self.folder}; nothing half-written was left") from error
            raise ArchiveUnavailableError(f"{name}: can't be stored in {target.parent}: {error}") from error
        return target

    def _is_right(self, target: Path, request: FileRequest) -> bool:
        if not target.is_file() or (request.size and target.stat().st_size != request.size):
            return False
        if request.checksum:
            return self._facts.digest(target, "md5") == request.checksum
        status = target.stat()
        came_as = self._facts.get("file_id", target, status.st_size, status.st_mtime_ns)
        if request.file_id and came_as is not None and came_as != request.file_id:
            return False  # the archive has made its dataset anew since
        try:
            headers = read_headers(target)
        except TruncatedFileError:
            return False
        return not _is_older(headers, request.cal_ver)

    def _download(self, target: Path, request: FileRequest, on_progress: Progress | None) -> None:
        part, tag = _part(target), _tag(target)
        if not part.exists() or _read_tag(tag).get("wanted") != dataclasses.asdict(request):
            _discard(target)  # the beginning of another version is of no use
        failure: Exception = ArchiveUnavailableError(f"{target.name}: was not tried")
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                self._receive(target, request, on_progress)
                self._verify(part, target, request)
            except ExposureFileError as error:
                _discard(target)
                failure = error
                continue
            except _CutOffError as error:
                failure = ArchiveUnavailableError(f"{target.name}: {error}")
                continue
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, target)
            tag.unlink(missing_ok=True)
            if request.file_id:
                status = target.stat()
                self._facts.put("file_id", target, status.st_size, status.st_mtime_ns, request.file_id)
            return
        raise failure

    def _receive(self, target: Path, request: FileRequest, on_progress: Progress | None) -> None:
        """Add to the part what it lacks, or begin again where the server does not go on from there."""
        part, tag = _part(target), _tag(target)
        have = part.stat().st_size if part.exists() else 0
        version = str(_read_tag(tag).get("version") or "")
        if request.size and have == request.size:
            return
        if have and not (version or request.checksum):
            have = 0  # nothing tells that the rest would be of the same version
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if version:
                headers["If-Range"] = version
        try:
            response = self._session.get(self._address(target.name), headers=headers, stream=True)
            if response.status_code != 416:
                response.raise_for_status()
        except requests.RequestException as error:
            raise service_error(error, target.name, self._session.auth is not None) from error
        with response:
            newer = _strong_tag(response)
            place = response.headers.get("Content-Range", "")
            goes_on = have > 0 and response.status_code == 206 and place.startswith(f"bytes {have}-")
            if goes_on and version and newer and newer != version:
                goes_on = False  # a server that minds Range but not If-Range
            if response.status_code in (206, 416) and not goes_on:
                _discard(target)
                raise _CutOffError("the archive can't go on from where the transfer was cut")
            if not goes_on:
                _discard(target)  # before the tag is new: a kill between the two must not leave old bytes under it
                have = 0
            tag.write_text(json.dumps({"wanted": dataclasses.asdict(request), "version": newer}))
            length = response.headers.get("Content-Length", "")
            total = request.size or (have + int(length) if length.isdigit() else None)
            try:
                with part.open("ab") as stream:
                    for chunk in response.iter_content(CHUNK):
                        have += stream.write(chunk)
                        if on_progress is not None:
                            on_progress(target.name, have, total)
            except requests.RequestException as error:
                raise _CutOffError(f"the transfer was cut: {error}") from error

    def _verify(self, part: Path, target: Path, request: FileRequest) -> None:
        """Hold what came to all that is known of it."""
        size, checksum = request.size, request.checksum
        with part.open("rb") as stream:
            start = stream.read(80)
        if not start.startswith(b"SIMPLE  ="):
            _discard(target)
            raise _CutOffError(f"the archive answered something that is no FITS file: {start[:40]!r}")
        came = part.stat().st_size
        if size and came < size:
            raise _CutOffError(f"{came} of {size} bytes came")
        if size and came > size:
            raise ChecksumMismatchError(target, f"{came} bytes came, the archive says {size}")
        if checksum and (digest := digest_file(part, "md5")) != checksum:
            raise ChecksumMismatchError(target, f"what came has the md5 {digest}, the archive's row says {checksum}")
        try:
            headers = read_headers(part)
        except TruncatedFileError as error:
            raise TruncatedFileError(target, error.reason) from error
        if not checksum and _is_older(headers, request.cal_ver):
            raise ChecksumMismatchError(
                target,
                f"what came was made by calibration software {headers[0].get('CAL_VER')}, the archive's row says "
                f"{request.cal_ver}: an older version of the file",
            )
        if target.name.lower().endswith("_rate.fits"):
            check_exposure(target, headers, self._shape)
        elif target.name.lower().endswith("_uncal.fits"):
            _check_ramps(target, headers)


class SeldomProgress:
    """Passes progress on at most every few seconds, from whichever thread, one at a time.

    Parameters
    ----------
    tell : who is told.
    every_s : *seconds* of silence after each line.
    clock : a time in seconds that only grows.
    """

    def __init__(
        self, tell: Progress, every_s: float = PROGRESS_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell, self._every_s, self._clock = tell, every_s, clock
        self._next, self._lock = clock(), threading.Lock()

    def __call__(self, name: str, so_far: int, total: int | None) -> None:
        """Pass a line on, if it is time."""
        with self._lock:
            if self._clock() >= self._next:
                self._next = self._clock() + self._every_s
                self._tell(name, so_far, total)


class _CutOffError(Exception):
    """The body is not all there; another attempt may bring the rest."""


def _plain(request: FileRequest) -> FileRequest:
    """The request with empty values as None, a bare file name and a lower-case checksum."""
    return FileRequest(
        Path(request.filename).name,
        request.size or None,
        (request.checksum or "").strip().lower() or None,
        request.cal_ver or None,
        request.file_id or None,
    )


def _is_older(headers: list[fits.Header], cal_ver: str | None) -> bool:
    """Whether an older version of the calibration software made the file than the archive's row says."""
    if not cal_ver:
        return False
    try:
        return Version(str(headers[0].get("CAL_VER", ""))) < Version(cal_ver)
    except InvalidVersion:
        return False  # no keyword, or not a version: nothing can be said


def _check_ramps(target: Path, headers: list[fits.Header]) -> None:
    """Hold the headers of an ``_uncal`` file to its identity; it has no ERR and DQ planes."""
    if not any(header.get("EXTNAME", "") == "SCI" for header in headers):
        raise WrongShapeError(target, "has no SCI plane")
    instrument, detector = (str(headers[0].get(k, "")).strip().upper() for k in ("INSTRUME", "DETECTOR"))
    try:
        named = split_filename(target.name)["detector"].upper()
    except InputError:
        named = detector
    if instrument != "NIRCAM" or detector != named:
        raise MissingKeywordError(target, f"its header says {instrument or '?'} {detector or '?'}, not NIRCAM {named}")


def _strong_tag(response: requests.Response) -> str:
    """What tells versions of a file's bytes apart, or an empty text."""
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return "" if tag.startswith("W/") else tag  # a weak tag says nothing about bytes (RFC 9110, section 13.1.5)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _tag(target: Path) -> Path:
    """Beside the part: what was wanted (size, md5, ArchiveFileID, CAL_VER) and the server's version of it."""
    return target.with_name(f".{target.name}.tag")


def _discard(target: Path) -> None:
    """Remove what of a file is half there."""
    _part(target).unlink(missing_ok=True)
    _tag(target).unlink(missing_ok=True)


def _read_tag(tag: Path) -> dict[str, object]:
    try:
        value = json.loads(tag.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time per file; the lock ends with its process."""
    with target.with_name(f".{target.name}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
