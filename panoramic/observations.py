"""Archive rows become typed, de-duplicated exposures.

Put here what one row or one exposure means. Keep out what needs several exposures (completeness, fields) and where
rows come from (``resources/archive.py``).
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from panoramic.errors import ArchiveRowError, InputError
from panoramic.footprints import mean_position, parse_s_region
from panoramic.survey import DETECTORS, ExposureRules

# jw PPPPP OOO VVV _ GG S AA _ EEEEE _ detector _ suffix (JWST file naming conventions, jwst-docs)
FILENAME = re.compile(
    r"^(?P<dataset>jw(?P<program>\d{5})(?P<observation>\d{3})(?P<visit>\d{3})"
    r"_(?P<activity>\d{2}\d[0-9a-z]{2})_(?P<exposure>\d{5})(?:-seg\d{3})?_(?P<detector>[a-z0-9]+))"
    r"_(?P<suffix>[a-z0-9]+)(?:\.fits)?$",
    re.IGNORECASE,
)
SUFFIX_RANK = {"rate": 0, "cal": 1, "rateints": 2, "calints": 2, "trapsfilled": 4, "uncal": 5}
# how a refusal for the exposure's mode begins
MODE_WORDS = ("exposure type", "subarray")
# what a column of the survey's tables holds
LONGEST = {"filename": 80, "filter": 16, "pupil": 16, "checksum": 64, "cal_ver": 32, "crds_ctx": 32}
LARGEST = {"ArchiveFileID": 2**53, "fileSize": 2**53, "expcount": 2**31 - 1}
RELEASE_COLUMNS = ("publicReleaseDate_mjd", "publicReleaseDate", "t_obs_release")
NULLS = {"", "nan", "none", "null", "--", "-999", "n/a"}


@dataclass(frozen=True)
class Exposure:
    """One exposure of one detector, as the archive describes it.

    Times are MJD (UTC), ``exptime`` is the effective exposure time in s, ``footprint`` is an S_REGION string.
    ``refused`` says by which rule of the survey it is left out, ``fault`` what is wrong with its file; both empty
    where it is fine. ``warnings`` stay with it. ``granted`` says that our token opens it before its release date.
    """

    dataset: str
    filename: str
    program: int
    observation: int
    visit: int
    activity: str
    exposure: int
    detector: str
    filter: str
    pupil: str
    module: str
    exptime: float
    t_min: float
    t_max: float
    footprint: str
    ra: float
    dec: float
    release: float
    file_id: int
    checksum: str
    size: int
    cal_ver: str
    crds_ctx: str
    expcount: int
    refused: str = ""
    fault: str = ""
    warnings: tuple[str, ...] = ()
    granted: bool = False

    @property
    def visit_id(self) -> str:
        """Program, observation and visit, as in the file name: ``02514162001``."""
        return f"{self.program:05d}{self.observation:03d}{self.visit:03d}"

    def is_available(self, mjd: float) -> bool:
        """Whether the data can be had at a date (MJD): released, or open to our token."""
        return self.granted or self.release <= mjd

    @property
    def group(self) -> tuple[str, str, str, str, str]:
        """Visit, activity, filter, pupil and detector: what is complete or held back as one."""
        return (self.visit_id, self.activity, self.filter, self.pupil, self.detector)

    @property
    def element(self) -> str:
        """The optical element that sets the passband, lower case: the pupil's where the pupil is not CLEAR."""
        return passband(self.filter, self.pupil)

    @property
    def suffix(self) -> str:
        """Product suffix of the standing file, e.g. ``rate``."""
        return split_filename(self.filename)["suffix"].lower()

    @property
    def rate_filename(self) -> str:
        """The file that a reduction starts from."""
        return f"{self.dataset}_rate.fits"

    @functools.cached_property  # no field: equality, `asdict` and `replace` do not see it
    def vertices(self) -> np.ndarray:
        """Footprint as (N, 2) RA and Dec in deg; parsed once, and read-only."""
        vertices = parse_s_region(self.footprint)
        vertices.setflags(write=False)
        return vertices

    @property
    def is_long_wave(self) -> bool:
        """Whether the detector is one of the long-wave channel."""
        return is_long_wave(self.detector)


