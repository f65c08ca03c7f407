"""The reference files of an association's exposures: selected, held against the exposure, parsed once.

Put here what is read from reference files, and the cache of what is slow to parse. Keep out CRDS itself
(`crds_lookup.py`) and what is done with the numbers (`detector.py`, `geometry.py`).

The cache is a folder of ``{type}-{version}-{SHA-256 of the file}.npz``: another file is another entry, so that an
entry is never out of date and any number of processes can share it. Flats are not in it: a cache would not be faster.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import CalibrationError, InputError
from panoramic.provenance import digest_of, sha256_of
from panoramic.reduction.base import CalibrationSetup, Degradation
from panoramic.reduction.native.crds_lookup import select_files
from panoramic.reduction.native.geometry import Distortion
from panoramic.reduction.rate_files import SHAPE, RateHeader, check_calibration

KINDS = ("flat", "photom", "distortion", "filteroffset", "area")
REQUIRED = ("photom", "distortion")
FLAGS = {
    name: 1 << bit
    for bit, name in enumerate(
        (
            "DO_NOT_USE", "SATURATED", "JUMP_DET", "DROPOUT", "OUTLIER", "PERSISTENCE", "AD_FLOOR", "CHARGELOSS",
            "UNRELIABLE_ERROR", "NON_SCIENCE", "DEAD", "HOT", "WARM", "LOW_QE", "RC", "TELEGRAPH", "NONLINEAR",
            "BAD_REF_PIXEL", "NO_FLAT_FIELD", "NO_GAIN_VALUE", "NO_LIN_CORR", "NO_SAT_CHECK", "UNRELIABLE_BIAS",
            "UNRELIABLE_DARK", "UNRELIABLE_SLOPE", "UNRELIABLE_FLAT", "OPEN", "ADJ_OPEN", "FLUX_ESTIMATED",
            "MSA_FAILED_OPEN", "OTHER_BAD_PIXEL", "REFERENCE_PIXEL",
        )
    )
}  # fmt: skip
"""JWST's data-quality bits (jwst-pipeline documentation, "Data Quality Flags")."""
_VERSION = 1  # of the cache's entries: raise it whenever the same file would be parsed to something else
_LARGEST_FIT_ERROR_MAS = 0.005
# keyword -> keyword of the pattern ("A|B|") that may stand in for it
_PATTERNS = {
    "DETECTOR": "P_DETECT", "FILTER": "P_FILTER", "PUPIL": "P_PUPIL", "CHANNEL": "P_CHANNE", "MODULE": "P_MODULE",
}  # fmt: skip
_ANY = ("", "ANY", "N/A", "GENERIC")
_MEANINGS = {
    "flat_field": "CRDS has no flat field for this detector, filter and pupil; none was applied",
    "filter_offset": "CRDS has no offset of this filter on the detector; none was applied",
    "pixel_area": "the nominal pixel area is the one of the flux scale's reference file",
}


@dataclass(frozen=True)
class ReferenceFile:
    """A selected file: its type, name, place, and the SHA-256 of its bytes."""

    kind: str
    name: str
    path: Path
    sha256: str


@dataclass(frozen=True, eq=False)
class FlatField:
    """A flat as it is divided by: 1 where it has no value, with JWST's bits.

    Parameters
    ----------
    data, error : float32, of the detector's shape.
    dq : uint32; DO_NOT_USE and NO_FLAT_FIELD where there is no value.
    """

    data: NDArray[np.float32]
    error: NDArray[np.float32]
    dq: NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class References:
    """What the reference files say of one detector, filter and pupil.

    Parameters
    ----------
    files : type -> file, of those that there are.
    flat : None where CRDS has none.
    photmjsr : MJy/sr of one DN/s.
    pixar_sr, pixar_a2 : nominal solid angle of a pixel, sr and arcsec^2.
    filter_offset : (column, row) that the filter adds to a pixel.
    missing : name of a degradation -> why.
    """

    files: Mapping[str, ReferenceFile]
    flat: FlatField | None
    photmjsr: float
    pixar_sr: float
    pixar_a2: float
    distortion: Distortion
    filter_offset: tuple[float, float]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def checksums(self) -> dict[str, str]:
        """File name -> SHA-256, for the provenance of products."""
        return {f.name: f.sha256 for f in self.files.values()}

    def degradations(self, product: str) -> tuple[Degradation, ...]:
        """What a product that is made with these references lacks."""
        return tuple(Degradation(product, what, why) for what, why in self.missing.items())


def load_references(
    headers: Sequence[RateHeader], calibration: CalibrationSetup, cache: Path
) -> tuple[References, ...]:
    """The reference files of each exposure; exposures with the same selection share one object.

    Parameters
    ----------
    headers : the exposures of an association.
    calibration : CRDS cache and context.
    cache : folder of parsed files; made if it isn't there.

    Raises
    ------
    CalibrationError
        The cache or context can't be used; a required file is missing, can't be read, or is of another detector or
        filter. The message names the type and the file.
    """
    check_calibration(calibration)
    selections = select_files(headers, calibration, KINDS)
    made: dict[str, References] = {}
    result = []
    for header, selection in zip(headers, selections, strict=True):
        mode = [header.detector, header.filter, header.pupil, header.channel, header.module]
        key = digest_of([mode, {k: str(v) for k, v in selection.items()}])
        if key not in made:
            made[key] = read_references(header, selection, Path(cache))
        result.append(made[key])
    return tuple(result)


