"""Downloads of which no wrong byte is ever used: resumed, verified, then moved into place.

Put here how one file comes over HTTP. Keep out which files are wanted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import requests

from panoramic.errors import (
    ArchiveUnavailableError,
    ChecksumMismatchError,
    DiskFullError,
    ExposureFileError,
    TruncatedFileError,
)
from panoramic.provenance import digest_file
from resources.exposure_files import FULL_FRAME, check_exposure, read_headers
from resources.file_facts import FileFacts
from resources.http_session import service_error

CHUNK = 64 * 1024


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

    def fetch(self, name: str, size: int | None = None, checksum: str | None = None) -> Path:
        """The verified local file; one that is there and right is not fetched again.

        Parameters
        ----------
        size, checksum : bytes and md5 of this very file where the archive states them. Without a checksum the file is
            held to its FITS structure alone.

        Raises
        ------
        TruncatedFileError, WrongShapeError, MissingKeywordError, ChecksumMismatchError
            What came was wrong at each attempt; nothing of it is left.
        ArchiveUnavailableError, ArchiveAccessError, DiskFullError
        """
        target = self.place(name)
        checksum = checksum.strip().lower() if checksum else None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._slots, _alone(target):
                if not self._is_right(target, size, checksum):
                    self._download(target, size, checksum)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                _part(target).unlink(missing_ok=True)
                raise DiskFullError(f"{name}: no room in {self.folder}; nothing half-written was left") from error
            raise ArchiveUnavailableError(f"{name}: can't be stored in {target.parent}: {error}") from error
        return target

    def _is_right(self, target: Path, size: int | None, checksum: str | None) -> bool:
        if not target.is_file() or (size and target.stat().st_size != size):
            return False
        if checksum:
            return self._facts.digest(target, "md5") == checksum
        try:
            read_headers(target)
        except TruncatedFileError:
            return False
        return True

    def _download(self, target: Path, size: int | None, checksum: str | None) -> None:
        part, tag = _part(target), target.with_name(f".{target.name}.tag")
        wanted = {"size": size, "checksum": checksum}
        if not part.exists() or _read_tag(tag).get("wanted") != wanted:
            part.unlink(missing_ok=True)  # the beginning of another version is of no use
        failure: Exception = ArchiveUnavailableError(f"{target.name}: was not tried")
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                self._receive(part, tag, wanted)
                self._verify(part, target, size, checksum)
            except ExposureFileError as error:
                part.unlink(missing_ok=True)
                failure = error
                continue
            except _CutOffError as error:
                failure = ArchiveUnavailableError(f"{target.name}: {error}")
                continue
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, target)
            tag.unlink(missing_ok=True)
            return
        raise failure

    def _receive(self, part: Path, tag: Path, wanted: Mapping[str, object]) -> None:
        """Add to the part what it lacks, or begin again where the server does not go on from there."""
        have = part.stat().st_size if part.exists() else 0
        version = str(_read_tag(tag).get("version") or "")
        if wanted["size"] and have == wanted["size"]:
            return
        if have and not (version or wanted["checksum"]):
            have = 0  # nothing tells that the rest would be of the same version
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if version:
                headers["If-Range"] = version
        name = _target_name(part)
        try:
            response = self._session.get(self._address(name), headers=headers, stream=True)
            if response.status_code != 416:
                response.raise_for_status()
        except requests.RequestException as error:
            raise service_error(error, name, self._session.auth is not None) from error
        with response:
            goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            if response.status_code in (206, 416) and not goes_on:
                part.unlink(missing_ok=True)
                raise _CutOffError("the archive can't go on from where the transfer was cut")
            newer = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            # a weak tag says nothing about bytes (RFC 9110, section 13.1.5)
            tag.write_text(json.dumps({"wanted": wanted, "version": "" if newer.startswith("W/") else newer}))
            try:
                with part.open("ab" if goes_on else "wb") as stream:
                    for chunk in response.iter_content(CHUNK):
                        stream.write(chunk)
            except requests.RequestException as error:
                raise _CutOffError(f"the transfer was cut: {error}") from error

    def _verify(self, part: Path, target: Path, size: int | None, checksum: str | None) -> None:
        """Hold what came to all that is known of it."""
        with part.open("rb") as stream:
            start = stream.read(80)
        if not start.startswith(b"SIMPLE  ="):
            part.unlink()
            raise _CutOffError(f"the archive answered something that is no FITS file: {start[:40]!r}")
        came = part.stat().st_size
        if size and came < size:
            raise _CutOffError(f"{came} of {size} bytes came")
        if size and came > size:
            raise ChecksumMismatchError(target, f"{came} bytes came, the archive's row says {size}")
        if checksum and (digest := digest_file(part, "md5")) != checksum:
            raise ChecksumMismatchError(target, f"what came has the md5 {digest}, the archive's row says {checksum}")
        try:
            headers = read_headers(part)
            if target.name.lower().endswith("_rate.fits"):
                check_exposure(target, headers, self._shape)
        except TruncatedFileError as error:
            raise TruncatedFileError(target, error.reason) from error


class _CutOffError(Exception):
    """The body is not all there; another attempt may bring the rest."""


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _target_name(part: Path) -> str:
    return part.name[1:].removesuffix(".part")


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