@dataclass
class ParsedRows:
    """What a look at the archive held.

    ``exposures`` by dataset (refused and faulty ones included); ``errors`` the rows that could not be read as
    exposures at all: they are named, and hold nothing else up. ``unplaced`` gives the cause for each dataset that is
    known by name only, so that its group can be held back. ``n_other`` rows are of other instruments.
    """

    exposures: dict[str, Exposure] = field(default_factory=dict)
    errors: list[ArchiveRowError] = field(default_factory=list)
    unplaced: dict[str, str] = field(default_factory=dict)
    n_rows: int = 0
    n_other: int = 0


def is_long_wave(detector: str) -> bool:
    """Whether a detector name (``NRCALONG``, ``nrcb5``...) belongs to the long-wave channel."""
    return detector.upper() in ("NRCALONG", "NRCBLONG", "NRCA5", "NRCB5")


def passband(filter_name: str, pupil: str) -> str:
    """Lower-case name of the element that sets the passband (``f470n`` behind F444W)."""
    return (filter_name if pupil.upper() in ("CLEAR", "") else pupil).lower()


def split_filename(filename: str) -> dict[str, str]:
    """Parts of a JWST exposure file name; `InputError` where it is none."""
    match = FILENAME.match(filename.strip())
    if not match:
        raise InputError(f"{filename!r} is no name of a JWST exposure (jwPPPPPOOOVVV_GGSAA_EEEEE_detector_suffix.fits)")
    return match.groupdict()


def is_null(value: object) -> bool:
    """Whether a cell of an archive table is empty (masked, NaN, -999, an empty word)."""
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, float) and math.isnan(value):
        return True
    return str(value).strip().lower() in NULLS


def parse_rows(
    rows: Iterable[Mapping[str, Any]], source: str, rules: ExposureRules, programs: Sequence[int] = ()
) -> ParsedRows:
    """Read archive rows; the rows of one dataset become one exposure.

    The ``_rate`` row stands for its dataset where there is one, else the row of the highest level; of several
    versions of that file the one with the largest ArchiveFileID.
    """
    parsed = ParsedRows()
    best: dict[str, tuple[tuple[int, int], int, Mapping[str, Any]]] = {}
    for position, row in enumerate(rows, start=1):
        number = int(row.get("_row") or position)  # an archive that sorts its table's rows keeps their numbers
        parsed.n_rows += 1
        try:
            name = _text(row, "filename", source, number)
            parts = split_filename(name)
        except ArchiveRowError as error:
            parsed.errors.append(error)
            continue
        except InputError as error:
            parsed.errors.append(ArchiveRowError(source, number, "filename", str(error)))
            continue
        dataset = parts["dataset"].lower()
        if parts["detector"].upper() not in DETECTORS or parts["suffix"].lower() not in SUFFIX_RANK:
            parsed.n_other += 1  # another instrument's detector or a guide-star product: no NIRCam image
            continue
        try:
            file_id = _integer(row, "ArchiveFileID", source, number)
        except ArchiveRowError as error:
            parsed.errors.append(error)
            parsed.unplaced.setdefault(dataset, str(error))
            continue
        order = (-SUFFIX_RANK[parts["suffix"].lower()], file_id)
        if dataset not in best or order > best[dataset][0]:
            best[dataset] = (order, number, row)
    for dataset, (_, number, row) in sorted(best.items()):
        try:
            parsed.exposures[dataset] = _exposure(row, source, number, rules, programs)
            parsed.unplaced.pop(dataset, None)  # another row of it is whole
        except ArchiveRowError as error:
            fault = row.get("_fault")
            parsed.unplaced[dataset] = str(error) if is_null(fault) else str(fault)
            if is_null(fault):
                parsed.errors.append(error)
    return parsed


