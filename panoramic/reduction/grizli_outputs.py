"""Finds in what grizli leaves what no line of its log says: skipped steps, missing references, frames half empty.

Put here the limits and keywords, and functions from product files to typed degradations. Keep out what the log says
(`grizli_logs.py`), and refusals: a product that can't be right is no degradation (`grizli_products.verify_exposure`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from panoramic.reduction.base import Degradation

USABLE_AREA = 0.8
"""Smallest share of an exposure's pixels with weight that nobody needs to hear of. Good exposures of the detectors have
0.93-0.98; one of four amplifiers less leaves 0.7."""

PLANES = ("SCI", "ERR", "WHT", "DQ")


class StepKeyword(NamedTuple):
    """A keyword of the primary header by which jwst says how a step ended.

    ``due`` marks steps of the reduction itself: without the keyword they were never run. The others belong to the
    archive's own pipeline, of which old files lack some keywords.
    """

    keyword: str
    what: str
    meaning: str
    due: bool = False


STEP_KEYWORDS: tuple[StepKeyword, ...] = (
    StepKeyword("S_FLAT", "flat_field", "the flat field was not applied", due=True),
    StepKeyword("S_PHOTOM", "photometric_calibration", "counts were not converted to MJy/sr", due=True),
    StepKeyword("S_WCS", "distortion", "the detector's distortion was not applied", due=True),
    StepKeyword("S_DQINIT", "detector_calibration", "the archive did not apply the bad pixel mask"),
    StepKeyword("S_SATURA", "detector_calibration", "the archive did not flag saturation"),
    StepKeyword("S_SUPERB", "detector_calibration", "the archive did not subtract the bias"),
    StepKeyword("S_REFPIX", "detector_calibration", "the archive did not use the reference pixels"),
    StepKeyword("S_LINEAR", "detector_calibration", "the archive did not correct for non-linearity"),
    StepKeyword("S_DARK", "detector_calibration", "the archive did not subtract the dark current"),
    StepKeyword("S_JUMP", "jump_detection", "the archive did not look for cosmic rays in the ramp"),
)

# The references without which a reduction starts all the same.
REFERENCES: Mapping[str, tuple[str, str]] = {
    "area": ("pixel_area", "there is no map of the pixels' areas"),
    "filteroffset": ("filter_offset", "the filter's shift on the detector, up to 2 pixels, is unknown"),
}


def output_degradations(
    folder: Path,
    association: str,
    exposures: Mapping[str, str],
    image: str | None = None,
    weight: str | None = None,
    services_off: Iterable[str] = (),
) -> tuple[Degradation, ...]:
    """What the products of one association lack, by their own headers and planes.

    Parameters
    ----------
    folder : where the products lie.
    association : owner of what no exposure owns.
    exposures : file name of each dataset, inside ``folder``.
    image, weight : the association's drizzled image and weight; not looked at where there is none.
    services_off : names of what the survey file switched off on purpose: recorded with ``intended``.

    Returns
    -------
    tuple of Degradation
        One for each product and thing, sorted.

    Raises
    ------
    OSError
        A product that was written can't be read.
    """
    from astropy.io import fits

    found: list[Degradation] = []
    off = frozenset(services_off)
    for dataset, name in sorted(exposures.items()):
        with fits.open(folder / name) as hdus:
            lacks = [*header_lacks(hdus[0].header), *plane_lacks(hdus)]
        found += [Degradation(dataset, what, why, what in off) for what, why in lacks]
    if image is not None and weight is not None:
        why = image_lacks(fits.getdata(folder / image), fits.getdata(folder / weight))
        if why:
            found.append(Degradation(association, "drizzled_image", why, "drizzled_image" in off))
    return merge_degradations(found)


def reference_degradations(
    references: Mapping[str, str], datasets: Iterable[str], services_off: Iterable[str] = ()
) -> tuple[Degradation, ...]:
    """What the exposures lack because CRDS has no such reference file for them. grizli says nothing of it.

    Parameters
    ----------
    references : file name of each type of reference that CRDS selected, as the child process found them.
    datasets : the association's exposures; CRDS selects by detector, filter and pupil, so they all lack it.
    services_off : names of what the survey file switched off on purpose: recorded with ``intended``.
    """
    off, names = frozenset(services_off), list(datasets)
    found = [
        Degradation(dataset, what, f"{meaning} (CRDS has no {kind} reference file)", what in off)
        for kind, (what, meaning) in REFERENCES.items()
        if kind not in references
        for dataset in names
    ]
    return merge_degradations(found)


def header_lacks(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, why) of each step that the header doesn't call complete, and of a pointing that was only planned."""
    lacks = []
    for step in STEP_KEYWORDS:
        value = str(header.get(step.keyword, "")).strip().upper()
        if value not in ("", "COMPLETE") or (step.due and not value):
            lacks.append((step.what, f"{step.meaning} ({step.keyword} = {value or 'absent'})"))
    if str(header.get("ENGQLPTG", "")).strip().upper() == "PLANNED":
        lacks.append(("measured_pointing", "the exposure has its planned pointing only (ENGQLPTG = PLANNED)"))
    return lacks


def plane_lacks(hdus: Any) -> list[tuple[str, str]]:
    """(what, why) of missing planes, and of a frame of which a large part is not used."""
    names = {hdu.name for hdu in hdus}
    missing = [name for name in PLANES if name not in names]
    if missing:
        return [("exposure", f"it has no {', '.join(missing)} plane")]
    used = (hdus["WHT"].data > 0) & np.isfinite(hdus["SCI"].data)
    share = float(used.mean())
    if share >= USABLE_AREA:
        return []
    if share == 0:
        return [("exposure", "not one of its pixels has a value and weight")]
    void = 1 - float(np.isfinite(hdus["SCI"].data).mean())
    why = f"only {share:.0%} of its pixels are used (limit {USABLE_AREA:.0%}); {void:.0%} have no value"
    return [("usable_area", f"{why}, {1 - share - void:.0%} are flagged" if 1 - share - void > 0.005 else why)]


def image_lacks(image: Any, weight: Any) -> str | None:
    """What is wrong with the drizzled image; None where it can be used."""
    if np.shape(image) != np.shape(weight):
        return f"image {np.shape(image)} and weight {np.shape(weight)} differ in shape"
    weighted = np.asarray(weight) > 0
    if not weighted.any():
        return "not one pixel of the drizzled image has weight"
    lost = float((~np.isfinite(np.asarray(image)[weighted])).mean())
    return f"{lost:.1%} of the drizzled image's pixels with weight have no value" if lost > 0 else None


def merge_degradations(*groups: Iterable[Degradation]) -> tuple[Degradation, ...]:
    """One for each product and thing; where two sources or two steps say why, both are kept. Sorted."""
    merged: dict[tuple[str, str], Degradation] = {}
    for entry in (entry for group in groups for entry in group):
        key = (entry.product, entry.what)
        first = merged.get(key)
        if first is not None and entry.why not in first.why:
            entry = Degradation(*key, f"{first.why}; {entry.why}", first.intended or entry.intended)
        elif first is not None:
            entry = first
        merged[key] = entry
    return tuple(merged[key] for key in sorted(merged))
