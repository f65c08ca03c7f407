"""From detector pixels to the sky and back: pysiaf's distortion, velocity aberration, attitude.

Put here spherical and focal-plane geometry, vectorized and free of files. Pixels are 0-based science-frame pixels
(DMS orientation), V2 and V3 *arcsec*, sky positions *degrees* ICRS. The chain is the one that jwst's ``assign_wcs``
documents: filter offset, distortion polynomial, planar Ideal to V2V3, aberration scale about the aperture's
reference point, rotation to the sky.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from panoramic.errors import InputError
from panoramic.simulate.instrument import DETECTORS, FILTERS, NPIX

Array = NDArray[np.float64]
ARCSEC = np.pi / 180 / 3600
PRD_VERSION = "PRDOPSSOC-072"


def _rotation(axis: int, angle: float) -> Array:
    """Active right-handed rotation about axis 0, 1 or 2 by an angle in *radians*."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.eye(3)
    out[i, i] = out[j, j] = c
    out[i, j], out[j, i] = -s, s
    return out


def unit_vectors(lon: ArrayLike, lat: ArrayLike) -> Array:
    """Unit vectors, shape (..., 3), of spherical coordinates in *radians*."""
    lon, lat = np.broadcast_arrays(np.asarray(lon, float), np.asarray(lat, float))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def sky_of(vectors: Array) -> tuple[Array, Array]:
    """Right ascension in [0, 360) and declination, *degrees*, of vectors of shape (..., 3)."""
    lon, lat = _angles(vectors)
    ra = np.degrees(lon) % 360.0
    # A tiny negative angle is rounded up to 360 by the remainder.
    return np.where(ra >= 360.0, 0.0, ra), np.degrees(lat)


def _angles(vectors: Array) -> tuple[Array, Array]:
    """Longitude and latitude, *radians*, of vectors of shape (..., 3)."""
    # On strided views numpy's arctan2 takes one of two routes by memory layout, with other last bits: give it copies.
    x, y, z = (np.array(vectors[..., k]) for k in range(3))
    # arctan2 keeps its precision at the poles, arcsin does not.
    return np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))