def _exposure(
    row: Mapping[str, Any], source: str, number: int, rules: ExposureRules, programs: Sequence[int]
) -> Exposure:
    parts = split_filename(str(row["filename"]))
    detector = parts["detector"].upper()
    filter_name, pupil = optical_element(row, source, number)
    footprint = _text(row, "s_region", source, number)
    try:
        vertices = parse_s_region(footprint)
    except InputError as error:
        raise ArchiveRowError(source, number, "s_region", str(error)) from error
    ra, dec = mean_position(vertices)
    t_min = _number(row, ("expstart", "date_obs_mjd", "t_min"), source, number)
    t_max = _number(row, ("expend", "date_end_mjd", "t_max"), source, number, default=t_min)
    warnings = []
    if str(row.get("engqlptg", "")).upper().startswith("PLANNED"):
        warnings.append("pointing is planned, not measured (engqlptg = PLANNED)")
    return Exposure(
        dataset=parts["dataset"].lower(),
        filename=str(row["filename"]).strip().lower(),
        program=int(parts["program"]),
        observation=int(parts["observation"]),
        visit=int(parts["visit"]),
        activity=parts["activity"].lower(),
        exposure=int(parts["exposure"]),
        detector=detector,
        filter=filter_name,
        pupil=pupil,
        module="A" if detector.startswith("NRCA") else "B",
        exptime=_number(row, ("effexptm", "exptime", "duration"), source, number, default=0.0),
        t_min=t_min,
        t_max=t_max,
        footprint=footprint.strip(),
        ra=ra,
        dec=dec,
        release=_release(row, source, number),
        file_id=_integer(row, "ArchiveFileID", source, number),
        checksum=_optional(row, "checksum", source, number).lower(),
        size=_integer(row, "fileSize", source, number),
        cal_ver=_optional(row, "cal_ver", source, number),
        crds_ctx=_optional(row, "crds_ctx", source, number),
        expcount=_integer(row, "expcount", source, number),
        refused=_refusal(row, parts["dataset"].lower(), filter_name, pupil, rules, programs),
        fault="" if is_null(row.get("_fault")) else str(row["_fault"]),
        warnings=tuple(warnings),
        granted=row.get("_granted") is True,
    )


def _refusal(
    row: Mapping[str, Any], dataset: str, filter_name: str, pupil: str, rules: ExposureRules, programs: Sequence[int]
) -> str:
    """The first rule of the survey that leaves the exposure out, or an empty text."""
    for column, what, allowed in (
        ("exp_type", MODE_WORDS[0], rules.exp_types),
        ("subarray", MODE_WORDS[1], rules.subarrays),
    ):
        if column not in row:
            continue
        if is_null(row[column]):
            return f"{what} is not given"
        value = str(row[column]).strip().upper()
        if value not in allowed:
            return f"{what} {value} is not one of {', '.join(allowed)}"
    return rule_refusal(int(dataset[2:7]), dataset, filter_name, pupil, rules, programs)


def rule_refusal(
    program: int, dataset: str, filter_name: str, pupil: str, rules: ExposureRules, programs: Sequence[int]
) -> str:
    """The first of the survey's rules on programs, filters and names that leaves an exposure out, or an empty text."""
    if programs and program not in programs:
        return f"program {program} is not one of the survey's"
    if pupil in rules.refuse_pupils:
        return f"pupil {pupil} is refused by the survey"
    if filter_name in rules.refuse_filters:
        return f"filter {filter_name} is refused by the survey"
    if any(fnmatch.fnmatchcase(dataset, pattern.lower()) for pattern in rules.refuse_datasets):
        return "named in refuse_datasets of the survey file"
    return ""


def refused_now(exposure: Exposure, rules: ExposureRules, programs: Sequence[int]) -> str:
    """The refusal of a known exposure by today's rules; its mode, which only a row tells, stays judged as it was."""
    if exposure.refused.startswith(MODE_WORDS):
        return exposure.refused
    return rule_refusal(exposure.program, exposure.dataset, exposure.filter, exposure.pupil, rules, programs)


