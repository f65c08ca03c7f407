"""Corrections of an exposure's pointing as rotations of the sky, and what one detector's says of another's.

Put here rigid rotations, and the priors that the detectors of a visit give each other: they share the telescope's
pointing error. Keep out how a correction is measured (an engine, or `panoramic.alignment_solution`), and headers.

Method: each measured correction is a rotation vector of the whole sky, the same one for every detector of an exposure
but for errors of the detectors' places in the focal plane. They are combined by generalised least squares, and carried
to a detector as the best linear unbiased prediction of its own rotation (C. R. Henderson, Biometrics 31, 423, 1975).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from panoramic.errors import InputError
from panoramic.footprints import east_north, positions_of, project, unit_vectors
from panoramic.reduction.base import Pointing, PointingPrior

Array = NDArray[np.float64]

MAS = np.pi / 180 / 3.6e6
DITHER_ERROR_MAS = 5.0
"""Raw pointing from exposure to exposure of a visit, 1 sigma per axis, mas (1.5-3 seen)."""
DITHER_ROLL_ERROR_DEG = 0.001
_OUTLIER_CHANCE = 6.3e-5  # of 4 sigma, two-sided
_FEWEST_TO_LEAVE_OUT = 3
_VISIT_LETTERS = 13  # jw, program, observation, visit


@dataclass(frozen=True)
class KnownPointing:
    """A measured correction of an accepted exposure.

    ``covariance`` is (3, 3), of (east mas, north mas, roll deg) at the detector's centre.
    """

    dataset: str
    pointing: Pointing
    covariance: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        numbers = np.array([self.pointing.ra, self.pointing.dec, *self.pointing.shift_mas, self.pointing.roll_deg])
        covariance = np.asarray(self.covariance, float)
        good = covariance.shape == (3, 3) and np.isfinite(covariance).all() and np.isfinite(numbers).all()
        if not good or not np.allclose(covariance, covariance.T) or np.linalg.eigvalsh(covariance).min() < -1e-12:
            raise InputError(f"{self.dataset}: a pointing needs finite numbers and a 3 x 3 covariance matrix")


# --- rotations -----------------------------------------------------------------------------


def tangent_axes(ra: float, dec: float) -> Array:
    """Unit vectors to the east, to the north and to the point itself, as columns, shape (3, 3)."""
    east, north = east_north(np.asarray(ra), np.asarray(dec))
    return np.stack([east, north, unit_vectors(ra, dec)], axis=1)


def rotation_of(pointing: Pointing) -> Array:
    """The rotation of the sphere, shape (3, 3), that turns unit vectors of the archive's positions to aligned ones."""
    axes = tangent_axes(pointing.ra, pointing.dec)
    return _shifting(axes, np.array(pointing.shift_mas) * MAS) @ _turning(axes, pointing.roll_deg)


def pointing_at(rotation: Array, ra: float, dec: float) -> Pointing:
    """What a rotation means for a detector whose centre is at ``ra``, ``dec`` (deg); the inverse of `rotation_of`."""
    axes = tangent_axes(ra, dec)
    moved = axes.T @ rotation @ axes[:, 2]
    sine = float(np.hypot(moved[0], moved[1]))
    shift = moved[:2] * (np.arctan2(sine, moved[2]) / sine if sine > 0 else 1.0)
    turned = axes.T @ _shifting(axes, shift).T @ rotation @ axes[:, 0]
    roll = -np.degrees(np.arctan2(turned[1], turned[0]))
    return Pointing(ra, dec, (float(shift[0] / MAS), float(shift[1] / MAS)), float(roll))


def measured_pointing(
    before: tuple[ArrayLike, ArrayLike], after: tuple[ArrayLike, ArrayLike], ra: float, dec: float
) -> Pointing:
    """The correction at a detector's centre from positions of its pixels before and after it.

    Parameters
    ----------
    before, after : RA and Dec, deg, of the same pixels, shape (N,); a scale in the difference is left out.
    ra, dec : the centre, before, deg.
    """
    z, moved = _on_plane(before, ra, dec), _on_plane(after, ra, dec)
    # least squares of moved = shift + slope * z, whose angle is the rotation from east to north
    slope = ((z - z.mean()).conj() * (moved - moved.mean())).sum() / (np.abs(z - z.mean()) ** 2).sum()
    shift = moved.mean() - slope * z.mean()
    shift *= np.arctan(abs(shift)) / abs(shift) if shift else 1.0  # from the plane to an angle
    roll = -float(np.degrees(np.angle(slope)))
    return Pointing(ra, dec, (float(shift.real / MAS), float(shift.imag / MAS)), roll)


def moved_position(rotation: Array, ra: float, dec: float) -> tuple[float, float]:
    """RA and Dec, deg, of a position after a rotation."""
    lon, lat = positions_of(rotation @ unit_vectors(ra, dec))
    return float(lon), float(lat)


