"""From pixels to the sky and back for one full-frame NIRCam exposure, in closed form.

Put here the geometry that jwst's ``assign_wcs`` documents: filter offset, distortion, velocity aberration, attitude;
and its export as TAN-SIP and as gwcs. Keep out files (`references.py`) and how a pointing is corrected
(`panoramic.alignment_solution`).

The distortion of the reference file is evaluated once on Chebyshev's nodes; its coefficients follow by the nodes' own
orthogonality, as exactly rounded sums: no matrix is inverted, so that the same file gives the same bits each time.
Pixels are 0-based, V2 and V3 arcsec, sky positions deg (ICRS).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from panoramic.errors import InputError
from panoramic.pointing import rotation_of, tangent_axes
from panoramic.reduction.base import Pointing
from panoramic.reduction.native.chebyshev import Polynomial, nodes, pair

if TYPE_CHECKING:
    from gwcs import WCS

    from panoramic.reduction.native.sip import SipFit

Array = NDArray[np.float64]
Transform = Callable[[Array, Array], tuple[ArrayLike, ArrayLike]]

SIDE = 2048
CENTRE = (SIDE - 1) / 2
REACH = SIDE / 2 + 32.0
"""Half a side of the square of pixels on which the distortion is fitted: some way beyond the detector's edges."""
DEGREE, NODES = 6, 24
POINTING_KEYWORDS = ("RA_REF", "DEC_REF", "ROLL_REF", "V2_REF", "V3_REF")
_ARCSEC = math.pi / 180 / 3600
_FARTHEST = 1.9  # in units of REACH: beyond it the distortion polynomial means nothing
_NEWTON_STEPS = 8
_SOLVED = 1e-9  # in units of REACH


