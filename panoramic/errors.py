"""The one tree of errors. Each class names a cause; each message says what to do about it.

Put here every error that a user or operator can meet. Anything else that is raised is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class PanoramicError(Exception):
    """Base of all errors that this project raises on purpose."""


# --- what the user gave us ------------------------------------------------------------------


class InputError(PanoramicError):
    """The input is wrong; the same call will fail again until the input is mended."""


class SurveyFileError(InputError):
    """A survey file has an unknown key, an impossible value, or can't be parsed."""

    def __init__(self, path: Path | str, reason: str, line: int | None = None) -> None:
        where = f"{path}:{line}" if line else str(path)
        super().__init__(f"{where}: {reason}")
        self.path, self.line, self.reason = Path(path), line, reason


class UnknownNameError(InputError):
    """A field, association or survey of that name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        hint = f" Nearest: {', '.join(near)}." if near else f" There is no {kind} yet: run the ingest first."
        super().__init__(f"unknown {kind} {name!r}.{hint}")
        self.kind, self.name, self.near = kind, name, near


class ArchiveRowError(InputError):
    """A row of archive metadata can't be used as an exposure."""

    def __init__(self, source: str, row: int | str, column: str, reason: str) -> None:
        super().__init__(f"{source}, row {row}, column {column!r}: {reason}")
        self.source, self.row, self.column, self.reason = source, row, column, reason


class EmptyArchiveError(InputError):
    """The archive holds no exposure at all."""


class UnknownProgramError(InputError):
    """No program of that number exists in the archive."""


class ExposureFileError(InputError):
    """An exposure's FITS file can't be used. Subclasses name the cause."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class TruncatedFileError(ExposureFileError):
    """The file ends before its headers say it should, or is no FITS file."""


class WrongShapeError(ExposureFileError):
    """The image planes do not have the shape of a full-frame NIRCam exposure."""


class MissingKeywordError(ExposureFileError):
    """Header keywords that the reduction needs (pointing, filter, detector) are absent."""


class ChecksumMismatchError(ExposureFileError):
    """The file's size or digest is not what the archive says."""


class FaultError(InputError):
    """A fault asked of the simulator is unknown or names nothing that is simulated."""


# --- the outside world ----------------------------------------------------------------------


class ServiceError(PanoramicError):
    """A service or store outside could not do its part; trying later may help."""


class ArchiveUnavailableError(ServiceError):
    """The archive did not answer, or answered something that is not a reply."""


class ArchiveAccessError(ServiceError):
    """The archive refused: no token, a wrong token, or data that are not public yet."""


class ReferenceCatalogUnavailableError(ServiceError):
    """An external reference catalogue could not be had for this part of the sky."""


class ReferenceCatalogQueryError(ReferenceCatalogUnavailableError):
    """A catalogue's service refused the query, or its table is not what it was: trying later will not help."""


class CalibrationError(PanoramicError):
    """CRDS reference files or mappings that the reduction needs are missing or damaged."""


class StorageError(PanoramicError):
    """A product could not be written, or is not what was written."""


class DiskFullError(StorageError):
    """There is not enough room for the product; nothing was half-written."""


class ProductDamagedError(StorageError):
    """A stored product is missing or its digest differs from the recorded one."""


# --- the work -------------------------------------------------------------------------------


class ReductionError(PanoramicError):
    """An association could not be reduced. Subclasses name the cause."""


class EngineFailedError(ReductionError):
    """The engine ended with an error of its own."""


class EngineKilledError(ReductionError):
    """The engine's process was killed from outside (out of memory, a signal, a time limit)."""


class NoUsableExposureError(ReductionError):
    """No exposure of the association could be used."""


class MosaicError(PanoramicError):
    """A mosaic could not be made from what it was given."""


class ConflictError(PanoramicError):
    """Two parties want the same thing: a home of another survey, a field that another run holds."""


class FieldBusyError(ConflictError):
    """Another run works on this field."""