def angle_change(rotation: Array, ra: float, dec: float) -> float:
    """What a rotation adds to position angles (deg) of directions at a position: its roll and the turn of north."""
    axes, there = tangent_axes(ra, dec), tangent_axes(*moved_position(rotation, ra, dec))
    north = there.T @ rotation @ axes[:, 1]
    return float(np.degrees(np.arctan2(north[0], north[1])))


def _on_plane(positions: tuple[ArrayLike, ArrayLike], ra: float, dec: float) -> NDArray[np.complex128]:
    """Gnomonic projection about a point: east + i north, radians."""
    xi, eta = project(np.asarray(positions[0], float), np.asarray(positions[1], float), ra, dec)
    return np.asarray(xi + 1j * eta)


def _rotation(vector: Array) -> Array:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_rotvec(vector).as_matrix())


def _shifting(axes: Array, shift: Array) -> Array:
    """Rotation along a great circle by ``shift`` (east, north; radians) at the point of ``axes``."""
    return _rotation(shift[0] * axes[:, 1] - shift[1] * axes[:, 0])


def _turning(axes: Array, roll_deg: float) -> Array:
    return _rotation(-np.radians(roll_deg) * axes[:, 2])


def _vector_of(pointing: Pointing) -> Array:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_matrix(rotation_of(pointing)).as_rotvec())


def _units(ra: float, dec: float) -> Array:
    """(3, 3) matrix from small (east mas, north mas, roll deg) at a position to a rotation vector in radians."""
    axes = tangent_axes(ra, dec)
    return np.stack([axes[:, 1] * MAS, -axes[:, 0] * MAS, -axes[:, 2] * np.pi / 180], axis=1)


# --- priors of a visit ---------------------------------------------------------------------


_Part = tuple[KnownPointing, ...]


@dataclass(frozen=True)
class _Errors:
    """Covariances of (east mas, north mas, roll deg): a detector's place in the focal plane, a dither's pointing."""

    detector: Array
    dither: Array


@dataclass(frozen=True)
class _Group:
    """Known corrections, and what a prediction from them is for one detector."""

    known: _Part
    errors: _Errors

    def predict(self, dataset: str, ra: float, dec: float, own: ArrayLike = 0.0) -> tuple[Array, Array]:
        """Rotation vector (radians) of a detector's exposure and its covariance.

        ``own`` : covariance of a measurement of that very exposure, added to the prediction's.
        """
        size = len(self.known)
        vectors = np.concatenate([_vector_of(k.pointing) for k in self.known])
        units = np.array([_units(k.pointing.ra, k.pointing.dec) for k in self.known])
        target = _units(ra, dec)
        names = [k.dataset for k in self.known]
        common = np.einsum("iab,ijbc,jdc->iajd", units, self._common(names, names), units).reshape(3 * size, 3 * size)
        shared = np.einsum("iab,ijbc,dc->iadj", units, self._common(names, [dataset]), target).reshape(3 * size, 3)
        measured = np.einsum("iab,ibc,idc->iad", units, np.array([k.covariance for k in self.known], float), units)
        for i in range(size):
            common[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] += measured[i]
        design = np.tile(np.eye(3), (size, 1))
        # radians squared are tiny: scaled, so that the matrix stays regular
        weights = np.linalg.inv(common / MAS**2) / MAS**2
        spread = np.linalg.inv(design.T @ weights @ design)
        mean = spread @ design.T @ weights @ vectors
        prediction = mean + shared.T @ weights @ (vectors - design @ mean)
        left = np.eye(3) - shared.T @ weights @ design
        alone = target @ (self._common([dataset], [dataset])[0, 0] + np.asarray(own, float)) @ target.T
        covariance = alone - shared.T @ weights @ shared + left @ spread @ left.T
        return np.asarray(prediction), np.asarray(covariance)

    def surprise(self, item: KnownPointing, others: _Part) -> float:
        """Chi-square, 3 degrees of freedom, of a known correction against what the others predict."""
        place = item.pointing.ra, item.pointing.dec
        vector, covariance = _Group(others, self.errors).predict(item.dataset, *place, own=item.covariance)
        inverse = np.linalg.inv(_units(*place))
        difference = inverse @ (_vector_of(item.pointing) - vector)
        return float(difference @ np.linalg.solve(inverse @ covariance @ inverse.T, difference))

    def _common(self, first: Sequence[str], second: Sequence[str]) -> Array:
        """Covariances, shape (N, M, 3, 3), of what exposures have in common besides the visit's pointing error."""
        parts = []
        for name_of in (detector_of, exposure_of):
            a, b = (np.array([name_of(dataset) for dataset in names]) for names in (first, second))
            parts.append((a[:, None] == b[None, :])[:, :, None, None])
        return np.asarray(parts[0] * self.errors.detector + parts[1] * self.errors.dither)


@dataclass(frozen=True)
class _Agreement:
    """Known corrections that agree, names of those that don't, the factor by which the former scatter too much."""

    group: _Group
    left_out: tuple[str, ...]
    excess: float