def optical_element(row: Mapping[str, Any], source: str, number: int) -> tuple[str, str]:
    """Filter and pupil; the archive's combined form ``NC.F150W2.F162M`` is split."""
    combined = _text(row, "filter", source, number).upper().split(".")
    elements = combined[1:] if combined[0] == "NC" else combined
    filter_name = elements[0]
    if not is_null(row.get("orig-filter")):
        filter_name = str(row["orig-filter"]).strip().upper()
    _optional({"filter": filter_name}, "filter", source, number)
    if not is_null(row.get("pupil")):
        pupil = _optional(row, "pupil", source, number).upper()
    elif len(elements) > 1:
        pupil = elements[1]
    else:
        raise ArchiveRowError(
            source, number, "pupil", "is empty: the passband is not known; fill it in or leave the row out"
        )
    return filter_name, pupil


def _text(row: Mapping[str, Any], column: str, source: str, number: int) -> str:
    text = _optional(row, column, source, number)
    if not text:
        raise ArchiveRowError(source, number, column, "is empty: fill it in or leave the row out")
    return text


def _optional(row: Mapping[str, Any], column: str, source: str, number: int) -> str:
    """A cell's text, empty where it is null; longer than the tables hold it is refused."""
    text = "" if is_null(row.get(column)) else str(row[column]).strip()
    if len(text) > LONGEST.get(column, len(text)):
        raise ArchiveRowError(source, number, column, f"{text[:40]!r}... is longer than {LONGEST[column]} letters")
    return text


def _number(
    row: Mapping[str, Any], columns: tuple[str, ...], source: str, number: int, default: float | None = None
) -> float:
    for column in columns:
        value = row.get(column)
        if is_null(value):
            continue
        try:
            found = float(str(value))
        except ValueError as error:
            raise ArchiveRowError(source, number, column, f"{value!r} is no number") from error
        if not math.isfinite(found):
            raise ArchiveRowError(source, number, column, f"{value!r} is no finite number")
        return found
    if default is None:
        raise ArchiveRowError(source, number, columns[0], "is empty: fill it in or leave the row out")
    return default


def _integer(row: Mapping[str, Any], column: str, source: str, number: int) -> int:
    """A cell's whole number, 0 where it is null."""
    found = _number(row, (column,), source, number, default=0.0)
    if not 0 <= found <= LARGEST[column]:
        raise ArchiveRowError(source, number, column, f"{row[column]!r} is not between 0 and {LARGEST[column]}")
    return int(found)


def _release(row: Mapping[str, Any], source: str, number: int) -> float:
    """Release date as MJD; MAST's own form is ``/Date(milliseconds since 1970)/``. 0 where no row tells of it."""
    for column in RELEASE_COLUMNS:
        if is_null(row.get(column)):
            continue
        match = re.fullmatch(r"/Date\((-?\d+)\)/", str(row[column]).strip())
        return int(match.group(1)) / 86_400_000 + 40587.0 if match else _number(row, (column,), source, number)
    if any(column in row for column in RELEASE_COLUMNS):
        raise ArchiveRowError(source, number, RELEASE_COLUMNS[0], "is empty: whether it is public is not known")
    return 0.0


def is_revision(old: Exposure, new: Exposure) -> bool:
    """Whether ``new`` is another version of the data than ``old`` (design: section 5).

    Rows of the same suffix differ in ArchiveFileID, checksum, cal_ver or crds_ctx; when another suffix takes over,
    only cal_ver and crds_ctx count, because each suffix has a checksum of its own.
    """
    if (old.cal_ver, old.crds_ctx) != (new.cal_ver, new.crds_ctx):
        return True
    return old.suffix == new.suffix and (old.file_id, old.checksum) != (new.file_id, new.checksum)
