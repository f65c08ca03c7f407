"""What the FITS file of an exposure must hold, and the archive row that its header makes.

Put here the reading of a single exposure's headers. Keep out where the file lies and who lists it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.time import Time

from panoramic.errors import InputError, MissingKeywordError, TruncatedFileError, WrongShapeError
from panoramic.footprints import to_s_region
from panoramic.observations import split_filename
from panoramic.reduction.rate_files import INSTRUMENT_KEYWORDS, PLANES, POINTING_KEYWORDS
from panoramic.reduction.rate_files import SHAPE as FULL_FRAME
from panoramic.survey import DETECTORS

BLOCK = 2880
MAX_HEADER_BLOCKS = 2000

# MAST's columns are the lower-case names of header keywords
HEADER_COLUMNS = (
    "apername", "bkgdtarg", "cal_ver", "cal_vcs", "category", "channel", "crds_ctx", "crds_ver", "datamodl", "detector",
    "duration", "effexptm", "effinttm", "eng_qual", "engqlptg", "exp_type", "expcount", "expend", "expmid", "expripar",
    "expstart", "fastaxis", "filter", "frmdivsr", "gdstarid", "groupgap", "instrume", "module", "nexposur", "nframes",
    "ngroups", "nints", "numdthpt", "obs_id", "obslabel", "patt_num", "patttype", "pi_name", "prd_ver", "pupil",
    "readpatt", "sca_num", "scicat", "sdp_ver", "slowaxis", "subarray", "subsize1", "subsize2", "substrt1", "substrt2",
    "targ_dec", "targ_ra", "targname", "targprop", "targtype", "telescop", "template", "tframe", "tgroup", "timesys",
    "title", "va_dec", "va_ra", "visitype", "xoffset", "yoffset",
)  # fmt: skip
LEVELS = {"uncal": "1b", "rate": "2a", "rateints": "2a", "cal": "2b", "calints": "2b"}


def read_headers(path: Path) -> list[fits.Header]:
    """Headers of all HDUs, without their data, if the file holds every byte that they announce.

    Raises
    ------
    TruncatedFileError
        The file is empty, no FITS file, cut off, or more follows its last whole HDU.
    OSError
        It can't be opened.
    """
    headers: list[fits.Header] = []
    size = path.stat().st_size
    if size == 0:
        raise TruncatedFileError(path, "is empty")
    with path.open("rb") as stream:
        position = 0
        while position < size:
            header, length = _read_header(path, stream, first=not headers)
            end = position + length + _data_length(path, header)
            name = _plane(header) or "primary"
            if end > size:
                raise TruncatedFileError(
                    path, f"ends at byte {size}, but its HDU {len(headers)} ({name}) goes to byte {end}"
                )
            headers.append(header)
            position = end
            stream.seek(position)
    return headers


def _read_header(path: Path, stream: Any, first: bool) -> tuple[fits.Header, int]:
    """The header at the stream's place and its length in bytes."""
    text = b""
    for _ in range(MAX_HEADER_BLOCKS):
        block = stream.read(BLOCK)
        if not text and not block.startswith(b"SIMPLE  =" if first else b"XTENSION="):
            what = "is no FITS file (it does not begin with SIMPLE)" if first else "has bytes after its last whole HDU"
            raise TruncatedFileError(path, what)
        if len(block) < BLOCK:
            raise TruncatedFileError(path, f"ends inside a header, at byte {stream.tell()}")
        text += block
        cards = range(0, BLOCK, 80)
        if any(block[i : i + 80].rstrip() == b"END" for i in cards):
            try:
                return fits.Header.fromstring(text), len(text)
            except (ValueError, UnicodeDecodeError, fits.VerifyError) as error:
                raise TruncatedFileError(path, f"has a header that can't be read: {error}") from error
    raise TruncatedFileError(path, "has a header without END")