def exposure_of(dataset: str) -> str:
    """The dataset's name without its detector, e.g. ``jw02514162001_03201_00003``."""
    return dataset.rsplit("_", 1)[0]


def detector_of(dataset: str) -> str:
    """The last part of a dataset's name, in lower case."""
    return dataset.rsplit("_", 1)[-1].lower()


def visit_of(dataset: str) -> str:
    """The dataset's program, observation and visit, e.g. ``jw02514162001``."""
    return dataset[:_VISIT_LETTERS]


def visit_priors(
    wanted: Mapping[str, tuple[float, float]],
    known: Sequence[KnownPointing],
    offset_error_mas: float,
    roll_error_deg: float,
    *,
    dither_error_mas: float = DITHER_ERROR_MAS,
) -> tuple[PointingPrior, ...]:
    """What the visit's accepted exposures say of the pointing of others, before these are aligned.

    Other detectors of the very same exposure tell, if there are any; else all other exposures of the visit do, with
    the scatter from dither to dither added. A detector (of the visit: an exposure) that differs by more than 4 sigma
    from what the others predict is left out, where at least two others are left; where nothing can be left out, the
    covariance grows by the excess of chi-square.

    Parameters
    ----------
    wanted : dataset -> RA and Dec (deg) of the detector's centre in the archive's pointing.
    known : measured corrections, with all errors of their measurement.
    offset_error_mas, roll_error_deg : how well a detector's place in the focal plane is known, 1 sigma, per axis; of
        the known and of the wanted detector alike.
    dither_error_mas : scatter of the raw pointing from exposure to exposure, per axis.

    Returns
    -------
    One prior for each wanted dataset about which something is known, in the order of ``wanted``; a dataset's own
    correction is not used for itself.

    Raises
    ------
    InputError
        An error is not positive, or a dataset is given twice.
    """
    if not min(offset_error_mas, roll_error_deg, dither_error_mas) > 0:
        raise InputError("visit priors: offset_error_mas, roll_error_deg and dither_error_mas must be above 0")
    if len({k.dataset for k in known}) < len(known):
        raise InputError("visit priors: a dataset has two known pointings; give the accepted one alone")
    detector = np.diag([offset_error_mas**2, offset_error_mas**2, roll_error_deg**2])
    dither = np.diag([dither_error_mas**2, dither_error_mas**2, DITHER_ROLL_ERROR_DEG**2])
    errors, nothing = _Errors(detector, dither), np.zeros((3, 3))
    ordered = sorted(known, key=lambda k: k.dataset)
    priors = []
    agreeing: dict[tuple[str, ...], _Agreement] = {}
    for dataset, (ra, dec) in wanted.items():
        others = [k for k in ordered if k.dataset != dataset and visit_of(k.dataset) == visit_of(dataset)]
        same = [k for k in others if exposure_of(k.dataset) == exposure_of(dataset)]
        if not others:
            continue
        key = tuple(k.dataset for k in same or others)
        if key not in agreeing:
            exposures = [tuple(g) for _, g in groupby(others, key=lambda k: exposure_of(k.dataset))]
            agreeing[key] = (
                _agreeing([(k,) for k in same], _Errors(detector, nothing)) if same else _agreeing(exposures, errors)
            )
        priors.append(_prior(dataset, ra, dec, agreeing[key], "exposure" if same else "visit"))
    return tuple(priors)


def _prior(dataset: str, ra: float, dec: float, agreement: _Agreement, basis: str) -> PointingPrior:
    vector, covariance = agreement.group.predict(dataset, ra, dec)
    pointing = pointing_at(_rotation(vector), ra, dec)
    inverse = np.linalg.inv(_units(ra, dec))
    covariance = inverse @ covariance @ inverse.T * agreement.excess
    return PointingPrior(
        dataset=dataset,
        shift_mas=pointing.shift_mas,
        roll_deg=pointing.roll_deg,
        covariance=tuple(tuple(float(v) for v in row) for row in (covariance + covariance.T) / 2),
        basis=basis,
        sources=tuple(k.dataset for k in agreement.group.known),
        left_out=agreement.left_out,
    )


def _agreeing(parts: Sequence[_Part], errors: _Errors) -> _Agreement:
    """Leave out, one after the other, what the others don't predict."""
    from scipy.stats import chi2

    limit = float(chi2.isf(_OUTLIER_CHANCE, 3))
    remaining, left_out = list(parts), list[str]()
    while True:
        group = _Group(tuple(k for part in remaining for k in part), errors)
        surprises = [
            max(group.surprise(item, tuple(k for k in group.known if k not in part)) for item in part)
            for part in remaining
            if len(remaining) > 1
        ]
        worst = max(surprises, default=0.0)
        if worst <= limit or len(remaining) < _FEWEST_TO_LEAVE_OUT:
            return _Agreement(group, tuple(sorted(left_out)), worst / 3 if worst > limit else 1.0)
        left_out += [k.dataset for k in remaining.pop(surprises.index(worst))]
