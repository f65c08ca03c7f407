"""A folder of ``_rate`` files as an archive: the simulated one, and users' own files (design: section 3).

Put here how files and rows of a folder are found and held together. Keep out what one FITS file must hold
(`exposure_files.py`) and how its table is read (`archive_table.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.time import Time

from panoramic.errors import (
    ArchiveRowError,
    ArchiveUnavailableError,
    ChecksumMismatchError,
    EmptyArchiveError,
    ExposureFileError,
    InputError,
    MissingKeywordError,
    TruncatedFileError,
    WrongShapeError,
)
from panoramic.observations import optical_element, split_filename
from panoramic.survey import DETECTORS
from resources.archive import FAULT_KEY, ArchiveFault, ArchiveLook, FileRequest, Progress, fetch_all
from resources.archive_table import ArchiveTable, find_table, read_table
from resources.exposure_files import FULL_FRAME, check_exposure, read_headers, row_from_headers, row_from_name
from resources.file_facts import FileFacts

OWN_FOLDERS = ("crds", "truth", "reference_catalogs", "grizli")
RATE_SUFFIX = "_rate.fits"
SETTLE_SECONDS = 5.0
TOLD_BY_FILE = ("publicReleaseDate_mjd", "exp_type", "subarray")
FAULT_ERRORS: dict[str, type[ExposureFileError]] = {
    "truncated": TruncatedFileError,
    "wrong_shape": WrongShapeError,
    "missing_keyword": MissingKeywordError,
    "checksum": ChecksumMismatchError,
}


@dataclass(frozen=True)
class _File:
    """One file as the folder shows it now."""

    path: Path
    size: int
    mtime_ns: int


@dataclass
class _Inspection:
    """What reading a file told: the row of its header (as far as it could be read), and its fault, if any."""

    row: dict[str, Any]
    kind: str = ""
    reason: str = ""


class FolderArchive:
    """Exposures in a folder; the folder is never written to.

    Parameters
    ----------
    path : ``exposures/`` in it is searched recursively for ``*_rate.fits``; without ``exposures/``, it itself.
    cache : an SQLite file elsewhere, for digests and headers by path, size and mtime: a second look only asks for
        each file's size and mtime.
    home : a folder inside ``path`` that is not searched: where this project's own copies of exposures lie.
    settle_s : a file that was not seen before counts if it was last written longer ago than this, *seconds*.
    clock : the time in seconds since 1970.
    shape : rows and columns of a full-frame exposure.
    """

    def __init__(
        self,
        path: Path,
        cache: Path,
        home: Path | None = None,
        settle_s: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.time,
        shape: tuple[int, int] = FULL_FRAME,
    ) -> None:
        self.path, self.settle_s, self.clock, self.shape = Path(path).absolute(), settle_s, clock, shape
        self._home = home.resolve() if home else None
        self._facts = FileFacts(cache)

    # --- the interface ----------------------------------------------------------------------

    rights = ""  # what lies in a folder is open

    @property
    def reference_catalog_folder(self) -> Path | None:
        """``reference_catalogs/``, if there is one."""
        return self._part("reference_catalogs")

    @property
    def crds_cache(self) -> Path | None:
        """``crds/``, if there is one."""
        return self._part("crds")

    @property
    def grizli_folder(self) -> Path | None:
        """``grizli/``, if there is one."""
        return self._part("grizli")

    def look(self, since_mjd: float | None = None) -> ArchiveLook:  # noqa: ARG002 - the interface
        """All rows of the folder; ``since_mjd`` is not needed here, for each look is cheap and complete.

        A bad file never hides the others: it becomes a fault, and its row carries the reason under ``_fault``.

        Raises
        ------
        EmptyArchiveError, ArchiveRowError
        """
        table_path = find_table(self.path)
        source = str(table_path or self.path)
        now = float(Time(self.clock(), format="unix").mjd)
        look = ArchiveLook([], [], source, now, ids_grow=False)
        files = self._files(look)
        table = read_table(table_path) if table_path else None
        if not files:
            raise EmptyArchiveError(self._nothing_found(look.faults))
        for name, reason in table.bad if table else []:
            look.faults.append(ArchiveFault(name, reason, "bad_row"))
        for name in table.older if table else []:
            reason = f"{table_path} lists it more than once; the row with the largest ArchiveFileID counts"
            look.faults.append(ArchiveFault(name, reason, "bad_row"))
        seen = self._facts.all("seen")
        known = self._facts.all("exposure")
        for name, places in sorted(files.items()):
            listed = table.rows.get(name) if table else None
            look.rows.append(self._row(look, places, listed, seen, known))
            if table and listed is None and not _dataset_listed(table, name):
                look.faults.append(ArchiveFault(name, f"{table.path.name} does not list this file", "file_without_row"))
        if table:
            self._add_rows_without_files(look, table, files)
        now_there = [f for places in files.values() for f in places]
        self._facts.put_many("seen", [(str(f.path), f.size, f.mtime_ns, None) for f in now_there if not _same(seen, f)])
        gone = {p for p in seen if p.startswith(f"{self.path}{os.sep}")} - {str(f.path) for f in now_there}
        for kind in ("seen", "exposure", "md5"):
            self._facts.forget(kind, gone)
        return look

    def fetch(
        self,
        filename: str,
        size: int | None = None,
        checksum: str | None = None,
        cal_ver: str | None = None,  # noqa: ARG002 - the file itself is what there is
    ) -> Path:
        """The file itself, verified again (by its digest if size or mtime changed since the last look).

        Raises
        ------
        TruncatedFileError, WrongShapeError, MissingKeywordError, ChecksumMismatchError, ArchiveUnavailableError
        """
        return self._verified(self._files(None), FileRequest(filename, size, checksum))

    def fetch_many(
        self,
        requests: Sequence[FileRequest],
        on_progress: Progress | None = None,  # noqa: ARG002 - nothing travels
    ) -> dict[str, Path]:
        """The files themselves, each verified as `fetch` does; the folder is searched once."""
        files = self._files(None)
        return fetch_all(requests, lambda request: self._verified(files, request), parallel=1)

    def _verified(self, files: dict[str, list[_File]], request: FileRequest) -> Path:
        places = files.get(Path(request.filename).name.lower(), [])
        if not places:
            raise ArchiveUnavailableError(f"{request.filename} is not in {self._searched}; put it there and run again")
        file = places[0]
        inspection = self._inspect(file, self._facts.get("exposure", file.path, file.size, file.mtime_ns))
        if inspection.kind in FAULT_ERRORS:
            raise FAULT_ERRORS[inspection.kind](file.path, inspection.reason)
        if inspection.kind:
            raise ArchiveUnavailableError(f"{file.path}: {inspection.reason}")
        try:
            if reason := self._contradiction(file, request.size, request.checksum):
                raise ChecksumMismatchError(file.path, reason)
        except OSError as error:
            raise ArchiveUnavailableError(f"{file.path}: can't be read: {error.strerror}") from error
        return file.path

    # --- files ------------------------------------------------------------------------------

    @property
    def _searched(self) -> Path:
        exposures = self.path / "exposures"
        return exposures if exposures.is_dir() else self.path

    def _part(self, name: str) -> Path | None:
        folder = self.path / name
        return folder if folder.is_dir() else None

    def _nothing_found(self, faults: list[ArchiveFault]) -> str:
        if not self.path.exists():
            return f"the archive folder {self.path} does not exist"
        if not self.path.is_dir():
            return f"the archive {self.path} is no folder"
        seen = f"; {faults[0].name}: {faults[0].reason}" if faults else ""
        return (
            f"no NIRCam exposure in the archive {self.path}: searched {self._searched} and the folders below it for "
            f"*{RATE_SUFFIX} files{seen}"
        )

    def _files(self, look: ArchiveLook | None) -> dict[str, list[_File]]:
        """NIRCam ``_rate`` files by lower-case name; several where folders repeat a name."""
        found: dict[str, list[_File]] = {}
        for path in self._walk(look):
            name = path.name.lower()
            try:
                if split_filename(name)["detector"].upper() not in DETECTORS:
                    continue  # another instrument's exposure
            except InputError as error:
                if look is not None:
                    look.faults.append(ArchiveFault(path.name, str(error), "bad_row"))
                continue
            try:
                status = path.stat()
            except OSError as error:
                if look is not None and path.is_symlink():
                    look.faults.append(
                        ArchiveFault(path.name, f"the link leads nowhere: {error.strerror}", "unreadable")
                    )
                continue  # it went while we looked
            found.setdefault(name, []).append(_File(path, status.st_size, status.st_mtime_ns))
        return found

    def _walk(self, look: ArchiveLook | None) -> Iterator[Path]:
        def unreadable(error: OSError) -> None:
            if look is not None:
                look.complete = False
                look.faults.append(
                    ArchiveFault(str(error.filename), f"can't be listed: {error.strerror}", "unreadable")
                )

        if not self.path.is_dir():
            return
        visited: set[Path] = set()
        for folder, subfolders, names in os.walk(self._searched, onerror=unreadable, followlinks=True):
            here = Path(folder).resolve()
            if here in visited or here == self._home:
                subfolders.clear()  # a link back into the tree, or our own products
                continue
            visited.add(here)
            skipped = OWN_FOLDERS if Path(folder) == self.path else ()
            subfolders[:] = sorted(s for s in subfolders if s not in skipped and not s.startswith("."))
            yield from (Path(folder) / n for n in sorted(names) if n.lower().endswith(RATE_SUFFIX) and n[0] != ".")

    # --- one file's row ---------------------------------------------------------------------

    def _row(
        self,
        look: ArchiveLook,
        places: list[_File],
        listed: dict[str, Any] | None,
        seen: dict[str, tuple[int, int, Any]],
        known: dict[str, tuple[int, int, Any]],
    ) -> dict[str, Any]:
        """The row of one file name, its faults added to the look."""
        file = places[0]
        size, mtime_ns, value = known.get(str(file.path), (-1, -1, None))
        inspection = self._inspect(file, value if (size, mtime_ns) == (file.size, file.mtime_ns) else None)
        kind, reason = inspection.kind, inspection.reason
        checksum = (listed or {}).get("checksum")
        settled = _same(seen, file) or self.clock() - file.mtime_ns / 1e9 > self.settle_s
        if not settled and (kind in FAULT_ERRORS or not checksum):
            kind, reason = "unsettled", "was written just now; it counts once its size and mtime stay the same"
        own: dict[str, Any] = {}
        try:
            if kind == "":
                reason = self._contradiction(file, (listed or {}).get("fileSize"), checksum)
                kind = "" if not reason else "checksum" if settled else "unsettled"
            if kind not in ("unsettled", "unreadable"):
                own = self._stand_in(file)
            if len(places) > 1:
                kind, reason = self._duplicate(look, places, kind, reason)
        except OSError as error:
            kind, reason = "unreadable", f"can't be read: {error.strerror}"
        if kind == "" and listed and (reason := _other_element(inspection.row, listed)):
            kind = "contradiction"
        row = {**inspection.row, **own, **(listed or {})}
        row.update({column: value for column, value in own.items() if row[column] is None})
        # the file is in the user's hands, and says what it is
        row.update({c: inspection.row.get(c) for c in TOLD_BY_FILE if not row.get(c)})
        row["filename"] = row["filename"] if listed else file.path.name
        if kind:
            look.faults.append(ArchiveFault(file.path.name, reason, kind))
            row[FAULT_KEY] = reason
        return row

    def _inspect(self, file: _File, value: dict[str, Any] | None) -> _Inspection:
        """Structure and header of a file, read only if nothing is remembered of it in this state."""
        if value is not None and value["shape"] == list(self.shape):
            return _Inspection(value["row"], value["kind"], value["reason"])
        inspection = self._read(file.path)
        if inspection.kind != "unreadable":
            value = {"row": inspection.row, "kind": inspection.kind, "reason": inspection.reason, "shape": self.shape}
            self._facts.put("exposure", file.path, file.size, file.mtime_ns, value)
        return inspection

    def _read(self, path: Path) -> _Inspection:
        row = row_from_name(path.name)
        try:
            headers = read_headers(path)
            row = row_from_headers(path, headers)
            check_exposure(path, headers, self.shape)
        except OSError as error:
            return _Inspection(row, "unreadable", f"can't be read: {error.strerror}")
        except ExposureFileError as error:
            kind = next(k for k, cls in FAULT_ERRORS.items() if isinstance(error, cls))
            return _Inspection(row, kind, error.reason)
        return _Inspection(row)

    def _contradiction(self, file: _File, size: object, checksum: object) -> str:
        """How the file differs from what the archive's row says of it, or an empty text."""
        if isinstance(size, (int, float)) and size > 0 and int(size) != file.size:
            return f"has {file.size} bytes, the archive's row says {int(size)}"
        if checksum:
            digest = self._facts.digest(file.path, "md5")
            if digest != str(checksum).strip().lower():
                return f"has the md5 {digest}, the archive's row says {checksum}"
        return ""

    def _stand_in(self, file: _File) -> dict[str, Any]:
        """What the archive would add at ingestion: digest, size, date, and an identity that changes with the bytes."""
        digest = self._facts.digest(file.path, "md5")
        return {
            "checksum": digest,
            "fileSize": file.size,
            "ArchiveFileID": int(digest[:12], 16),  # 48 bits: exact in a float and in every database's integer
            "ingestCompletionDate_mjd": float(Time(file.mtime_ns / 1e9, format="unix").mjd),
            "isRestricted": False,
            "dataURI": file.path.resolve().as_uri(),
        }

    def _duplicate(self, look: ArchiveLook, places: list[_File], kind: str, reason: str) -> tuple[str, str]:
        """Two files of one name: the same bytes are only named, different ones can't be told apart."""
        where = " and ".join(str(f.path.relative_to(self.path)) for f in places)
        if len({self._facts.digest(f.path, "md5") for f in places}) == 1:
            look.faults.append(
                ArchiveFault(places[0].path.name, f"lies in several places with the same bytes: {where}", "duplicate")
            )
            return kind, reason
        return "duplicate", f"lies in several places with different bytes: {where}; remove the wrong one"

    def _add_rows_without_files(self, look: ArchiveLook, table: ArchiveTable, files: dict[str, list[_File]]) -> None:
        """Rows of the table that no file has; one of another suffix stands for its dataset's ``_rate`` file."""
        named: set[str] = set()
        for name, row in table.rows.items():
            if name in files:
                continue
            row = dict(row)
            try:
                parts = split_filename(name)
            except InputError:
                look.rows.append(row)  # no exposure's name: refused with its row where rows are parsed
                continue
            rate = f"{parts['dataset'].lower()}{RATE_SUFFIX}"
            if parts["detector"].upper() in DETECTORS and rate not in files:
                reason = f"{table.path.name} lists it, but {rate} is not in {self._searched}"
                row[FAULT_KEY] = reason
                if rate not in named:
                    look.faults.append(ArchiveFault(rate, reason, "row_without_file"))
                named.add(rate)
            look.rows.append(row)


def _other_element(header: dict[str, Any], listed: dict[str, Any]) -> str:
    """How the table's filter and pupil differ from the file's own, or an empty text (also where the table has none)."""
    try:
        own, said = (optical_element(row, "", 0) for row in (header, listed))
    except ArchiveRowError:
        return ""  # an empty cell is named where rows are parsed
    if own == said:
        return ""
    return f"its header says filter {own[0]} and pupil {own[1]}, the archive's row says {said[0]} and {said[1]}"


def _same(seen: dict[str, tuple[int, int, Any]], file: _File) -> bool:
    return seen.get(str(file.path), (-1, -1))[:2] == (file.size, file.mtime_ns)


def _dataset_listed(table: ArchiveTable, name: str) -> bool:
    """Whether the table lists the file's dataset under another suffix."""
    stem = name.removesuffix("rate.fits")
    return any(
        f"{stem}{suffix}.fits" in table.rows for suffix in ("cal", "rateints", "calints", "uncal", "trapsfilled")
    )