def read_references(header: RateHeader, selection: Mapping[str, Path | None], cache: Path) -> References:
    """Read the files that were selected for an exposure (type -> path, or None where there is none).

    Raises
    ------
    CalibrationError
    """
    mode = f"{header.detector} {header.filter} {header.pupil}"
    for kind in REQUIRED:
        if selection.get(kind) is None:
            raise CalibrationError(f"no {kind} for {mode}: CRDS says that there is none, and nothing can do without it")
    files = {kind: _reference_file(kind, path) for kind in KINDS if (path := selection.get(kind)) is not None}
    missing = {}
    flat = _read_flat(files["flat"], header) if "flat" in files else None
    if flat is None:
        missing["flat_field"] = f"{_MEANINGS['flat_field']} ({mode})"
    photmjsr, areas = _read_photom(files["photom"], header)
    area_file = _read_area(files["area"], header) if "area" in files else None
    if area_file is None:
        missing["pixel_area"] = f"{_MEANINGS['pixel_area']} ({files['photom'].name})"
    areas = area_file or areas
    if areas is None:
        raise CalibrationError(f"photom {files['photom'].name} has no PIXAR_SR and PIXAR_A2, and no area file has them")
    offset = (0.0, 0.0)
    if "filteroffset" in files:
        offset = _filter_offset(files["filteroffset"], header, cache)
    else:
        missing["filter_offset"] = f"{_MEANINGS['filter_offset']} ({mode})"
    return References(files, flat, photmjsr, *areas, _distortion(files["distortion"], header, cache), offset, missing)


# --- FITS files ----------------------------------------------------------------------------


def _reference_file(kind: str, path: Path) -> ReferenceFile:
    try:
        return ReferenceFile(kind, path.name, path, sha256_of(path))
    except OSError as error:
        raise CalibrationError(f"{kind} {path} can't be read ({error.strerror}); fetch it again") from error


def _read_flat(file: ReferenceFile, header: RateHeader) -> FlatField:
    from astropy.io import fits

    try:
        with fits.open(file.path) as hdus:
            _check(file, hdus[0].header, header, ("DETECTOR", "FILTER", "PUPIL"))
            data, uncertainty = (hdus[name].data.astype(np.float32) for name in ("SCI", "ERR"))
            flags = hdus["DQ"].data.astype(np.uint32)
            defined = hdus["DQ_DEF"].data if "DQ_DEF" in hdus else None
            if defined is not None and len(defined):
                flags = _standard_flags(flags, zip(defined["VALUE"], defined["NAME"], strict=True))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(file, error) from error
    for plane in (data, uncertainty, flags):
        if plane.shape != SHAPE:
            raise CalibrationError(f"flat {file.name} has a plane of {plane.shape}, a full frame is {SHAPE}")
    # as jwst's flat_field does: what has no value is flagged, and divides by 1
    none = np.isnan(data) | (data == 0)
    flags[none] |= np.uint32(FLAGS["NO_FLAT_FIELD"])
    flags[flags & np.uint32(FLAGS["NO_FLAT_FIELD"]) > 0] |= np.uint32(FLAGS["DO_NOT_USE"])
    data[flags & np.uint32(FLAGS["DO_NOT_USE"]) > 0] = 1.0
    return FlatField(data, uncertainty, flags)


def _standard_flags(flags: np.ndarray, defined: Any) -> NDArray[np.uint32]:
    """JWST's bits of a file that has bits of its own (DQ_DEF); names that JWST doesn't know are left out."""
    out = np.zeros(flags.shape, np.uint32)
    for value, name in defined:
        bit = FLAGS.get(str(name).strip())
        if bit is not None:
            out[flags & np.uint32(value) > 0] |= np.uint32(bit)
    return out


def _read_photom(file: ReferenceFile, header: RateHeader) -> tuple[float, tuple[float, float] | None]:
    from astropy.io import fits

    try:
        with fits.open(file.path) as hdus:
            primary = hdus[0].header
            _check(file, primary, header, ("DETECTOR",))
            table = hdus["PHOTOM"].data
            modes = zip(table["filter"], table["pupil"], table["photmjsr"], strict=True)
            wanted = [header.filter, header.pupil]
            values = [float(v) for *mode, v in modes if [str(name).strip().upper() for name in mode] == wanted]
            areas = _pixel_areas(primary)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(file, error) from error
    if len(values) != 1 or not (np.isfinite(values[0]) and values[0] > 0):
        raise CalibrationError(
            f"photom {file.name} has no single positive flux scale for {header.filter} {header.pupil}: {values}"
        )
    return values[0], areas


