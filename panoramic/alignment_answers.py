"""The answers of a measurement against a reference: a solution, or the cause why there is none.

Put here the typed answers and the sentences of refusals. Keep out how they are found (`panoramic.alignment_solution`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from panoramic.alignment_fit import variance_at
from panoramic.alignment_search import Pile, unrotated
from panoramic.footprints import ARCMIN, deproject, project

_ARCSEC = ARCMIN / 60


class Cause(StrEnum):
    """Why there is no solution."""

    TOO_FEW_SOURCES = "too few sources"
    TOO_FEW_REFERENCES = "too few reference sources"
    NO_PEAK = "no peak above chance"
    AMBIGUOUS = "ambiguous"
    SCATTER_TOO_LARGE = "scatter too large"
    BEYOND_SEARCH_RADIUS = "offset beyond the search radius"
    BEYOND_LARGEST_ROTATION = "rotation beyond the largest allowed"
    ERROR_TOO_LARGE = "predicted error too large"
    DISAGREES_WITH_PRIOR = "disagrees with what is known of the pointing"


@dataclass(frozen=True)
class Refusal:
    """No solution; ``text`` says why in a sentence, ``numbers`` what was counted or measured against which limit."""

    cause: Cause
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Solution:
    """Catalogue minus reference: a shift and a rotation about the field's centre.

    Parameters
    ----------
    ra, dec : the field's centre, deg, to which shift and errors belong.
    dra, ddec : shift there, mas, positive where the catalogue lies to the east (a great circle's angle) and north.
    err_ra, err_dec : predicted standard error of the two, mas, from the larger of stated and measured scatter.
    corner_err_ra, corner_err_dec : the same at the corner where it is largest, the rotation's error included.
    rotation_deg, rotation_err_deg : turn of the catalogue against the reference, positive from north to east.
    rotation_mas : what the rotation moves the farthest corner by.
    scale_mas, scale_err_mas : what the scale moves the farthest corner by, positive where the catalogue is larger.
    scale : the catalogue's scale over the reference's, less 1, where it is part of the solution (100 sources and 5
        standard errors); else 0, and ``scale_mas`` tells what is left in the residuals.
    median_ra, median_dec : median offset of the matched pairs, mas, rotation not taken out.
    scatter_ra, scatter_dec : standard deviation of one pair about the solution, mas.
    n : matched sources, each source and each reference once.
    chance : expected number of piles as high as this one, for all trials, if nothing matched.
    contrast : height of the pile over that of the next solution.
    corner_arcsec : distance of the farthest corner from the centre.
    covariance : of east, north (arcsec), rotation (rad) and scale at the centre, (4, 4).
    with_prior : whether knowledge of the pointing is part of the solution.
    index, ref_index : rows of the given catalogues that were matched; not part of comparisons, like the covariance.
    """

    ra: float
    dec: float
    dra: float
    ddec: float
    err_ra: float
    err_dec: float
    corner_err_ra: float
    corner_err_dec: float
    rotation_deg: float
    rotation_err_deg: float
    rotation_mas: float
    scale_mas: float
    scale_err_mas: float
    median_ra: float
    median_dec: float
    scatter_ra: float
    scatter_dec: float
    n: int
    chance: float
    contrast: float
    corner_arcsec: float
    scale: float
    covariance: np.ndarray = field(compare=False, repr=False)
    index: np.ndarray = field(compare=False, repr=False)
    ref_index: np.ndarray = field(compare=False, repr=False)
    with_prior: bool = False

    def corrected(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the catalogue (deg, any shape) brought to the frame of the reference."""
        xi, eta = project(ra, dec, self.ra, self.dec)
        plane = unrotated(np.stack([xi, eta], axis=-1), math.radians(self.rotation_deg)) / (1 + self.scale)
        plane = plane - np.array([self.dra, self.ddec]) / 1000 * _ARCSEC
        return deproject(plane[..., 0], plane[..., 1], self.ra, self.dec)

    def error_at(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standard error of the corrected position, mas to the east and to the north, at positions in deg."""
        xi, eta = project(ra, dec, self.ra, self.dec)
        variance = variance_at(np.stack([xi, eta], axis=-1) / _ARCSEC, self.covariance)
        return 1000 * np.sqrt(variance[..., 0]), 1000 * np.sqrt(variance[..., 1])


def too_few(cause: Cause, found: int, needed: int) -> Refusal:
    """Refusal for want of sources, of either catalogue."""
    what = "sources" if cause is Cause.TOO_FEW_SOURCES else "distinct reference sources around the field"
    return Refusal(cause, f"only {found} {what}; {needed} are needed", {"n": found, "limit": needed})


def no_peak(pile: Pile | None, needed: int, log_limit: float) -> Refusal:
    """Refusal because nothing stands above chance."""
    if pile is None:
        return Refusal(Cause.NO_PEAK, "no pair of sources within the search radius", {"n": 0, "limit": needed})
    chance, limit = math.exp(min(max(pile.log_chance, -600.0), 20.0)), math.exp(log_limit)
    numbers = {"n": pile.n, "chance": chance, "limit": limit}
    if pile.log_chance <= log_limit:
        return Refusal(
            Cause.NO_PEAK, f"fewer than {needed} sources agree on one solution", {"n": pile.n, "limit": needed}
        )
    text = f"{pile.n} sources agree, but chance makes {chance:.2g} such agreements (limit {limit:g})"
    return Refusal(Cause.NO_PEAK, text, numbers)


def beyond(pile: Pile, shift: np.ndarray, radius: float) -> Refusal:
    """Refusal because the agreement lies outside of what was searched (arcsec)."""
    text = f"{pile.n} sources agree on a shift of {np.hypot(*shift):.2f} arcsec, beyond the search radius of {radius:g}"
    numbers = {"n": pile.n, "dra_mas": 1000 * shift[0], "ddec_mas": 1000 * shift[1], "limit": 1000 * radius}
    return Refusal(Cause.BEYOND_SEARCH_RADIUS, text, numbers)