def rotate(matrix: Array, vectors: Array) -> Array:
    """Vectors, shape (..., 3), turned by a matrix; written out, as the last bits of BLAS vary from call to call."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.stack([row[0] * x + row[1] * y + row[2] * z for row in matrix], axis=-1)


def _product(*matrices: Array) -> Array:
    """Product of 3 x 3 matrices, the same bits each time."""
    out = matrices[-1]
    for matrix in reversed(matrices[:-1]):
        out = rotate(matrix, out.T).T
    return out


def attitude_matrix(v2: float, v3: float, ra: float, dec: float, pa: float) -> Array:
    """Rotation from the telescope's frame to the sky.

    Parameters
    ----------
    v2, v3 : a point of the focal plane, *arcsec*.
    ra, dec : where on the sky it is, *degrees*.
    pa : position angle of V3 at that point, *degrees* east of north.

    Returns
    -------
    array, shape (3, 3)
    """
    return _product(
        _rotation(2, np.radians(ra)),
        _rotation(1, -np.radians(dec)),
        _rotation(0, -np.radians(pa)),
        _rotation(1, v3 * ARCSEC),
        _rotation(2, -v2 * ARCSEC),
    )


def roll_at(matrix: Array, v2: float, v3: float) -> float:
    """Position angle of V3, *degrees*, at a point of the focal plane under an attitude."""
    a, b = v2 * ARCSEC, v3 * ARCSEC
    point = rotate(matrix, unit_vectors(a, b))
    up = rotate(matrix, np.array([-np.sin(b) * np.cos(a), -np.sin(b) * np.sin(a), np.cos(b)]))
    east = np.array([-point[1], point[0], 0.0])
    north = np.cross(point, east)
    return float(np.degrees(np.arctan2((up * east).sum(), (up * north).sum())) % 360.0)


@dataclass(frozen=True)
class Pointing:
    """Where a detector's reference point lies on the sky: what the archive's headers tell of an attitude.

    Parameters
    ----------
    ra_ref, dec_ref : *degrees*.
    roll_ref : position angle of V3 there, *degrees*.
    va_scale : ratio of the apparent to the true plate scale (VA_SCALE).
    """

    ra_ref: float
    dec_ref: float
    roll_ref: float
    va_scale: float

    def moved(self, east_arcsec: float, north_arcsec: float) -> Pointing:
        """The pointing after a rotation that moves the reference point by a small angle, without turning the field."""
        frame = attitude_matrix(0.0, 0.0, self.ra_ref, self.dec_ref, self.roll_ref)
        point = frame[:, 0]
        east = np.array([-np.sin(np.radians(self.ra_ref)), np.cos(np.radians(self.ra_ref)), 0.0])
        north = np.cross(point, east)
        step = (east * east_arcsec + north * north_arcsec) * ARCSEC
        angle = float(np.linalg.norm(step))
        if angle == 0.0:
            return self
        axis = np.cross(point, step / angle)
        k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        turned = _product(np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * _product(k, k), frame)
        ra, dec = sky_of(turned[:, 0])
        return Pointing(float(ra), float(dec), roll_at(turned, 0.0, 0.0), self.va_scale)


@dataclass(frozen=True, eq=False)
class Aperture:
    """The part of pysiaf's aperture that the simulation needs, with its distortion as plain numbers.

    ``forward`` and ``inverse`` are polynomial coefficients, shape (2, n_terms), of x and y, ordered as pysiaf's.
    """

    name: str
    v2_ref: float
    v3_ref: float
    v3_idl_yangle: float
    parity: int
    x_ref: float
    y_ref: float
    x_scale: float
    y_scale: float
    degree: int
    forward: Array
    inverse: Array

    @property
    def pixel_area_arcsec2(self) -> float:
        """Nominal pixel area, *arcsec^2*: PIXAR_A2."""
        return self.x_scale * self.y_scale

    @property
    def pixel_area_sr(self) -> float:
        """Nominal pixel area, *steradian*: PIXAR_SR."""
        return self.pixel_area_arcsec2 * ARCSEC**2

    def pixel_to_v2v3(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """V2, V3 (*arcsec*, without aberration) of 0-based pixels, any shape."""
        u, v = np.asarray(x, float) + 1 - self.x_ref, np.asarray(y, float) + 1 - self.y_ref
        xi, yi = _polynomial(self.forward, self.degree, u, v)
        c, s = np.cos(np.radians(self.v3_idl_yangle)), np.sin(np.radians(self.v3_idl_yangle))
        return self.v2_ref + self.parity * xi * c + yi * s, self.v3_ref - self.parity * xi * s + yi * c

    def v2v3_to_pixel(self, v2: ArrayLike, v3: ArrayLike) -> tuple[Array, Array]:
        """0-based pixels of V2, V3; the inverse of `pixel_to_v2v3` to 1e-6 pixel inside and near the detector."""
        dv2, dv3 = np.asarray(v2, float) - self.v2_ref, np.asarray(v3, float) - self.v3_ref
        c, s = np.cos(np.radians(self.v3_idl_yangle)), np.sin(np.radians(self.v3_idl_yangle))
        xi, yi = self.parity * (dv2 * c - dv3 * s), dv2 * s + dv3 * c
        u, v = _polynomial(self.inverse, self.degree, xi, yi)
        # pysiaf's inverse polynomial is only good to some 0.01 pixel: polish it with the forward one.
        for _ in range(3):
            fx, fy = _polynomial(self.forward, self.degree, u, v)
            u, v = u + (xi - fx) / self.x_scale, v + (yi - fy) / self.y_scale
        return u + self.x_ref - 1, v + self.y_ref - 1

    def pixel_to_sky(self, pointing: Pointing, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Right ascension and declination, *degrees*, of 0-based pixels (filter offset not included)."""
        v2, v3 = self.pixel_to_v2v3(x, y)
        v2 = self.v2_ref + pointing.va_scale * (v2 - self.v2_ref)
        v3 = self.v3_ref + pointing.va_scale * (v3 - self.v3_ref)
        return sky_of(rotate(self._matrix(pointing), unit_vectors(v2 * ARCSEC, v3 * ARCSEC)))

    def sky_to_pixel(self, pointing: Pointing, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
        """0-based pixels of sky positions (filter offset not included)."""
        vectors = rotate(self._matrix(pointing).T, unit_vectors(np.radians(ra), np.radians(dec)))
        lon, lat = _angles(vectors)
        v2 = self.v2_ref + (lon / ARCSEC - self.v2_ref) / pointing.va_scale
        v3 = self.v3_ref + (lat / ARCSEC - self.v3_ref) / pointing.va_scale
        return self.v2v3_to_pixel(v2, v3)

    def jacobian(self, pointing: Pointing, ra: Array, dec: Array) -> Array:
        """Pixels per *arcsec* toward east (first column) and north, shape (..., 2, 2), at sky positions."""
        step = 0.5
        vectors = unit_vectors(np.radians(ra), np.radians(dec))
        east = np.stack([-np.sin(np.radians(ra)), np.cos(np.radians(ra)), np.zeros_like(ra)], axis=-1)
        north = np.cross(vectors, east)
        columns = []
        for direction in (east, north):
            plus = self.sky_to_pixel(pointing, *sky_of(vectors + direction * step * ARCSEC))
            minus = self.sky_to_pixel(pointing, *sky_of(vectors - direction * step * ARCSEC))
            columns.append(np.stack([plus[0] - minus[0], plus[1] - minus[1]], axis=-1) / (2 * step))
        return np.stack(columns, axis=-1)

    def footprint(self, pointing: Pointing) -> Array:
        """Corners on the sky, *degrees*, shape (4, 2), in the archive's order."""
        # jwst rounds the bounding box (-0.5 to 2047.5) up to whole pixels before it makes S_REGION.
        low, high = 0, NPIX
        ra, dec = self.pixel_to_sky(pointing, [low, low, high, high], [low, high, high, low])
        return np.stack([ra, dec], axis=-1)

    def reference_pointing(self, attitude: Array, va_scale: float) -> Pointing:
        """What an attitude means for this aperture; aberration scales the focal plane about the boresight."""
        v2, v3 = va_scale * self.v2_ref, va_scale * self.v3_ref
        ra, dec = sky_of(rotate(attitude, unit_vectors(v2 * ARCSEC, v3 * ARCSEC)))
        return Pointing(float(ra), float(dec), roll_at(attitude, v2, v3), va_scale)

    def _matrix(self, pointing: Pointing) -> Array:
        return attitude_matrix(self.v2_ref, self.v3_ref, pointing.ra_ref, pointing.dec_ref, pointing.roll_ref)

    def fitted_inverse(self) -> Array:
        """Coefficients, as ``inverse``, fitted here: pysiaf's own are off by up to 0.14 pixel at the edges."""
        u, v = np.meshgrid(*(np.linspace(-1030.0, 1030.0, 60),) * 2)
        x, y = _polynomial(self.forward, self.degree, u, v)
        scale = 1024 * max(self.x_scale, self.y_scale)
        terms = [(i, j) for i in range(self.degree + 1) for j in range(i + 1)]
        design = np.stack([(x.ravel() / scale) ** (i - j) * (y.ravel() / scale) ** j for i, j in terms], axis=1)
        solution = np.linalg.lstsq(design, np.stack([u.ravel(), v.ravel()], axis=1), rcond=None)[0]
        # A number of digits that does not depend on the last bits of the linear algebra.
        return np.array(
            [[float(f"{c / scale**i:.9e}") for c, (i, _) in zip(s, terms, strict=True)] for s in solution.T]
        )


def _polynomial(coefficients: Array, degree: int, x: Array, y: Array) -> tuple[Array, Array]:
    """Evaluate pysiaf's two polynomials: terms x^(i-j) y^j, i to the degree, j from 0 to i."""
    out_x, out_y = np.zeros_like(x), np.zeros_like(x)
    k = 0
    powers_x, powers_y = [np.ones_like(x)], [np.ones_like(x)]
    for _ in range(degree):
        powers_x.append(powers_x[-1] * x)
        powers_y.append(powers_y[-1] * y)
    for i in range(degree + 1):
        for j in range(i + 1):
            term = powers_x[i - j] * powers_y[j]
            out_x += coefficients[0, k] * term
            out_y += coefficients[1, k] * term
            k += 1
    return out_x, out_y


@functools.cache
def _siaf() -> dict[str, dict[str, str]]:
    """NIRCam's apertures, name to the entries of pysiaf's PRD file."""
    # Read without importing pysiaf: its import asks a web server for news, without a time-out.
    package = importlib.util.find_spec("pysiaf")
    if package is None or package.origin is None:
        raise InputError("the simulator needs pysiaf's data files: install pysiaf")
    file = Path(package.origin).parent / "prd_data" / "JWST" / PRD_VERSION / "SIAFXML" / "SIAFXML" / "NIRCam_SIAF.xml"
    if not file.exists():
        raise InputError(f"{file} is missing: the simulator needs a pysiaf that holds {PRD_VERSION}")
    entries = ElementTree.parse(file).getroot().iter("SiafEntry")  # noqa: S314  (a file of an installed package)
    rows = ({child.tag: child.text or "" for child in entry} for entry in entries)
    return {row["AperName"]: row for row in rows}


@functools.cache
def aperture(detector: str) -> Aperture:
    """The full-frame aperture of a detector (lower-case name), from pysiaf's PRD.

    Raises
    ------
    InputError
        pysiaf or its data are not there.
    """
    a = _siaf()[DETECTORS[detector].aperture]
    degree = int(a["Sci2IdlDeg"])

    def coefficients(kind: str) -> Array:
        terms = [f"{i}{j}" for i in range(degree + 1) for j in range(i + 1)]
        return np.array([[float(a[f"{kind}{axis}{term}"]) for term in terms] for axis in "XY"])

    return Aperture(
        name=a["AperName"],
        v2_ref=float(a["V2Ref"]),
        v3_ref=float(a["V3Ref"]),
        v3_idl_yangle=float(a["V3IdlYAngle"]),
        parity=int(a["VIdlParity"]),
        x_ref=float(a["XSciRef"]),
        y_ref=float(a["YSciRef"]),
        x_scale=float(a["XSciScale"]),
        y_scale=float(a["YSciScale"]),
        degree=degree,
        forward=coefficients("Sci2Idl"),
        inverse=coefficients("Idl2Sci"),
    )


@functools.cache
def pointing_aperture(modules: tuple[str, ...]) -> tuple[str, float, float]:
    """Name, V2 and V3 (*arcsec*) of the aperture that a pointing refers to: both modules or the only one."""
    name = "NRCALL_FULL" if len(set(modules)) > 1 else f"NRC{modules[0]}S_FULL"
    return name, float(_siaf()[name]["V2Ref"]), float(_siaf()[name]["V3Ref"])


@functools.cache
def filter_offset(detector: str, band: str) -> tuple[float, float]:
    """Column and row offset, *pixels*, that a filter adds to a detector position (CRDS ``filteroffset``).

    Invented, but of the size of the real ones (0.0-0.4 pixel), the same for all detectors of a channel and module.
    """
    order = sorted(FILTERS).index(band) + (7 if DETECTORS[detector].module == "A" else 0)
    return round(0.3 * np.sin(1.7 * order + 0.4), 3), round(0.3 * np.cos(2.3 * order - 0.2), 3)


def s_region(corners: Array) -> str:
    """The archive's footprint string of corners, shape (4, 2)."""
    return "POLYGON ICRS  " + " ".join(f"{v:.9f}" for v in corners.ravel())