def _read_area(file: ReferenceFile, header: RateHeader) -> tuple[float, float] | None:
    from astropy.io import fits

    try:
        primary = fits.getheader(file.path, 0)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(file, error) from error
    _check(file, primary, header, ("DETECTOR",))
    return _pixel_areas(primary)


def _pixel_areas(primary: Mapping[str, Any]) -> tuple[float, float] | None:
    values = primary.get("PIXAR_SR"), primary.get("PIXAR_A2")
    if None in values:
        return None
    return float(values[0]), float(values[1])  # type: ignore[arg-type]


def _check(file: ReferenceFile, found: Mapping[str, Any], header: RateHeader, keywords: tuple[str, ...]) -> None:
    """Refuse a file that says it is of another instrument, detector, filter, ...; what it doesn't say is not asked."""
    wanted = {
        "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": header.detector, "FILTER": header.filter,
        "PUPIL": header.pupil, "CHANNEL": header.channel, "MODULE": header.module,
    }  # fmt: skip
    for keyword in ("TELESCOP", "INSTRUME", *keywords):
        said = str(found.get(keyword) or "").strip().upper()
        allowed = str(found.get(_PATTERNS.get(keyword, "")) or "").upper()
        if said in (*_ANY, wanted[keyword]) or wanted[keyword] in [part.strip() for part in allowed.split("|")]:
            continue
        raise CalibrationError(
            f"{file.kind} {file.name} is of {keyword} {said}, the exposure of {wanted[keyword]}; "
            "the CRDS rules or the file are wrong"
        )


def _unreadable(file: ReferenceFile, error: Exception) -> CalibrationError:
    return CalibrationError(f"{file.kind} {file.path} can't be read ({type(error).__name__}: {error}); fetch it again")


# --- ASDF files, through the cache ---------------------------------------------------------


def _distortion(file: ReferenceFile, header: RateHeader, cache: Path) -> Distortion:
    def parse(tree: Mapping[str, Any]) -> dict[str, Any]:
        found = Distortion.fitted(tree["model"])
        if not found.error_mas <= _LARGEST_FIT_ERROR_MAS:
            raise CalibrationError(
                f"distortion {file.name} is no smooth polynomial: a fit of it is wrong by {found.error_mas:.3g} mas"
            )
        return {"values": found.values, "error_mas": np.float64(found.error_mas)}

    entry = _parsed(file, cache, parse)
    _check(file, _keywords(entry), header, ("DETECTOR",))
    return Distortion.from_values(entry["values"], float(entry["error_mas"]))


def _filter_offset(file: ReferenceFile, header: RateHeader, cache: Path) -> tuple[float, float]:
    def parse(tree: Mapping[str, Any]) -> dict[str, Any]:
        rows = [row for row in tree["filters"] if not isinstance(row.get("column_offset", "N/A"), str)]
        return {
            "modes": np.array([f"{row['filter']} {row['pupil']}".upper() for row in rows], dtype=str),
            "offsets": np.array([[row["column_offset"], row["row_offset"]] for row in rows], float).reshape(-1, 2),
        }

    entry = _parsed(file, cache, parse)
    _check(file, _keywords(entry), header, ("CHANNEL", "MODULE"))
    # as in jwst, a filter that is not in the table has no offset
    rows = np.flatnonzero(entry["modes"] == f"{header.filter} {header.pupil}")
    if len(rows) > 1:
        raise CalibrationError(f"filteroffset {file.name} has {len(rows)} rows for {header.filter} {header.pupil}")
    return (float(entry["offsets"][rows[0], 0]), float(entry["offsets"][rows[0], 1])) if len(rows) else (0.0, 0.0)


# keyword -> its name in an ASDF file's meta or meta.instrument
_META = {
    "TELESCOP": "telescope", "INSTRUME": "name", "DETECTOR": "detector", "CHANNEL": "channel", "MODULE": "module",
    "P_DETECT": "p_detector", "P_CHANNE": "p_channel", "P_MODULE": "p_module",
}  # fmt: skip


def _keywords(entry: Mapping[str, Any]) -> dict[str, str]:
    return dict(zip(entry["keywords"].tolist(), entry["said"].tolist(), strict=True))


def _parsed(
    file: ReferenceFile, cache: Path, parse: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Mapping[str, np.ndarray]:
    """What `parse` makes of an ASDF file's tree, from the cache if it is there and whole."""
    path = cache / f"{file.kind}-{_VERSION}-{file.sha256}.npz"
    if path.is_file():
        try:
            # every member has a checksum
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            path.unlink(missing_ok=True)  # a damaged entry is made anew
    import asdf

    try:
        with asdf.open(file.path, lazy_load=False) as opened:
            meta = opened.tree["meta"]
            said = {k: str(meta.get(v) or meta["instrument"].get(v) or "") for k, v in _META.items()}
            entry = parse(opened.tree)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, InputError) as error:
        raise _unreadable(file, error) from error
    entry |= {"keywords": np.array(list(said), dtype=str), "said": np.array(list(said.values()), dtype=str)}
    cache.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part.npz")
    np.savez(beside, **entry)
    os.replace(beside, path)
    return entry
