"""Looks at rate files before an engine does, so that bad input is refused with its file and cause.

Put here what every engine demands of a full-frame NIRCam imaging exposure. Keep out what one engine alone needs.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoramic.errors import (
    CalibrationError,
    ExposureFileError,
    InputError,
    MissingKeywordError,
    NoUsableExposureError,
    TruncatedFileError,
    WrongShapeError,
)
from panoramic.reduction.base import CalibrationSetup, ExposureInput

if TYPE_CHECKING:
    from astropy.io.fits import HDUList

SHAPE = (2048, 2048)
PLANES = ("SCI", "ERR", "DQ")
# without these, CRDS can't select reference files or the exposure can't be placed on the sky and in time
INSTRUMENT_KEYWORDS = (
    "TELESCOP", "INSTRUME", "DETECTOR", "CHANNEL", "MODULE", "FILTER", "PUPIL", "EXP_TYPE", "DATE-OBS", "TIME-OBS",
    "EXPSTART", "EFFEXPTM",
)  # fmt: skip
POINTING_KEYWORDS = ("RA_REF", "DEC_REF", "ROLL_REF", "V2_REF", "V3_REF", "VPARITY", "V3I_YANG")


@dataclass(frozen=True)
class RateHeader:
    """What identifies a rate file. Times in MJD and s, position in deg."""

    dataset: str
    path: Path
    detector: str
    channel: str
    module: str
    filter: str
    pupil: str
    exp_type: str
    date: str
    time: str
    start: float
    end: float
    exptime: float
    ra: float
    dec: float

    @property
    def is_long_wave(self) -> bool:
        """Whether the detector is one of the long-wave channel."""
        return self.detector.endswith("LONG")


def read_rate_header(exposure: ExposureInput) -> RateHeader:
    """Open a rate file, hold it against what a reduction needs, and give what identifies it.

    Raises
    ------
    TruncatedFileError
        It is no FITS file, or ends before its last plane.
    WrongShapeError
        SCI, ERR or DQ is not 2048 x 2048 (a subarray, an integration cube).
    MissingKeywordError
        A keyword of the instrument, time or pointing is absent or empty.
    ExposureFileError
        It is not there, lacks a plane, or is of another instrument or mode.
    """
    from astropy.io import fits

    path = Path(exposure.path)
    try:
        size = path.stat().st_size
        # a cut file only warns here, and fails much later inside the engine
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path, memmap=True, lazy_load_hdus=False) as hdus:
                _check_planes(hdus, path, size)
                values = _keywords(hdus, path)
    except FileNotFoundError as error:
        raise ExposureFileError(path, "is not there") from error
    except (PermissionError, IsADirectoryError) as error:
        raise ExposureFileError(path, f"can't be read: {error}") from error
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise TruncatedFileError(path, f"is no whole FITS file ({error}); fetch it again") from error
    header = RateHeader(dataset=exposure.dataset, path=path, **values)
    if not header.filter.startswith("F") or "GRISM" in header.pupil.upper():
        raise ExposureFileError(path, f"is no imaging exposure (FILTER {header.filter}, PUPIL {header.pupil})")
    return header


def _check_planes(hdus: HDUList, path: Path, size: int) -> None:
    last = hdus[-1].fileinfo()
    if last is None or last["datLoc"] + last["datSpan"] > size:
        raise TruncatedFileError(path, f"ends after {size} bytes, before its last plane does; fetch it again")
    names = {hdu.name for hdu in hdus}
    missing = [name for name in PLANES if name not in names]
    if missing and len(hdus) == 1:
        raise TruncatedFileError(path, "has a primary header and no planes; fetch it again")
    if missing:
        raise ExposureFileError(path, f"has no {', '.join(missing)} plane; it is no rate file")
    for name in PLANES:
        shape = hdus[name].shape
        if tuple(shape) != SHAPE:
            said = " x ".join(str(n) for n in shape) or "empty"
            raise WrongShapeError(path, f"plane {name} is {said}, a full frame is {SHAPE[0]} x {SHAPE[1]}")


def _keywords(hdus: HDUList, path: Path) -> dict[str, Any]:
    primary, sci = hdus[0].header, hdus["SCI"].header

    def absent(header: Any, key: str) -> bool:
        value = header.get(key)
        return value is None or not str(value).strip()

    missing = [k for k in INSTRUMENT_KEYWORDS if absent(primary, k)] + [k for k in POINTING_KEYWORDS if absent(sci, k)]
    if missing:
        raise MissingKeywordError(path, f"lacks {', '.join(missing)}")
    try:
        numbers = {k: float(sci[k]) for k in POINTING_KEYWORDS} | {
            k: float(primary[k]) for k in ("EXPSTART", "EFFEXPTM")
        }
    except (TypeError, ValueError) as error:
        raise MissingKeywordError(path, f"has a keyword that should be a number: {error}") from error
    telescope, instrument = str(primary["TELESCOP"]).strip(), str(primary["INSTRUME"]).strip()
    if (telescope, instrument) != ("JWST", "NIRCAM"):
        raise ExposureFileError(path, f"is of {telescope} {instrument}, not of JWST NIRCAM")
    if not numbers["EFFEXPTM"] > 0:
        raise MissingKeywordError(path, f"has an exposure time of {numbers['EFFEXPTM']} s (EFFEXPTM)")
    start, exptime = numbers["EXPSTART"], numbers["EFFEXPTM"]
    return {
        "detector": str(primary["DETECTOR"]).strip(),
        "channel": str(primary["CHANNEL"]).strip(),
        "module": str(primary["MODULE"]).strip(),
        "filter": str(primary["FILTER"]).strip(),
        "pupil": str(primary["PUPIL"]).strip(),
        "exp_type": str(primary["EXP_TYPE"]).strip(),
        "date": str(primary["DATE-OBS"]).strip(),
        "time": str(primary["TIME-OBS"]).strip(),
        "start": start,
        "end": float(primary.get("EXPEND", start + exptime / 86400)),
        "exptime": exptime,
        "ra": numbers["RA_REF"],
        "dec": numbers["DEC_REF"],
    }


def read_association(association: str, exposures: tuple[ExposureInput, ...]) -> tuple[RateHeader, ...]:
    """Check all exposures of one association, in the given order.

    Raises
    ------
    NoUsableExposureError
        There is none.
    InputError
        Two have one name, or they are of different detectors, filters or pupils.
    """
    if not exposures:
        raise NoUsableExposureError(f"{association}: it has no exposures")
    names = [e.dataset for e in exposures]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"{association}: {', '.join(twice)} is given more than once")
    headers = tuple(read_rate_header(e) for e in exposures)
    for what in ("detector", "filter", "pupil", "exp_type"):
        by_value = {getattr(h, what): h for h in reversed(headers)}
        if len(by_value) > 1:
            said = ", ".join(f"{value} ({h.path.name})" for value, h in sorted(by_value.items()))
            raise InputError(f"{association}: its exposures are of more than one {what}: {said}")
    return headers


def check_calibration(calibration: CalibrationSetup) -> None:
    """Refuse a CRDS cache that can't serve anything, before CRDS ends the process over it.

    Raises
    ------
    CalibrationError
        Naming the file that is missing.
    """
    root = Path(calibration.crds_path)
    needed = (
        (root, "the CRDS cache"),
        (root / "config" / "jwst" / "server_config", "the CRDS cache's server configuration"),
        (root / "mappings" / "jwst" / calibration.crds_context, f"the CRDS context {calibration.crds_context}"),
    )
    for path, what in needed:
        if not path.exists():
            raise CalibrationError(f"{what} is missing: {path}")
        if not os.access(path, os.R_OK):
            raise CalibrationError(f"{what} can't be read: {path}")
    if calibration.grizli_path is not None and not Path(calibration.grizli_path).is_dir():
        raise CalibrationError(f"grizli's configuration folder is missing: {calibration.grizli_path}")
