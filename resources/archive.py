"""The archive's interface: what a look tells and what a fetch gives, wherever the exposures lie.

Put here what every archive has in common, and the choice between them. Keep out how one of them works:
`archive_folder.py` (users' own files and the simulated archive), `archive_mast.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from panoramic.errors import ExposureFileError, PanoramicError
from panoramic.survey import FolderArchive as FolderRules
from panoramic.survey import MastArchive as MastRules
from panoramic.survey import Survey

FAULT_KINDS = {
    "truncated": "the file ends before its headers say it should, or is no FITS file",
    "wrong_shape": "an image plane is missing or has not the shape of a full-frame exposure",
    "missing_keyword": "a header keyword that the reduction needs is absent or makes no sense",
    "checksum": "size or md5 are not what the archive's row says",
    "contradiction": "filter or pupil of the archive's row are not those of the file's header",
    "unsettled": "still being written; it counts at a later look",
    "unreadable": "the file can't be opened",
    "duplicate": "two files of the same name in different folders",
    "row_without_file": "the archive's table lists an exposure of which there is no file",
    "file_without_row": "a file that the archive's table does not list: its row is built from its header, it counts",
    "bad_row": "a row of the archive's table can't be read, or a file's name is none of a JWST exposure",
    "unknown_program": "a program of the survey file that the archive does not know",
}
FAULT_KEY = "_fault"
"""A row's key under which an archive says why the exposure can't be used (text)."""
GRANTED_KEY = "_granted"
"""A row's key that is True where the data are not public yet and the token has rights to them; else absent."""

Progress = Callable[[str, int, int | None], None]
"""Told of a transfer: file name, bytes so far, bytes in all (None: unknown). Never from two threads at once."""


@dataclass(frozen=True)
class ArchiveFault:
    """Something wrong with one file or row.

    Parameters
    ----------
    name : file name, or the row's name.
    reason : what was seen, for people.
    kind : a key of `FAULT_KINDS`.
    """

    name: str
    reason: str
    kind: str


@dataclass
class ArchiveLook:
    """What the archive held at one moment.

    Parameters
    ----------
    rows : one per file: MAST's column names, plain Python values, None for null. A row with the key ``_fault`` is of
        an exposure that exists but can't be used, with the reason.
    faults : each fault, also those that hold nothing back (``file_without_row``).
    source : the folder or address that was asked.
    at_mjd : when, MJD (UTC).
    ids_grow : whether a larger ArchiveFileID is a later ingestion (a folder's own identities are digests).
    rights : the archive's word for what our token may open; another word is another question.
    complete : whether `rows` is all that the archive holds (what is not in it is gone), and not a window of it.
    """

    rows: list[dict[str, Any]]
    faults: list[ArchiveFault] = field(default_factory=list)
    source: str = ""
    at_mjd: float = 0.0
    complete: bool = True
    ids_grow: bool = True
    rights: str = ""


@dataclass(frozen=True)
class FileRequest:
    """One file that is wanted, and what the archive says of *this very file*.

    Parameters
    ----------
    filename : e.g. ``jw02514162001_03201_00003_nrcalong_rate.fits``.
    size, checksum : bytes and md5 where a row is of this file, else None.
    cal_ver : version of the calibration software by the dataset's row: where no md5 applies, a file that an older
        version made is refused.
    file_id : ArchiveFileID of the dataset's row: where no md5 applies, a file that was fetched under another one is
        fetched anew.
    """

    filename: str
    size: int | None = None
    checksum: str | None = None
    cal_ver: str | None = None
    file_id: int | None = None


class Archive(Protocol):
    """A place that lists exposures and gives their files."""

    def look(self, since_mjd: float | None = None) -> ArchiveLook:
        """List the archive's rows, all of them or those that were ingested since a date.

        Raises
        ------
        EmptyArchiveError, UnknownProgramError
            There is nothing, with what was searched; no program of the survey exists.
        ArchiveRowError
            The archive's own table can't be read.
        ArchiveUnavailableError, ArchiveAccessError
            The archive did not answer, or refused.
        """
        ...

    def fetch(
        self, filename: str, size: int | None = None, checksum: str | None = None, cal_ver: str | None = None
    ) -> Path:
        """A local file, verified.

        Parameters
        ----------
        filename, size, checksum, cal_ver : see `FileRequest`.

        Raises
        ------
        TruncatedFileError, WrongShapeError, MissingKeywordError, ChecksumMismatchError
            The file is there and can't be used.
        ArchiveUnavailableError, ArchiveAccessError
            It could not be had.
        """
        ...

    def fetch_many(self, requests: Sequence[FileRequest], on_progress: Progress | None = None) -> dict[str, Path]:
        """Local files, each verified, by file name.

        Parameters
        ----------
        on_progress : told of transfers, at most every few seconds.

        Raises
        ------
        TruncatedFileError, WrongShapeError, MissingKeywordError, ChecksumMismatchError, ArchiveUnavailableError, \
ArchiveAccessError
            The first error, after all other files were tried; it names every file that failed.
        """
        ...

    @property
    def rights(self) -> str:
        """A word that changes with the rights that we have at the archive; it tells nothing of a token."""
        ...

    @property
    def reference_catalog_folder(self) -> Path | None:
        """Reference catalogues that come with the archive."""
        ...

    @property
    def crds_cache(self) -> Path | None:
        """A CRDS cache that comes with the archive."""
        ...

    @property
    def grizli_folder(self) -> Path | None:
        """A grizli configuration folder that comes with the archive."""
        ...


def fetch_all(requests: Sequence[FileRequest], fetch: Callable[[FileRequest], Path], parallel: int) -> dict[str, Path]:
    """Fetch each file once, several at a time; see `Archive.fetch_many` for what is raised.

    Parameters
    ----------
    fetch : gets one file; called from `parallel` threads.
    """
    wanted = {request.filename: request for request in requests}
    paths: dict[str, Path] = {}
    failures: dict[str, PanoramicError] = {}
    with ThreadPoolExecutor(parallel) as pool:
        futures = {name: pool.submit(fetch, request) for name, request in wanted.items()}
        try:
            for name, future in futures.items():
                try:
                    paths[name] = future.result()
                except PanoramicError as error:
                    failures[name] = error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # a bug or an interrupt: don't begin the rest
            raise
    if failures:
        _raise_together(failures)
    return paths


def _raise_together(failures: dict[str, PanoramicError]) -> NoReturn:
    """Raise the first error; its message names the other files that failed too."""
    (_, first), *others = failures.items()
    if not others:
        raise first
    also = f"; {len(others)} more failed: " + "; ".join(
        str(error) if name in str(error) else f"{name}: {error}" for name, error in others
    )
    if isinstance(first, ExposureFileError):
        raise type(first)(first.path, first.reason + also) from first
    raise type(first)(f"{first}{also}") from first


def make_archive(survey: Survey, home: Path, token: str | None = None) -> Archive:
    """The archive that a survey file asks for.

    Parameters
    ----------
    home : PANORAMIC_HOME: the simulated archive lies in ``home/archive``, downloads go to ``home/downloads`` and what
        is remembered of files to ``home/cache``.
    token : MAST token for data that are not public; None: the one that `resources.tokens.find_token` finds.
    """
    rules = survey.archive
    if isinstance(rules, MastRules):
        from resources.archive_mast import MastArchive
        from resources.tokens import find_token

        return MastArchive(rules, survey.programs, home / "downloads", token or find_token())
    from resources.archive_folder import FolderArchive

    path = rules.path if isinstance(rules, FolderRules) else home / "archive"
    return FolderArchive(path, home / "cache" / "archive_files.sqlite", home)
