"""Regions of scattered light (claws, dragon's breath, glints) that a person has drawn: flagged, not subtracted.

Put here polygons and what they cover. Keep out the survey file's reading (`panoramic.survey`) and light whose shape is
known (`wisps.py`).

A region names the exposures that it is meant for by a pattern, and its corners either on the detector or on the sky.
Claws stand still on the detector while a star outside the field moves little; glints follow the sky.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError

Frame = Literal["pixel", "sky"]
SkyToPixel = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class ScatteredLight:
    """A polygon that no pixel is to be used in.

    Parameters
    ----------
    match : pattern of the datasets that it is meant for, e.g. ``jw02514162001_*_nrcb1``.
    vertices : corners: 0-based pixels (x, y), or (ra, dec) in deg, ICRS. The last one joins the first.
    frame : ``pixel`` or ``sky``.
    note : what it is, for people.
    """

    match: str
    vertices: tuple[tuple[float, ...], ...]
    frame: Frame = "pixel"
    note: str = ""

    def __post_init__(self) -> None:
        name = f"region of scattered light for {self.match!r}"
        if not self.match:
            raise InputError(
                "a region of scattered light names no exposures: give 'match', e.g. 'jw02514162001_*_nrcb1'"
            )
        if self.frame not in get_args(Frame):
            raise InputError(f"{name}: frame {self.frame!r} is not one of {', '.join(get_args(Frame))}")
        if len(self.vertices) < 3 or any(len(v) != 2 for v in self.vertices):
            raise InputError(f"{name}: give at least three corners of two numbers each, not {self.vertices}")
        if not np.isfinite(np.array(self.vertices, float)).all():
            raise InputError(f"{name}: its corners must be finite numbers")
        if self.frame == "sky" and not all(0 <= ra < 360 and -90 <= dec <= 90 for ra, dec in self.vertices):
            raise InputError(f"{name}: corners on the sky are right ascension in [0, 360) and declination in deg")


def parse_regions(entries: Iterable[Mapping[str, Any]]) -> tuple[ScatteredLight, ...]:
    """Regions from a survey file's entries.

    Parameters
    ----------
    entries : each with ``match``, ``vertices`` and perhaps ``frame`` and ``note``.

    Raises
    ------
    InputError
        A key is unknown or missing, or a value impossible; the message names the entry.
    """
    out = []
    for number, entry in enumerate(entries, start=1):
        unknown = set(entry) - {"match", "vertices", "frame", "note"}
        missing = {"match", "vertices"} - set(entry)
        if unknown or missing:
            what = f"does not know {', '.join(sorted(unknown))}" if unknown else f"lacks {', '.join(sorted(missing))}"
            raise InputError(f"region of scattered light {number} {what}: its keys are match, vertices, frame, note")
        try:
            vertices = tuple(tuple(float(v) for v in corner) for corner in entry["vertices"])
        except (TypeError, ValueError):
            raise InputError(
                f"region of scattered light {number}: vertices must be pairs of numbers, not {entry['vertices']!r}"
            ) from None
        out.append(
            ScatteredLight(
                str(entry["match"]),
                vertices,
                entry.get("frame", "pixel"),
                str(entry.get("note", "")),
            )
        )
    return tuple(out)


def flag_regions(
    regions: Sequence[ScatteredLight], dataset: str, shape: tuple[int, int], pixels: SkyToPixel | None = None
) -> NDArray[np.bool_]:
    """Pixels of an exposure that its regions cover.

    Parameters
    ----------
    regions : of the survey; those that don't match the dataset are left out.
    dataset : the exposure.
    shape : (rows, columns).
    pixels : from (ra, dec) in deg to 0-based pixels (x, y); needed for regions on the sky.

    Returns
    -------
    array of bool, (rows, columns)
        A pixel is covered where its centre is inside (even-odd rule).

    Raises
    ------
    InputError
        A region on the sky matches and ``pixels`` is not given.
    """
    out = np.zeros(shape, bool)
    for region in regions:
        if not fnmatch.fnmatchcase(dataset, region.match):
            continue
        x, y = np.array(region.vertices, float).T
        if region.frame == "sky":
            if pixels is None:
                raise InputError(
                    f"{dataset}: a region of scattered light lies on the sky, but the exposure has no geometry"
                )
            x, y = (np.asarray(v, float) for v in pixels(x, y))
            # what is behind the telescope projects nowhere
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                continue
        out |= polygon_mask(x, y, shape)
    return out


def polygon_mask(x: NDArray[np.float64], y: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre is inside a polygon, by its crossings with each row.

    Parameters
    ----------
    x, y : corners, 0-based pixels; the last one joins the first.
    shape : (rows, columns).
    """
    out = np.zeros(shape, bool)
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    columns = np.arange(shape[1])
    for row in range(max(0, int(np.ceil(y.min()))), min(shape[0], int(np.floor(y.max())) + 1)):
        # half-open edges: a corner on the row's line counts once
        crossing = (y <= row) != (y2 <= row)
        if not crossing.any():
            continue
        at = x[crossing] + (row - y[crossing]) * (x2[crossing] - x[crossing]) / (y2[crossing] - y[crossing])
        out[row] = (np.searchsorted(np.sort(at), columns, side="left") % 2).astype(bool)
    return out
