"""What is known of an exposure's pointing before it is measured, such as from the visit's other detectors.

Put here the statement of that knowledge and how a measurement is weighed against it. Keep out where it comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from panoramic.errors import InputError
from panoramic.footprints import ARCMIN

_ARCSEC = ARCMIN / 60
# a prior that is wrong must not outweigh what was seen: its errors are taken as no less than this part of the data's
_SMALLEST_PART_OF_MEASURED = 0.85
# chance of so large a disagreement, that of 4 standard errors in one number
_DISAGREEMENT_CHANCE = 6.33e-5
# of chi squared of the shift, with two degrees of freedom: beyond it (11 %) the combined errors grow with the
# disagreement, so that a prior off by less than what can be noticed does no harm
_USUAL_DISAGREEMENT = 4.5


@dataclass(frozen=True)
class PointingKnowledge:
    """Expected catalogue minus reference at the centre of the footprint, as `Solution` would state it.

    Parameters
    ----------
    dra, ddec : shift, mas, positive where the catalogue lies to the east and north.
    rotation_deg : turn of the catalogue against the reference, positive from north to east.
    covariance : (3, 3) of the three, in mas, mas and deg; symmetric and positive definite.

    Raises
    ------
    InputError
        A number that is not finite, or a covariance that is none.
    """

    dra: float
    ddec: float
    rotation_deg: float
    covariance: np.ndarray = field(compare=False)

    def __post_init__(self) -> None:
        matrix = np.asarray(self.covariance, float)
        if not np.isfinite([self.dra, self.ddec, self.rotation_deg]).all():
            raise InputError("a pointing prior needs a finite shift and rotation; leave the prior out where unknown")
        # scaled, because mas and deg differ by orders of magnitude
        scale = np.sqrt(np.abs(np.diag(matrix))) if matrix.shape == (3, 3) else np.zeros(3)
        if not (np.isfinite(matrix).all() and (scale > 0).all() and np.allclose(matrix, matrix.T)) or (
            np.linalg.eigvalsh(matrix / np.outer(scale, scale)).min() <= 0
        ):
            raise InputError("the covariance of a pointing prior must be (3, 3), symmetric and positive definite")
        object.__setattr__(self, "covariance", matrix)

    @property
    def mean(self) -> np.ndarray:
        """East and north in arcsec, rotation in rad, (3,)."""
        return np.array([self.dra / 1000, self.ddec / 1000, math.radians(self.rotation_deg)])

    @property
    def variance(self) -> np.ndarray:
        """Covariance of `mean`, (3, 3)."""
        units = np.array([1e-3, 1e-3, math.radians(1)])
        return self.covariance * np.outer(units, units)

    def reach(self, sigmas: float) -> tuple[float, float]:
        """How far from the mean a shift (arcsec) and a rotation (rad) can lie within so many standard errors."""
        largest = math.sqrt(float(np.linalg.eigvalsh(self.variance[:2, :2]).max()))
        return sigmas * largest, sigmas * math.sqrt(float(self.variance[2, 2]))


@dataclass(frozen=True)
class Combined:
    """Measurement and prior together: correction of the measured (3,), covariance (3, 3), and how well they agree."""

    solution: np.ndarray
    covariance: np.ndarray
    chi2: float
    agree: bool


def combine(measured: np.ndarray, covariance: np.ndarray, prior: PointingKnowledge) -> Combined:
    """Weighted mean of what was measured alone (arcsec, arcsec, rad, with its covariance) and the prior.

    Where the two differ by more than they should, the errors grow: steeper than with the Particle Data Group's scale
    factor, because a prior that is wrong is not one measurement of many.
    """
    from scipy.stats import chi2 as chi_squared

    expected, variance = prior.mean, prior.variance
    seen = float(np.sqrt(np.trace(covariance[:2, :2]))) * _SMALLEST_PART_OF_MEASURED
    known = float(np.sqrt(np.trace(variance[:2, :2])))
    weakened = variance * max(1.0, (seen / known) ** 2)
    difference = measured - expected
    size = float(difference @ np.linalg.solve(covariance + variance, difference))
    apart = float(difference[:2] @ np.linalg.solve((covariance + variance)[:2, :2], difference[:2]))
    gain = covariance @ np.linalg.inv(covariance + weakened)
    together = covariance - gain @ covariance
    together = (together + together.T) / 2 * max(1.0, apart / _USUAL_DISAGREEMENT) ** 2
    return Combined(measured - gain @ difference, together, size, bool(chi_squared.sf(size, 3) > _DISAGREEMENT_CHANCE))
