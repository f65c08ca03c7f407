"""Reads what grizli leaves behind: its shift and WCS logs, and what it printed.

Put here pure functions from text to numbers. Keep out FITS files and processes. Formats are those of grizli 1.14.3's
``prep.tweak_align`` and ``prep.log_wcs``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from panoramic.reduction.base import AbsoluteFit, Degradation, RelativeFit
from panoramic.reduction.grizli_patterns import (
    ALIGNMENT_FAILURES,
    DEGRADATIONS,
    EXPOSURE_STARTS,
    EXPOSURES_END,
    HARMLESS,
    STEPS_WITH_TRACEBACK,
    SUSPICIOUS,
    SWALLOWED,
)

RADIAL_NMAD = 0.6649
"""What grizli logs as RMS of the absolute fit is 1.4826 x the median absolute deviation of the *radial* residuals;
for residuals that are normal with deviation 1 per axis (Rayleigh) that is 0.6649."""

_USE_GUESS_N = 999  # the row that grizli writes when it was told the answer instead of fitting one
_FAILED_ROW = "# !"
# the last line of a traceback; a name alone, or before a colon: grizli's own headline says "Exception (date)"
_EXCEPTION = r"^(?:# !)?\s*((?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Exit|Interrupt))(:.*)?$"


class WcsRow(NamedTuple):
    """The last row of a ``_wcs.log``: shift in pixels of the drizzled image, rotation in deg, logged RMS, matches."""

    dx: float
    dy: float
    rotation: float
    scale: float
    rms: float
    n: int


def parse_shifts_log(text: str, names: Mapping[str, str], reference_exposure: int = 0) -> tuple[RelativeFit, ...]:
    """Read a ``_shifts.log``.

    Parameters
    ----------
    text : the file's content.
    names : dataset of each file name.
    reference_exposure : index of the exposure that the others are matched to.

    Returns
    -------
    tuple of RelativeFit
        In the file's order. A row that grizli rejected is written twice, first behind ``# !``, then with shifts of
        zero: it becomes ``rejected`` with the numbers of the first. ``rms_x``, ``rms_y`` are the numbers of the log,
        which grizli computes as the standard deviation of the matches over the root of their number.
    """
    fits: list[RelativeFit] = []
    rejected: dict[str, RelativeFit] = {}
    for line in text.splitlines():
        failed = line.startswith(_FAILED_ROW)
        if line.startswith("#") and not failed:
            continue
        cells = line.removeprefix(_FAILED_ROW).split()
        if len(cells) != 8 or cells[0] not in names:
            continue
        dataset = names[cells[0]]
        dx, dy, rotation, scale = (float(c) for c in cells[1:5])
        rms_x, rms_y = float(cells[6]), float(cells[7])
        fit = RelativeFit(dataset, "matched", dx, dy, rotation, scale, int(cells[5]), rms_x, rms_y)
        if failed:
            rejected[dataset] = _with_role(fit, "rejected")
        elif dataset in rejected:
            fits.append(rejected[dataset])
        elif len(fits) == reference_exposure and dx == dy == rms_x == rms_y == 0:
            fits.append(_with_role(fit, "anchor"))
        else:
            fits.append(fit)
    return tuple(fits)


def _with_role(fit: RelativeFit, role: str) -> RelativeFit:
    return RelativeFit(fit.dataset, role, fit.dx, fit.dy, fit.rotation_deg, fit.scale, fit.n, fit.rms_x, fit.rms_y)


def parse_wcs_log(text: str) -> WcsRow | None:
    """Read the last row of a ``_wcs.log``; None where there is none, or none that was fitted."""
    rows = []
    for line in text.splitlines():
        cells = line.split()
        if line.startswith("#") or len(cells) != 7:
            continue
        dx, dy, rotation, scale, rms = (float(c) for c in cells[1:6])
        rows.append(WcsRow(dx, dy, rotation, scale, rms, int(cells[6])))
    if not rows or (rows[-1].n == _USE_GUESS_N and rows[-1].rms == 0):
        return None
    return rows[-1]


def absolute_fit(row: WcsRow, reference: str, kind: str, pixel_scale_mas: float) -> AbsoluteFit:
    """The contract's fit from grizli's row; ``rms`` becomes the deviation per axis (see `RADIAL_NMAD`)."""
    return AbsoluteFit(
        reference=reference,
        kind=kind,
        dx=row.dx,
        dy=row.dy,
        rotation_deg=row.rotation,
        scale=row.scale,
        n=row.n,
        rms=row.rms / RADIAL_NMAD,
        pixel_scale_mas=pixel_scale_mas,
        reported_rms=row.rms,
    )


def find_degradations(
    lines: Iterable[str],
    association: str,
    names: Mapping[str, str],
    services_off: Iterable[str] = (),
) -> tuple[Degradation, ...]:
    """Everything that grizli said was missing while it went on, once for each product and thing.

    Parameters
    ----------
    lines : the log, in order: what doesn't name its exposure belongs to the one that the log is at.
    association : owner of what no exposure owns.
    names : dataset of each file stem (file name without ``_rate.fits``).
    services_off : names of what the survey file switched off on purpose: recorded with ``intended``.
    """
    off = frozenset(services_off)
    found: dict[tuple[str, str], Degradation] = {}
    unknown: list[str] = []
    swallowed: list[str] = []
    at: str | None = None
    for raw in lines:
        line = raw.strip()
        if not line:
            continue
        at = _exposure_at(line, names, at)
        hit = False
        for pattern in DEGRADATIONS:
            match = re.search(pattern.regex, line)
            if not match:
                continue
            hit = True
            for product in _owners(match, association, names, pattern.per_exposure, at):
                why = f"{pattern.meaning} ({_shorten(line)})"
                found.setdefault((product, pattern.what), Degradation(product, pattern.what, why, pattern.what in off))
            break
        if hit or any(re.search(regex, line) for regex, _ in HARMLESS):
            continue
        if re.search(SWALLOWED, line):
            swallowed.append(line)
        elif any(re.search(regex, line) for regex in SUSPICIOUS):
            unknown.append(line)
    if not STEPS_WITH_TRACEBACK & {what for _, what in found}:
        unknown += swallowed
    if unknown:
        key = (association, "unrecognised_message")
        found[key] = Degradation(*key, _shorten("; ".join(dict.fromkeys(unknown))), "unrecognised_message" in off)
    return tuple(found[key] for key in sorted(found))


def _exposure_at(line: str, names: Mapping[str, str], before: str | None) -> str | None:
    """The dataset that the log is at after this line."""
    for regex in EXPOSURE_STARTS:
        match = re.search(regex, line)
        if match:
            return names.get(match.group("file").rpartition("/")[2], before)
    return None if any(re.search(regex, line) for regex in EXPOSURES_END) else before


def _owners(
    match: re.Match[str], association: str, names: Mapping[str, str], per_exposure: bool, at: str | None
) -> Iterable[str]:
    stem = (match.groupdict().get("file") or "").rpartition("/")[2]
    if stem in names:
        return (names[stem],)
    if not per_exposure:
        return (association,)
    return (at,) if at is not None else tuple(names.values())


def _shorten(line: str, limit: int = 300) -> str:
    return line if len(line) <= limit else line[: limit - 3] + "..."


def alignment_failure(lines: Iterable[str]) -> str | None:
    """Why alignment gave up, in words; None where the log names no such cause."""
    text = list(lines)
    for regex, meaning in ALIGNMENT_FAILURES:
        for line in text:
            match = re.search(regex, line)
            if match:
                return f"{meaning} ({_shorten(match.group(0))})"
    return None


def last_meaningful_lines(text: str, n: int = 12) -> str:
    """The last lines of a log that say something, for an error's message."""
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for line in lines if line.strip() and not re.fullmatch(r"[\s#!=*-]*", line)]
    return "\n".join(kept[-n:])


def last_exception(text: str) -> str | None:
    """The last exception that a log shows (``ValueError: ...``), also where grizli printed it behind ``# !``."""
    found = None
    for line in text.splitlines():
        match = re.match(_EXCEPTION, line)
        if match:
            found = (match.group(1) + (match.group(2) or "")).strip()
    return found