def _data_length(path: Path, header: fits.Header) -> int:
    """Bytes of an HDU's data, filled up to whole blocks (FITS standard 4.0, equations 1 and 2)."""
    try:
        axes = [int(header[f"NAXIS{k + 1}"]) for k in range(int(header["NAXIS"]))]
        values = math.prod(axes) if axes else 0
        data = abs(int(header["BITPIX"])) // 8 * int(header.get("GCOUNT", 1)) * (int(header.get("PCOUNT", 0)) + values)
    except (KeyError, TypeError, ValueError, fits.VerifyError) as error:
        raise TruncatedFileError(path, f"has a header that does not state its data's size: {error}") from error
    if data < 0:
        raise TruncatedFileError(path, "has a header that states a negative size")
    return -(-data // BLOCK) * BLOCK


def check_exposure(path: Path, headers: list[fits.Header], shape: tuple[int, int] = FULL_FRAME) -> None:
    """Hold the headers of a ``_rate`` file to what the reduction needs.

    Parameters
    ----------
    shape : (rows, columns) that a full-frame exposure has; another subarray's shape is not looked at.

    Raises
    ------
    WrongShapeError, MissingKeywordError
        With the plane or the keywords.
    """
    planes = {_plane(h): h for h in reversed(headers)}
    absent = [name for name in PLANES if name not in planes]
    if absent:
        raise WrongShapeError(path, f"has no {', '.join(absent)} plane")
    primary, science = headers[0], planes["SCI"]
    subarray = (_text(primary, "SUBARRAY") or "FULL").upper()
    expected = tuple(shape) if subarray == "FULL" else _shape(science)
    for name in PLANES:
        if _shape(planes[name]) != expected:
            raise WrongShapeError(path, f"its {name} plane has the shape {_shape(planes[name])}, not {expected}")
    missing = [k for k in INSTRUMENT_KEYWORDS if _text(primary, k) is None]
    pointing = {k: _number(science, k) for k in POINTING_KEYWORDS}
    missing += [k for k, value in pointing.items() if value is None]
    if missing:
        raise MissingKeywordError(path, f"lacks {', '.join(missing)} (absent, empty or no finite number)")
    if not (abs(pointing["DEC_REF"] or 0) <= 90 and abs(pointing["RA_REF"] or 0) <= 360):
        raise MissingKeywordError(
            path, f"RA_REF, DEC_REF = {pointing['RA_REF']}, {pointing['DEC_REF']} is not on the sky"
        )
    _check_identity(path, primary)


def _check_identity(path: Path, primary: fits.Header) -> None:
    """A header that says it is of another instrument or detector than the file's name is not to be trusted."""
    instrument, detector = ((_text(primary, k) or "").upper() for k in ("INSTRUME", "DETECTOR"))
    if instrument != "NIRCAM":
        raise MissingKeywordError(path, f"INSTRUME is {instrument!r}, not 'NIRCAM'")
    if detector not in DETECTORS:
        raise MissingKeywordError(path, f"DETECTOR is {detector!r}, which NIRCam does not have")
    try:
        named = split_filename(path.name)["detector"].upper()
    except InputError:
        return
    if named != detector:
        raise MissingKeywordError(path, f"DETECTOR is {detector!r}, but the file's name says {named!r}")


def _shape(header: fits.Header) -> tuple[int, ...]:
    return tuple(int(header.get(f"NAXIS{k}", 0)) for k in range(int(header.get("NAXIS", 0)), 0, -1))


def _value(header: fits.Header, keyword: str) -> Any:
    """A keyword's value; None where it is absent, undefined or its card can't be read."""
    try:
        value = header.get(keyword)
    except (fits.VerifyError, ValueError):
        return None
    if isinstance(value, fits.card.Undefined):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plane(header: fits.Header) -> str:
    """Upper-case name of an extension, empty for the primary header."""
    return (_text(header, "EXTNAME") or "").upper()


def _text(header: fits.Header, keyword: str) -> str | None:
    value = _value(header, keyword)
    return None if value is None or str(value).strip().upper() in ("", "UNKNOWN", "NONE") else str(value).strip()


def _number(header: fits.Header, keyword: str) -> float | None:
    value = _value(header, keyword)
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def row_from_name(filename: str) -> dict[str, Any]:
    """The archive row that a file's name alone makes: its identity, and no more.

    Raises
    ------
    InputError
        It is no name of a JWST exposure.
    """
    parts = split_filename(filename)
    return {
        "filename": filename,
        "fileSetName": "_".join(parts["dataset"].split("_")[:3]),
        "productLevel": LEVELS.get(parts["suffix"].lower()),
        "instrume": "NIRCAM" if parts["detector"].upper() in DETECTORS else None,
        "program": int(parts["program"]),
        "observtn": int(parts["observation"]),
        "visit": int(parts["visit"]),
        "visitgrp": int(parts["activity"][:2]),
        "seq_id": int(parts["activity"][2]),
        "act_id": parts["activity"][3:],
        "exposure": int(parts["exposure"]),
        "detector": parts["detector"].upper(),
    }


def row_from_headers(path: Path, headers: list[fits.Header]) -> dict[str, Any]:
    """The archive row of a file by its headers, under MAST's column names (without digest and dates of ingestion).

    ``s_region`` is the header's S_REGION; where it is absent, the aperture's corners are put on the sky by the header's
    pointing (pysiaf: distortion included, velocity aberration not: up to 0.01 arcsec).
    """
    row = row_from_name(path.name)
    primary = headers[0]
    science = next((h for h in headers if _plane(h) == "SCI"), primary)
    for column in HEADER_COLUMNS:
        keyword = column.upper()
        value = _value(primary, keyword)
        row[column] = _value(science, keyword) if value is None else value
    row["detector"] = row["detector"] or split_filename(path.name)["detector"].upper()
    row["module"] = row["module"] or row["detector"][3:4]
    start, end = _exposure_dates(primary)
    row["expstart"] = start if row["expstart"] is None else row["expstart"]
    row["expend"] = end if row["expend"] is None else row["expend"]
    row["date_obs_mjd"], row["date_end_mjd"] = start, end
    row["effexptm"] = _number(primary, "EFFEXPTM") or _number(primary, "EXPTIME") or _number(primary, "XPOSURE")
    row["s_region"] = _text(science, "S_REGION") or _text(primary, "S_REGION") or _footprint(primary, science)
    row["publicReleaseDate_mjd"] = row["expend"]  # the file is in the user's hands: nothing to wait for
    row["dataURI"] = path.name
    return row


def _exposure_dates(primary: fits.Header) -> tuple[float | None, float | None]:
    """Start and end in MJD (UTC), from whichever keywords there are."""
    start = _number(primary, "EXPSTART") or _mjd(_text(primary, "DATE-BEG"))
    if start is None and (day := _text(primary, "DATE-OBS")):
        start = _mjd(f"{day}T{_text(primary, 'TIME-OBS') or '00:00:00'}")
    end = _number(primary, "EXPEND") or _mjd(_text(primary, "DATE-END"))
    if end is None and start is not None:
        end = start + (_number(primary, "DURATION") or _number(primary, "EFFEXPTM") or 0.0) / 86400
    return start, end


def _mjd(iso: str | None) -> float | None:
    if iso is None:
        return None
    try:
        return float(Time(iso, scale="utc").mjd)
    except ValueError:
        return None


def _footprint(primary: fits.Header, science: fits.Header) -> str | None:
    """S_REGION from the pointing keywords, or None where they are incomplete."""
    pointing = [_number(science, k) for k in ("V2_REF", "V3_REF", "RA_REF", "DEC_REF", "ROLL_REF")]
    detector = (_text(primary, "DETECTOR") or "").upper().replace("LONG", "5")
    if any(value is None for value in pointing) or not detector.startswith("NRC"):
        return None
    import pysiaf

    apertures = pysiaf.Siaf("NIRCam").apertures
    name = _text(primary, "APERNAME") or ""
    aperture = apertures.get(name if name in apertures else f"{detector}_FULL")
    if aperture is None:
        return None
    v2, v3 = aperture.corners("tel")
    attitude = pysiaf.utils.rotations.attitude(*pointing)
    ra, dec = pysiaf.utils.rotations.pointing(attitude, np.asarray(v2), np.asarray(v3))
    return to_s_region(np.column_stack([np.asarray(ra) % 360.0, dec]))