@dataclass(frozen=True, eq=False)
class Distortion:
    """Pixels to V2, V3 of one detector, without a filter's offset.

    Parameters
    ----------
    values : V2 and V3, arcsec, at the nodes, shape (2, NODES, NODES), x first.
    v2, v3 : polynomials through them.
    error_mas : largest difference from the reference file's own transform, off the nodes.
    """

    values: Array
    v2: Polynomial
    v3: Polynomial
    error_mas: float

    @classmethod
    def fitted(cls, transform: Transform) -> Distortion:
        """Evaluate a transform (x, y -> V2, V3) on the nodes, and hold the polynomial against it elsewhere."""
        at = CENTRE + REACH * nodes(NODES)
        x, y = np.meshgrid(at, at, indexing="ij")
        values = np.array([np.asarray(v, float) for v in transform(x, y)])
        check = np.linspace(-0.5, SIDE - 0.5, 17)
        x, y = (v.ravel() for v in np.meshgrid(check, check))
        fitted = cls.from_values(values, 0.0)
        there = transform(x, y)
        error = np.hypot(*(a - np.asarray(b, float) for a, b in zip(fitted.at(x, y), there, strict=True)))
        return replace(fitted, error_mas=float(error.max()) * 1000)

    @classmethod
    def from_values(cls, values: Array, error_mas: float) -> Distortion:
        """The polynomials through values on the nodes."""
        v2, v3 = (Polynomial.through(plane, DEGREE, (CENTRE, CENTRE), (REACH, REACH)) for plane in values)
        return cls(values, v2, v3, error_mas)

    def at(self, x: Array, y: Array) -> tuple[Array, Array]:
        """V2 and V3, arcsec, of pixels."""
        return pair(self.v2, self.v3, x, y)

    def pixels(self, v2: Array, v3: Array) -> tuple[Array, Array]:
        """Pixels of V2, V3 by Newton's method, exact to 1e-6 px; NaN beyond some 980 pixels from the edges."""
        slopes = [p.derivative(axis) for p in (self.v2, self.v3) for axis in (0, 1)]
        x, y = np.full(np.shape(v2), CENTRE), np.full(np.shape(v3), CENTRE)
        step = np.full(np.shape(v2), np.inf)
        low, high = CENTRE - 2 * REACH, CENTRE + 2 * REACH
        for _ in range(_NEWTON_STEPS):
            a, b = self.at(x, y)
            a, b = v2 - a, v3 - b
            xx, xy, yx, yy = (slope.at(x, y) for slope in slopes)
            determinant = xx * yy - xy * yx
            dx, dy = (a * yy - b * xy) / determinant, (b * xx - a * yx) / determinant
            step = np.maximum(np.abs(dx), np.abs(dy)) / REACH
            x, y = np.clip(x + dx, low, high), np.clip(y + dy, low, high)
        far = np.maximum(np.abs(x - CENTRE), np.abs(y - CENTRE)) > _FARTHEST * REACH
        lost = far | ~(step < _SOLVED)
        return np.where(lost, np.nan, x), np.where(lost, np.nan, y)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where each pixel of an exposure looks.

    Parameters
    ----------
    distortion : of the detector.
    filter_offset : (column, row) that is added to a pixel before it, of the filter.
    v2_ref, v3_ref : the aperture's reference point, arcsec.
    va_scale : velocity aberration: ratio of the apparent to the true plate scale, about that point.
    attitude : rotation from the telescope's frame to the sky, shape (3, 3).
    """

    distortion: Distortion
    filter_offset: tuple[float, float]
    v2_ref: float
    v3_ref: float
    va_scale: float
    attitude: Array

    @classmethod
    def from_header(
        cls, header: Mapping[str, Any], distortion: Distortion, filter_offset: tuple[float, float] = (0.0, 0.0)
    ) -> Geometry:
        """The geometry by an exposure's SCI header.

        VPARITY and V3I_YANG are not read: the distortion of the reference file holds them already.

        Raises
        ------
        InputError
            A pointing keyword is absent or no finite number, or VA_SCALE is not positive.
        """
        numbers = {key: _number(header, key) for key in POINTING_KEYWORDS}
        # jwst takes an absent one as no aberration
        va_scale = _number(header, "VA_SCALE") if header.get("VA_SCALE") not in (None, "") else 1.0
        if va_scale <= 0:
            raise InputError(f"VA_SCALE is {va_scale}: the ratio of plate scales is a positive number near 1")
        v2, v3 = numbers["V2_REF"], numbers["V3_REF"]
        attitude = attitude_matrix(v2, v3, numbers["RA_REF"], numbers["DEC_REF"], numbers["ROLL_REF"])
        return cls(distortion, filter_offset, v2, v3, va_scale, attitude)

    def corrected(self, pointing: Pointing) -> Geometry:
        """The geometry after a correction of the pointing: a rigid rotation of the sky."""
        return replace(self, attitude=_product(rotation_of(pointing), self.attitude))

    @property
    def reference_pointing(self) -> tuple[float, float, float]:
        """RA_REF, DEC_REF and ROLL_REF, deg, that mean this geometry's attitude."""
        frame = tangent_axes(self.v2_ref / 3600, self.v3_ref / 3600)
        ra, dec = positions(*rotated(self.attitude, *frame[:, 2]))
        there = tangent_axes(float(ra), float(dec))
        east, north, _ = rotated(there.T, *rotated(self.attitude, *frame[:, 1]))
        return float(ra), float(dec), math.degrees(math.atan2(float(east), float(north))) % 360.0

    def vectors(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array, Array]:
        """Cartesian unit vectors of pixels on the sky, component by component, each of the pixels' shape."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        v2, v3 = self.distortion.at(x + self.filter_offset[0], y + self.filter_offset[1])
        lon = (self.v2_ref + self.va_scale * (v2 - self.v2_ref)) * _ARCSEC
        lat = (self.v3_ref + self.va_scale * (v3 - self.v3_ref)) * _ARCSEC
        return rotated(self.attitude, np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat))

    def sky(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Right ascension in [0, 360) and declination, deg, of pixels of any shape."""
        return positions(*self.vectors(x, y))

    def pixels(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
        """Pixels of sky positions (deg, any shape); NaN beyond some 980 pixels from the detector's edges."""
        ra, dec = np.broadcast_arrays(np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float)))
        return self.pixels_of_vectors(np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec))

    def pixels_of_vectors(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Pixels of Cartesian vectors on the sky, of any length; NaN far outside."""
        a, b, c = rotated(self.attitude.T, x, y, z)
        lon, lat = np.arctan2(b, a) / _ARCSEC, np.arctan2(c, np.hypot(a, b)) / _ARCSEC
        v2 = self.v2_ref + (lon - self.v2_ref) / self.va_scale
        v3 = self.v3_ref + (lat - self.v3_ref) / self.va_scale
        column, row = self.distortion.pixels(v2, v3)
        return column - self.filter_offset[0], row - self.filter_offset[1]

    def footprint(self) -> Array:
        """Corners of the detector (the outer edges of its pixels), deg, shape (4, 2)."""
        low, high = -0.5, SIDE - 0.5
        return np.stack(self.sky([low, low, high, high], [low, high, high, low]), axis=-1)

    def to_sip(self, order: int = 5) -> SipFit:
        """As a TAN projection with SIP polynomials of an order from 2 to 6, for a FITS header."""
        from panoramic.reduction.native.sip import fit_sip

        return fit_sip(self, order)

    def gwcs(self) -> WCS:
        """As a gwcs object with jwst's frames: detector, v2v3, v2v3vacorr, world."""
        from panoramic.reduction.native.gwcs_export import to_gwcs

        return to_gwcs(self)


def attitude_matrix(v2: float, v3: float, ra: float, dec: float, roll: float) -> Array:
    """Rotation from the telescope's frame to the sky, shape (3, 3).

    Parameters
    ----------
    v2, v3 : a point of the focal plane, arcsec.
    ra, dec : where on the sky it lies, deg.
    roll : position angle of the V3 axis there, deg east of north.
    """
    s, c = math.sin(math.radians(roll)), math.cos(math.radians(roll))
    # columns: V2, V3 and the line of sight, as east, north and the point itself
    turn = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    return _product(_product(tangent_axes(ra, dec), turn), tangent_axes(v2 / 3600, v3 / 3600).T)


def rotated(matrix: Array, x: Any, y: Any, z: Any) -> tuple[Array, Array, Array]:
    """Vectors turned by a matrix; written out, as the last bits of a library's product vary from call to call."""
    a, b, c = (row[0] * x + row[1] * y + row[2] * z for row in matrix)
    return a, b, c


def positions(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Right ascension in [0, 360) and declination, deg, of vectors of any length, right at the poles as well."""
    ra = np.degrees(np.arctan2(y, x)) % 360.0
    # a tiny negative angle is rounded up to 360 by the remainder
    return np.where(ra >= 360.0, 0.0, ra), np.degrees(np.arctan2(z, np.hypot(x, y)))


def _product(first: Array, second: Array) -> Array:
    return np.stack(rotated(first, *second))


def _number(header: Mapping[str, Any], key: str) -> float:
    value = header.get(key)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"{key} is {value!r}: without it an exposure can't be placed on the sky") from error
    if not math.isfinite(number):
        raise InputError(f"{key} is {value!r}: without it an exposure can't be placed on the sky")
    return number
